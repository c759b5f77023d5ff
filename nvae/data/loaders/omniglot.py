"""omniglot: handwritten characters, as the 28x28 file of the literature or as the original drawings of 105x105."""

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
from nvae.data.sources import obtain
from nvae.data.splits import split_arrays
from nvae.schema import ModelConfig, OmniglotDataset
from nvae.system.errors import Remedy, UserError

SIDE = 28
VARIABLES = ("data", "testdata")  # training and test images


def load_omniglot(config: ModelConfig, progress: bool = False) -> Data:
    """Load the training and test images of `dataset.version`, white on black. Raises UserError.

    chardata: 24,345 and 8,070 images. torchvision: the background set (19,280) and the evaluation set (13,180).
    """
    assert isinstance(config.dataset, OmniglotDataset)
    if config.dataset.version == "chardata":
        advice = ", or set dataset.version to torchvision"
        scipy_io = import_extra("scipy.io", "omniglot", "omniglot", advice, Remedy.CONFIG_KEY)
        training, test = _read_chardata(obtain(config, progress)["images"], scipy_io.loadmat)
    else:
        paths = obtain(config, progress)
        # The drawings are black on white.
        training, test = (255 - read_pictures(paths[part], "L", progress) for part in ("training", "test"))
    return split_arrays(config, [training], [test], pad=True)


def _read_chardata(file: Path, loadmat: Callable[..., dict[str, Any]]) -> list[Tensor]:
    """Read uint8 (N, 1, 28, 28) of each variable."""
    try:
        variables = loadmat(file, variable_names=VARIABLES)
    except Exception as error:  # scipy raises almost any exception for a damaged file
        raise UserError(
            f"{file} cannot be read ({str(error) or type(error).__name__}). Delete the file to download it again."
        ) from error
    return [_images_of(variables.get(name), name, file) for name in VARIABLES]


def _images_of(columns: Any, name: str, file: Path) -> Tensor:
    """Convert a matrix of numbers in [0, 1], one image per column, to images (N, 1, 28, 28).

    A column of the matrix holds the columns of an image, one after the other.
    """
    if (
        not isinstance(columns, np.ndarray)
        or columns.dtype.kind != "f"
        or columns.ndim != 2
        or columns.shape[0] != SIDE**2
        or columns.shape[1] == 0
        or not (columns.min() >= 0 and columns.max() <= 1)  # false for NaN
    ):
        raise UserError(
            f"{file} does not hold the images of omniglot: expected a matrix '{name}' of {SIDE**2} rows with numbers "
            "from 0 to 1. Delete the file to download it again."
        )
    images = np.rint(columns.T.reshape(-1, 1, SIDE, SIDE) * 255).astype(np.uint8)
    return torch.from_numpy(images.swapaxes(2, 3).copy())
