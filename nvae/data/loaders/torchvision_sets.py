"""cifar10, cifar100, svhn and stl10: arrays that torchvision reads and verifies."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.pictures.folders import read_pictures
from nvae.data.sources import obtain_and_read
from nvae.data.splits import split_arrays
from nvae.schema import DownloadedDataset, ModelConfig


def load_torchvision_set(config: ModelConfig, progress: bool = False) -> Data:
    """Load the training images, with unlabeled or extra ones where there are any, and the test images.

    cifar10 and cifar100 may also be folders train and test of pictures. Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, DownloadedDataset)
    if dataset.name == "svhn":
        import_extra("scipy.io", "svhn", "svhn")

    def read(paths: dict[str, Path]) -> list[Tensor]:
        if all(path.is_dir() for path in paths.values()):
            return [read_pictures(paths[part], "RGB", progress) for part in ("training", "test")]
        return _read_arrays(dataset, paths)

    *training, test = obtain_and_read(config, read, progress)
    return split_arrays(config, training, [test])


def _read_arrays(dataset: DownloadedDataset, paths: dict[str, Path]) -> list[Tensor]:
    """Read uint8 (N, 3, H, W) of each training part, then of the test part, from the folders of the paths."""
    from torchvision.datasets import CIFAR10, CIFAR100, STL10, SVHN  # takes a second

    sets: dict[str, tuple[Callable[..., Any], list[Any]]] = {
        "cifar10": (CIFAR10, [True, False]),  # whether for training
        "cifar100": (CIFAR100, [True, False]),
        "svhn": (SVHN, ["train", *(["extra"] if getattr(dataset, "extra", False) else []), "test"]),
        "stl10": (STL10, ["train", "unlabeled", "test"]),
    }
    make, parts = sets[dataset.name]
    # torchvision's name of the folder of the files; they may be in any folder.
    make = type(make.__name__, (make,), {"base_folder": "."})  # type: ignore[arg-type]
    first = next(iter(paths.values()))
    arrays = [make(paths.get(part, first).parent, part).data for part in parts]
    return [torch.from_numpy(np.moveaxis(array, 3, 1) if array.shape[3] == 3 else array) for array in arrays]
