"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from nvae.data.cifar10 import load_cifar10
from nvae.data.folder import load_folder
from nvae.data.images import Data, binarized, in_chunks, to_network
from nvae.data.mnist import load_mnist
from nvae.data.toy_faces import load_toy_faces
from nvae.schema import DatasetName, ModelConfig
from nvae.seeds import seeded

LOADERS: dict[DatasetName, Callable[[ModelConfig], Data]] = {
    "folder": load_folder,
    "mnist": load_mnist,
    "fashion_mnist": load_mnist,
    "cifar10": load_cifar10,
    "toy_faces": load_toy_faces,
}


def load_data(config: ModelConfig) -> Data:
    """The images that a config names, at its `input_dimension` and `image_channels`.

    With `dataset.binarize`, validation images are 0 and 255, drawn once and the same in every run, so that their
    likelihoods compare; those for training stay gray, to be drawn anew at every step. Raises UserError.
    """
    data = LOADERS[config.dataset.name](config)
    if not config.dataset.binarize:
        return data
    generator = seeded(0, "binarized validation")

    def draw(pixels: Tensor) -> Tensor:
        return binarized(to_network(pixels, "cpu", config.pixel_bits), generator) * 255

    return replace(data, validation=in_chunks(draw, data.validation, data.validation.shape[1:]))
