"""npz: arrays of images in .npz or .npy files of NumPy."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.arrays import ArrayFile, StoredArray
from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data, resize, to_grayscale
from nvae.data.paths import dataset_path
from nvae.data.pictures.folders import part_named_in
from nvae.data.pictures.image_files import MAX_PIXELS
from nvae.data.splits import split
from nvae.schema import ModelConfig, NpzDataset
from nvae.system.errors import Remedy, UserError
from nvae.system.memory_maps import releasing

# Names of the array of each part: of MedMNIST, of Keras, and plain ones.
NAMES = {
    "training": ("train_images", "x_train", "training", "train"),
    "validation": ("val_images", "x_val", "validation", "val"),
    "test": ("test_images", "x_test", "test"),
}
MAX_NAMED = 10
ADVICE = "Set dataset.path to an .npz or .npy file with uint8 images, or to a folder of such files."


def load_npz(config: ModelConfig, progress: bool = False) -> Data:
    """Load the images of the file or folder `dataset.path`: an array for each part, or one array, which is split.

    The test images are for validation if there are no validation images. `validation_images` splits the training
    images. Images are cropped to a square at their center. Runs no code from a file, and reads files in chunks. Raises
    UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, NpzDataset)
    path = dataset_path(dataset)
    arrays = find_arrays(path)
    parts = {part: read_images(stored, array, config, progress) for part, (stored, array) in arrays.items()}
    if max(images_u8.max().item() for images_u8 in parts.values()) == 1:
        raise UserError(f"the largest value in {path} is 1; expected values from 0 to 255. Save 255 * images.")
    training, held_out = parts["training"], [parts[part] for part in ("validation", "test") if part in parts]
    if not held_out and len(training) < 2:
        raise UserError(f"{path} holds one image; expected at least two. {ADVICE}")
    data = split(training, held_out, dataset)
    return replace(data, validation_is_test=data.validation is parts.get("test"))


# ----------------------------------------------------------------------------------------------- choosing and checking


def find_arrays(path: Path) -> dict[str, tuple[ArrayFile, StoredArray]]:
    """Return the array of each part and its file, always one for training, of a file or of the files in a folder.

    A file in a folder that has one array belongs to the part that is named in the file's name. Raises UserError.
    """
    files = sorted(path.glob("[!.]*.np[yz]")) if path.is_dir() else [path]
    found: dict[str, tuple[ArrayFile, StoredArray]] = {}
    for file in files:
        if not file.is_file():
            problem = "is not a file" if file.exists() else "does not exist"
            raise UserError(f"'{file}' {problem}. {ADVICE}", Remedy.DATASET_PATH)
        stored = ArrayFile(file, ADVICE, Remedy.DATASET_PATH)
        arrays = choose_arrays(stored)
        if path.is_dir() and len(arrays) == 1:
            arrays = {part_named_in(file.name): arrays["training"]}
        for part, array in arrays.items():
            check_images(array, file)
            if part in found:
                raise UserError(
                    f"'{found[part][0].path}' and '{file}' hold {part} images; expected one file for each part, with "
                    "names such as train.npy and test.npy. Move the other files to a folder of their own."
                )
            found[part] = stored, array
    if "training" not in found:
        raise UserError(f"'{path}' holds no .npz or .npy file of training images. {ADVICE}", Remedy.DATASET_PATH)
    return found


def choose_arrays(stored: ArrayFile) -> dict[str, StoredArray]:
    """Return the array of each part, always one for training. Raises UserError."""
    arrays = stored.arrays
    named = {part: next((arrays[name] for name in names if name in arrays), None) for part, names in NAMES.items()}
    if named["training"]:
        return {part: array for part, array in named.items() if array}
    images = [array for array in arrays.values() if len(array.shape) in (3, 4)]  # labels have fewer axes
    if len(images) == 1:
        return {"training": images[0]}
    found = ", ".join([*list(arrays)[:MAX_NAMED], *(["..."] if len(arrays) > MAX_NAMED else [])])
    raise UserError(
        f"{stored.path} holds {len(images)} arrays of images ({found or 'no arrays'}); expected one, or several with "
        "the names train_images, val_images and test_images. Save the file with these names."
    )


def check_images(array: StoredArray, file: Path) -> None:
    """Raise UserError for an array that holds no images in a known layout."""
    shape = array.shape
    if array.dtype != np.uint8:
        advice = {
            "O": "Save np.stack(images), with all images of one size",
            "f": "Save (255 * images).round().astype('uint8') if the values are from 0 to 1",
            "b": "Save 255 * images.astype('uint8')",
        }.get(array.dtype.kind, "Save images.astype('uint8') if the values are from 0 to 255")
        raise UserError(f"{array} in {file} has the type {array.dtype}; expected uint8. {advice}.")
    is_gray = len(shape) == 3 and shape[2] > 4  # else a single image (H, W, C)
    if not is_gray and _has_channels(array, 1) == _has_channels(array, 3):
        raise UserError(
            f"{array} in {file} has the shape {shape}; expected (N, H, W), (N, H, W, C) or (N, C, H, W) with 1 or 3 "
            "channels C in one of the two places. Save the images in one of these shapes."
        )
    if min(shape) < 1:
        raise UserError(f"{array} in {file} has the shape {shape} and holds no images. {ADVICE}", Remedy.DATASET_PATH)
    if math.prod(shape[1:]) > 3 * MAX_PIXELS:
        raise UserError(
            f"{array} in {file} has the shape {shape}; expected at most {MAX_PIXELS:,} pixels per image. Save smaller "
            "images."
        )
    if array.fortran_order:
        raise UserError(
            f"{array} in {file} is stored in Fortran order; expected C order. Save np.ascontiguousarray(images)."
        )


def _has_channels(array: StoredArray, axis: int) -> bool:
    return len(array.shape) == 4 and array.shape[axis] in (1, 3)


# ------------------------------------------------------------------------------------------------------------- reading


def read_images(stored: ArrayFile, array: StoredArray, config: ModelConfig, progress: bool = False) -> Tensor:
    """Read an array that `check_images` accepts as images (N, C, S, S) of the config's channels and size, uint8.

    Images are cropped to a square at their center and resized. Raises UserError for a damaged file.
    """
    count, size = array.shape[0], config.input_dimension
    images_u8 = new_images(count, config.image_channels, size, size)
    start = 0
    with tqdm(total=count, desc=f"reading {stored.path}", leave=False, disable=not progress, delay=1) as bar:
        for chunk in map(torch.from_numpy, releasing(stored.chunks(array, CHUNK))):
            if chunk.ndim == 3:
                chunk = chunk[:, None]
            elif _has_channels(array, 3):
                chunk = chunk.permute(0, 3, 1, 2)
            if config.image_channels < chunk.shape[1]:
                chunk = to_grayscale(chunk)
            images_u8[start : start + len(chunk)] = resize(_cropped(chunk), size)
            start += len(chunk)
            bar.update(len(chunk))
    return images_u8


def _cropped(images_u8: Tensor) -> Tensor:
    """Crop the longer side of images (N, C, H, W) at its center."""
    height, width = images_u8.shape[2:]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return images_u8[:, :, top : top + side, left : left + side]
