"""A contact sheet of a data set: what a model sees in training and in validation."""

from __future__ import annotations

import torch
from PIL import Image

from nvae.data.images import Data, to_float
from nvae.data.registry import evaluation_images
from nvae.data.training_images import epoch_order, training_images
from nvae.schema import ModelConfig
from nvae.tools.grids import filled, grid

COLUMNS = 8
IMAGES = 2 * COLUMNS  # of each part
CELL = 96  # least side of an image in the picture, in pixels


def data_sheet(data: Data, config: ModelConfig) -> Image.Image:
    """Draw images as the model gets them, in labeled rows of eight: the first ones of a training, then validation.

    Where training changes an image in another way at every step, the second step's versions of the same images follow.
    Where the encoder gets gray images and the likelihood binary ones, the binary images follow.
    """
    images_u8 = data.training[epoch_order(len(data.training), config, 0)[:IMAGES]]
    first, second = (training_images(images_u8, config, step) for step in (0, 1))
    validation, binary = (part[:IMAGES] for part in evaluation_images(data, "validation", config))
    parts = {"training": first.images}
    if not torch.equal(first.images, second.images):
        parts["next step"] = second.images
    if config.dataset.encoder_input == "gray":
        parts["binary"] = first.targets
    parts["validation"] = to_float(validation, "cpu", config.input_bits)
    if config.dataset.encoder_input == "gray":
        parts["binary validation"] = to_float(binary, "cpu", config.pixel_bits)
    rows, labels = [], []
    for label, images in parts.items():
        for row in images.split(COLUMNS):
            rows.append(filled(row, COLUMNS))
            labels.append(label)
    return grid(torch.cat(rows), COLUMNS, cell=CELL, labels=labels)
