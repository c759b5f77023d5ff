"""The images of a training step: their order, augmentation, binarization and dequantization."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from nvae.data.colors import jitter_colors, sharpen_some
from nvae.data.images import binarize, dequantize, flip, random_crop, to_float, with_bits
from nvae.schema import ModelConfig
from nvae.system.seeds import redrawn, seeded


class TrainingImages(NamedTuple):
    """The images of a training step, both (B, C, S, S) in [0, 1]."""

    images: Tensor  # for the encoder
    targets: Tensor  # for the likelihood


def epoch_order(count: int, config: ModelConfig, epoch: int, draws: int = 0) -> Tensor:
    """Return the order of `count` training images in an epoch, a function of the seed of the training and the epoch.

    draws: another number gives another order.
    """
    seed = redrawn(config.training_parameters.seed, draws)
    return torch.randperm(count, generator=seeded(seed, "order", epoch))


def training_images(
    images_u8: Tensor, config: ModelConfig, step: int, device: torch.device | str = "cpu", draws: int = 0
) -> TrainingImages:
    """Return what the encoder and the likelihood get from uint8 images (B, C, S, S) at a step.

    All draws depend on the seed of the training, the step and `draws` alone. The noise of dequantization is for the
    likelihood alone: the encoder gets the images without noise, as from every tool.
    """
    seed, dataset = redrawn(config.training_parameters.seed, draws), config.dataset
    images = to_float(images_u8, device, config.input_bits)
    if dataset.random_crop:
        images = random_crop(images, dataset.random_crop, seeded(seed, "crops", step, device))
    if dataset.horizontal_flip:
        images = flip(images, seeded(seed, "flips", step, device))
    if dataset.sharpness is not None:
        images = sharpen_some(images, dataset.sharpness, seeded(seed, "sharpness", step))
    if dataset.color_jitter is not None:
        images = jitter_colors(images, dataset.color_jitter, seeded(seed, "colors", step))
    if dataset.sharpness is not None or dataset.color_jitter is not None:
        most = 2**config.input_bits - 1
        images = (images * most).round() / most  # the values that a discretized likelihood is of
    targets = with_bits(images, config.input_bits, config.pixel_bits)
    if dataset.dequantize:
        generator = seeded(seed, "dequantization", step, device)
        return TrainingImages(images, dequantize(targets, config.pixel_bits, generator))
    if not dataset.binarize:
        return TrainingImages(images, targets)
    targets = binarize(targets, seeded(seed, "binarization", step, device))
    return TrainingImages(images if dataset.encoder_input == "gray" else targets, targets)
