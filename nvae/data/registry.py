"""Load a data set by its name, and prepare its parts for evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from torch import Tensor

from nvae.data.cifar10 import load_cifar10
from nvae.data.folder import load_folder
from nvae.data.images import Data, binarize, map_chunks, to_float
from nvae.data.mnist import load_mnist
from nvae.data.toy_faces import load_toy_faces
from nvae.schema import ModelConfig
from nvae.seeds import seeded

# Each loader takes the config and whether to show a progress bar.
LOADERS: dict[str, Callable[[ModelConfig, bool], Data]] = {
    "folder": load_folder,
    "mnist": load_mnist,
    "fashion_mnist": load_mnist,
    "cifar10": load_cifar10,
    "toy_faces": load_toy_faces,
}


def load_data(config: ModelConfig, progress: bool = False) -> Data:
    """Load the data set of a config, with the config's `input_dimension` and `image_channels`. Raises UserError.

    With `dataset.binarize`, validation images are binarized once, with the same result in every run, so that their
    likelihoods are comparable. Training images stay gray here: every training step binarizes its batch.
    """
    data = LOADERS[config.dataset.name](config, progress)
    return replace(data, validation=_binarized_once(data.validation, "validation", config))


def evaluation_images(data: Data, part: Literal["training", "validation"], config: ModelConfig) -> Tensor:
    """Return the images of one part of `load_data`'s result as a likelihood needs them: uint8 (N, C, S, S).

    With `dataset.binarize`, both parts hold only 0 and 255; training images are binarized here, with the same result
    in every run.
    """
    return data.validation if part == "validation" else _binarized_once(data.training, part, config)


def _binarized_once(images_u8: Tensor, part: str, config: ModelConfig) -> Tensor:
    """Binarize the images to 0 and 255 with a fixed seed if the config says so."""
    if not config.dataset.binarize:
        return images_u8
    generator = seeded(0, f"binarized {part}")

    def draw(chunk: Tensor) -> Tensor:
        return binarize(to_float(chunk, "cpu", config.pixel_bits), generator) * 255

    return map_chunks(draw, images_u8, images_u8.shape[1:])
