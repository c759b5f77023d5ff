"""toy_faces: cartoon faces drawn from an index, a data set that needs no download.

Face number i is the same image on every machine.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from tqdm.auto import tqdm

from nvae.data.images import Data, to_grayscale
from nvae.data.loaders.toy_face_attributes import face
from nvae.data.loaders.toy_face_drawing import draw
from nvae.schema import ModelConfig, ToyFacesDataset

DRAWING_VERSION = 1  # to be raised when a face looks different
FIRST_VALIDATION = 1_000_000_000  # the largest number of training images, so that the two parts never overlap


def draw_faces(indices: Sequence[int], size: int, progress: bool = False) -> np.ndarray:
    """Draw the faces with these indices: uint8 (N, 3, size, size)."""
    images = np.empty((len(indices), 3, size, size), np.uint8)
    bar = tqdm(indices, "drawing faces", unit=" faces", leave=False, disable=not progress, delay=1)
    for i, index in enumerate(bar):
        images[i] = np.asarray(draw(face(index), size)).transpose(2, 0, 1)
    return images


def load_toy_faces(config: ModelConfig, progress: bool = False) -> Data:
    """Draw `training_images` faces from index 0 on and `validation_images` faces from FIRST_VALIDATION on."""
    dataset = config.dataset
    assert isinstance(dataset, ToyFacesDataset)
    parts = (range(dataset.training_images), range(FIRST_VALIDATION, FIRST_VALIDATION + dataset.validation_images))
    training, validation = (torch.from_numpy(draw_faces(part, config.input_dimension, progress)) for part in parts)
    if config.image_channels == 1:
        training, validation = to_grayscale(training), to_grayscale(validation)
    recipe = (
        f"toy_faces {DRAWING_VERSION}: {dataset.training_images} {dataset.validation_images} images, "
        f"{config.image_channels} x {config.input_dimension} x {config.input_dimension}"
    )
    return Data(training, validation, recipe=recipe)
