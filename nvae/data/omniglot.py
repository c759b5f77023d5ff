"""omniglot: handwritten characters, as the 28x28 file of the literature or as torchvision's images of 105x105."""

from __future__ import annotations

from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.image_files import open_image
from nvae.data.images import Data, pad_or_resize
from nvae.data.paths import dataset_folder
from nvae.data.splits import split
from nvae.errors import UserError
from nvae.files import atomic_write
from nvae.schema import ModelConfig

SIDE = 28
CHARDATA = "chardata.mat"  # of Burda et al. 2015
CHARDATA_URL = f"https://github.com/yburda/iwae/raw/master/datasets/OMNIGLOT/{CHARDATA}"
VARIABLES = ("data", "testdata")  # training and test images


def load_omniglot(config: ModelConfig, progress: bool = False) -> Data:
    """Load the training and test images of `dataset.version`, white on black. Raises UserError.

    chardata: 24,345 and 8,070 images. torchvision: the background set (19,280) and the evaluation set (13,180).
    """
    folder = dataset_folder(config.dataset)
    parts = _load_chardata(folder) if config.dataset.version == "chardata" else _load_torchvision(folder, progress)
    training, test = (pad_or_resize(part, config.input_dimension) for part in parts)
    data = split(training, test, config.dataset)
    return data.map(lambda images_u8: images_u8.expand(-1, config.image_channels, -1, -1))


# --------------------------------------------------------------------------------------------------------- chardata


def _load_chardata(folder: Path) -> list[Tensor]:
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise UserError(
            "omniglot needs the extra 'omniglot': install it with pip install -e '.[omniglot]', or set dataset.version "
            "to torchvision."
        ) from error
    file = folder / CHARDATA
    if file.is_file():
        return _read_chardata(file, file, loadmat)
    with atomic_write(file) as temporary:
        _download(temporary, folder)
        return _read_chardata(temporary, file, loadmat)  # a damaged file gets no name


def _download(target: Path, folder: Path) -> None:
    from torchvision.datasets.utils import download_url  # takes a second

    try:
        download_url(CHARDATA_URL, target.parent, target.name)
    except (OSError, RuntimeError, HTTPException) as error:
        raise UserError(
            f"{CHARDATA} is not in '{folder}' and cannot be downloaded ({error}). Download {CHARDATA_URL} and put "
            f"the file there, or set dataset.path to the folder that contains {CHARDATA}."
        ) from error


def _read_chardata(path: Path, file: Path, loadmat: Callable[..., dict[str, Any]]) -> list[Tensor]:
    """Read uint8 (N, 1, 28, 28) of each variable from `path`, which is called `file` in messages."""
    try:
        variables = loadmat(path, variable_names=VARIABLES)
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


# ------------------------------------------------------------------------------------------------------ torchvision


def _load_torchvision(folder: Path, progress: bool) -> list[Tensor]:
    from torchvision.datasets import Omniglot  # takes a second

    try:
        folders = [Path(Omniglot(folder, background, download=True).target_folder) for background in (True, False)]
        return [_read_drawings(part, progress) for part in folders]
    except (OSError, RuntimeError, ValueError) as error:
        archives = " and ".join(f"{name}.zip" for name in Omniglot.zips_md5)
        raise UserError(
            f"omniglot is not complete in '{folder / Omniglot.folder}' and cannot be downloaded ({error}). Put "
            f"{archives} of {Omniglot.download_url_prefix} there and extract both, or delete both to download them "
            "again."
        ) from error


def _read_drawings(folder: Path, progress: bool) -> Tensor:
    """Read the black drawings on white below a folder as white on black, uint8 (N, 1, 105, 105), in sorted order.

    torchvision's own order is that of the file system, which would make the split depend on the machine.
    """
    images = []
    bar = tqdm(sorted(folder.rglob("*.png")), "reading omniglot", unit=" images", leave=False, disable=not progress)
    for file in bar:
        try:
            with open_image(file) as image:
                images.append(255 - np.asarray(image.convert("L")))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them for a damaged file
            raise ValueError(f"{file.name} is damaged: {error}") from error
    return torch.from_numpy(np.stack(images))[:, None]
