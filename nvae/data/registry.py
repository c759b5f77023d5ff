"""The data sets by name."""

from __future__ import annotations

from collections.abc import Callable

from nvae.config import Config, DatasetName
from nvae.data.folder import load_folder
from nvae.data.images import Data
from nvae.data.mnist import load_mnist
from nvae.data.toy_faces import load_toy_faces

LOADERS: dict[DatasetName, Callable[[Config], Data]] = {
    "folder": load_folder,
    "mnist": load_mnist,
    "fashion_mnist": load_mnist,
    "toy_faces": load_toy_faces,
}


def load_data(config: Config) -> Data:
    """The images that a config names, at its `input_dimension` and `image_channels`. Raises UserError."""
    return LOADERS[config.dataset.name](config)
