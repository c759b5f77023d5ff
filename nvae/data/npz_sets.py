"""imagenet32, imagenet64 and the MedMNIST family: arrays in npz files of the publishers."""

from __future__ import annotations

import re
import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.downloads import fetch
from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.paths import dataset_folder
from nvae.data.sources import medmnist_suffix, obtain, source_files
from nvae.data.splits import split_arrays
from nvae.errors import UserError
from nvae.schema import NAMED_DATASETS, ModelConfig


def load_medmnist(config: ModelConfig, progress: bool = False) -> Data:
    """Load the published training, validation and test images of the smallest size that is large enough.

    Raises UserError.
    """
    name, folder = config.dataset.name, dataset_folder(config.dataset)
    files = source_files(config.dataset, config.input_dimension)
    file = files["images"]
    if file.find(folder) is None:
        # The package knows the addresses and the checksums; a file that is there needs no package.
        advice = f", or download {file.url} by hand into '{folder}'"
        info = import_extra("medmnist.info", name, "medmnist", advice).INFO[name]
        suffix = medmnist_suffix(config.input_dimension)
        if f"url{suffix}" not in info:
            raise UserError(f"the package medmnist is too old for {file.name}. Update it: pip install -U medmnist.")
        file = file._replace(url=info[f"url{suffix}"], md5=info[f"MD5{suffix}"])
    path = fetch(name, {"images": file}, folder, NAMED_DATASETS[name].homepage, progress)["images"]
    training, validation, test = (_images(_read(path, f"{part}_images"), path) for part in ("train", "val", "test"))
    return split_arrays(config, [training], test, validation)


def load_downsampled_imagenet(config: ModelConfig, progress: bool = False) -> Data:
    """Load the published training and validation images of imagenet32 or imagenet64. Raises UserError."""
    name, paths = config.dataset.name, obtain(config, progress)
    folders = {path.parent for part, path in paths.items() if part.startswith("training")}
    batches = sorted((file for folder in folders for file in folder.glob("train_data_batch_*.npz")), key=_number)

    def read(file: Path) -> Tensor:
        """Read uint8 (N, 3, side, side) from rows of 3 * side * side numbers."""
        side, rows = NAMED_DATASETS[name].size, _read(file, "data")
        if rows.ndim != 2 or rows.shape[1] != 3 * side**2:
            raise UserError(f"{file} does not hold the images of {name}: expected rows of {3 * side**2} numbers.")
        return torch.from_numpy(rows.reshape(-1, 3, side, side))

    bar = tqdm(batches, f"reading {name}", unit=" files", leave=False, disable=not progress)
    return split_arrays(config, map(read, bar), None, read(paths["validation"]))


def _number(file: Path) -> int:
    digits = re.search(r"\d+$", file.stem)
    return int(digits.group()) if digits else 0


def _images(array: np.ndarray, file: Path) -> Tensor:
    """Convert an array (N, H, W) or (N, H, W, 3) to a tensor (N, C, H, W)."""
    if array.ndim == 3:
        return torch.from_numpy(array)[:, None]
    if array.ndim != 4 or array.shape[3] != 3:
        raise UserError(f"{file} does not hold images: got an array of shape {array.shape}. Delete the file.")
    return torch.from_numpy(array).permute(0, 3, 1, 2)


def _read(file: Path, key: str) -> np.ndarray:
    """Read a uint8 array of an npz file; no code in the file is run."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            array = arrays[key]
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"the array '{key}' of {file} cannot be read ({error}). Delete the file to get it again."
        ) from error
    if array.dtype != np.uint8:
        raise UserError(
            f"the array '{key}' of {file} is {array.dtype}, expected uint8. Delete the file to get it again."
        )
    return array
