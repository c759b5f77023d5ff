"""cifar10, cifar100, svhn and stl10: arrays that torchvision reads and verifies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.paths import dataset_folder
from nvae.data.pictures.folders import read_pictures
from nvae.data.sources import obtain_and_read
from nvae.data.splits import split_arrays
from nvae.schema import DownloadedDataset, ModelConfig


class TorchvisionSet(NamedTuple):
    """A class of torchvision.datasets, whose `data` holds all images."""

    class_name: str
    argument: str  # of the class, which chooses the part
    training: Sequence[Any]  # values of the argument, one for each array of training images
    test: Any
    channels_last: bool = False  # axes of `data`


def _torchvision_set(dataset: DownloadedDataset) -> TorchvisionSet:
    if dataset.name == "svhn":
        return TorchvisionSet("SVHN", "split", ["train", "extra"] if dataset.extra else ["train"], "test")
    return {
        "cifar10": TorchvisionSet("CIFAR10", "train", [True], False, channels_last=True),
        "cifar100": TorchvisionSet("CIFAR100", "train", [True], False, channels_last=True),
        "stl10": TorchvisionSet("STL10", "split", ["train", "unlabeled"], "test"),
    }[dataset.name]


def load_torchvision_set(config: ModelConfig, progress: bool = False) -> Data:
    """Load the training images, with unlabeled or extra ones where there are any, and the test images.

    cifar10 and cifar100 may also be folders train and test of pictures. Raises UserError.
    """
    if config.dataset.name == "svhn":
        import_extra("scipy.io", "svhn", "svhn")

    def read(paths: dict[str, Path]) -> list[Tensor]:
        if all(path.is_dir() for path in paths.values()):
            return [read_pictures(paths[part], "RGB", progress) for part in ("training", "test")]
        return _read_arrays(config.dataset)

    *training, test = obtain_and_read(config, read, progress)
    return split_arrays(config, training, test)


def _read_arrays(dataset: DownloadedDataset) -> list[Tensor]:
    """Read uint8 (N, 3, H, W) of each training part, then of the test part."""
    import torchvision.datasets  # takes a second

    source, folder = _torchvision_set(dataset), dataset_folder(dataset)
    make = getattr(torchvision.datasets, source.class_name)
    arrays = [make(folder, **{source.argument: part}).data for part in (*source.training, source.test)]
    return [torch.from_numpy(np.moveaxis(array, 3, 1) if source.channels_last else array) for array in arrays]
