"""npz: arrays of images in an .npz or .npy file of NumPy."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data, resize, select, to_grayscale
from nvae.data.paths import dataset_path
from nvae.data.pictures.image_files import MAX_PIXELS
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy, UserError
from nvae.system.memory_maps import releasing
from nvae.system.seeds import seeded

# Names of the array of each part: of MedMNIST, of Keras, and plain ones.
NAMES = {
    "training": ("train_images", "x_train", "training", "train"),
    "validation": ("val_images", "x_val", "validation", "val"),
    "test": ("test_images", "x_test", "test"),
}
CHUNK_BYTES = 2**26  # of the images that are read at once
MAX_NAMED = 10
ADVICE = "Set dataset.path to an .npz or .npy file with uint8 images."


class _Array(NamedTuple):
    """An array of a file, by what the file's header says; the values are not read yet."""

    name: str  # of the member of an .npz file; empty for an .npy file
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    num_bytes: int  # of the values in the file

    def __str__(self) -> str:
        return f"the array '{self.name}'" if self.name else "the array"

    @property
    def is_channels_last(self) -> bool:
        return len(self.shape) == 4 and self.shape[3] in (1, 3)

    @property
    def is_channels_first(self) -> bool:
        return len(self.shape) == 4 and self.shape[1] in (1, 3)


def load_npz(config: ModelConfig, progress: bool = False) -> Data:
    """Load the images of the file `dataset.path`: an array for each part, or one array of images, which is split.

    The test images are for validation if there are no validation images. Images are cropped to a square at their
    center. Runs no code from the file, and reads the file in chunks. Raises UserError.
    """
    file = dataset_path(config.dataset)
    if not file.is_file():
        problem = "is not a file" if file.exists() else "does not exist"
        raise UserError(f"'{file}' {problem}. {ADVICE}", Remedy.DATASET_PATH)
    arrays = _choose_arrays(file)
    for array in arrays.values():
        _check(array, file)
    parts = {part: _read_images(array, file, config, progress) for part, array in arrays.items()}
    if max(images_u8.max().item() for images_u8 in parts.values()) == 1:
        raise UserError(f"the largest value in {file} is 1; expected values from 0 to 255. Save 255 * images.")
    if len(parts) == 1:
        return _split(parts["training"], config.dataset.validation_fraction, file)
    if "validation" not in parts:
        parts["validation"] = parts.pop("test")
    return Data(**parts)


def _split(images_u8: Tensor, validation_fraction: float, file: Path) -> Data:
    """Split by a random choice of positions, the same for the same number of images."""
    count = len(images_u8)
    if count < 2:
        raise UserError(f"{file} holds one image; expected at least two. {ADVICE}", Remedy.DATASET_PATH)
    validation = min(max(round(validation_fraction * count), 1), count - 1)
    order = torch.randperm(count, generator=seeded(0, "validation images"))
    chosen, remaining = (indices.sort().values for indices in (order[:validation], order[validation:]))
    return Data(select(images_u8, remaining), select(images_u8, chosen))


# ----------------------------------------------------------------------------------------------- choosing and checking


def _choose_arrays(file: Path) -> dict[str, _Array]:
    """Return the array of each part, always one for training."""
    with _readable(file):
        arrays = _read_headers(file)
    named = {part: next((arrays[name] for name in names if name in arrays), None) for part, names in NAMES.items()}
    if named["training"]:
        return {part: array for part, array in named.items() if array}
    images = [array for array in arrays.values() if len(array.shape) in (3, 4)]  # labels have fewer axes
    if len(images) == 1:
        return {"training": images[0]}
    found = ", ".join([*list(arrays)[:MAX_NAMED], *(["..."] if len(arrays) > MAX_NAMED else [])])
    raise UserError(
        f"{file} holds {len(images)} arrays of images ({found or 'no arrays'}); expected one, or several with the "
        "names train_images, val_images and test_images. Save the file with these names."
    )


def _check(array: _Array, file: Path) -> None:
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
    if not is_gray and array.is_channels_first == array.is_channels_last:
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
    if math.prod(shape) != array.num_bytes:
        raise UserError(
            f"{array} in {file} is damaged: got {array.num_bytes:,} bytes, expected {math.prod(shape):,} for the shape "
            f"{shape}. Copy the file again."
        )


# ------------------------------------------------------------------------------------------------------------- reading


def _read_images(array: _Array, file: Path, config: ModelConfig, progress: bool) -> Tensor:
    """Read the images of an array as uint8 (N, C, S, S)."""
    count, size = array.shape[0], config.input_dimension
    images_u8 = new_images(count, config.image_channels, size, size)
    start = 0
    with tqdm(total=count, desc=f"reading {file}", leave=False, disable=not progress, delay=1) as bar:
        for chunk in releasing(_read_chunks(array, file)):
            chunk = torch.from_numpy(chunk)
            if chunk.ndim == 3:
                chunk = chunk[:, None]
            elif array.is_channels_last:
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


def _read_chunks(array: _Array, file: Path) -> Iterator[np.ndarray]:
    """Yield consecutive parts of an array, in memory that the caller may change."""
    count, image_bytes = array.shape[0], math.prod(array.shape[1:])
    step = max(1, min(CHUNK, CHUNK_BYTES // image_bytes))
    with _readable(file), _open(file, array.name) as stream:
        read_header(stream)
        for start in range(0, count, step):
            length = min(step, count - start)
            content = bytearray(stream.read(length * image_bytes))
            yield np.frombuffer(content, np.uint8).reshape(length, *array.shape[1:])
        stream.read(1)  # at the end of a member, zipfile compares the checksum


def _read_headers(file: Path) -> dict[str, _Array]:
    if not _is_zip(file):
        with _open(file, "") as stream:
            header = read_header(stream)
            return {"": _Array("", *header, file.stat().st_size - stream.tell())}
    arrays = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            if member.filename.endswith(".npy"):
                name = member.filename.removesuffix(".npy")
                with archive.open(member) as stream:
                    header = read_header(stream)
                    arrays[name] = _Array(name, *header, member.file_size - stream.tell())
    return arrays


def read_header(stream: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Return shape, whether the order is Fortran's, and type; the stream is then at the first value."""
    version = np.lib.format.read_magic(stream)
    if version == (1, 0):
        return np.lib.format.read_array_header_1_0(stream)
    return np.lib.format.read_array_header_2_0(stream)


@contextmanager
def _open(file: Path, name: str) -> Iterator[BinaryIO]:
    """Open an array of an .npz file, or with an empty name an .npy file."""
    if not name:
        with open(file, "rb") as stream:
            yield stream
        return
    with zipfile.ZipFile(file) as archive, archive.open(f"{name}.npy") as stream:
        yield stream


def _is_zip(file: Path) -> bool:
    with open(file, "rb") as stream:
        return stream.read(2) == b"PK"


@contextmanager
def _readable(file: Path) -> Iterator[None]:
    """Turn the errors of reading a file into a UserError."""
    try:
        yield
    except (UserError, MemoryError):
        raise
    except Exception as error:  # zipfile and NumPy raise almost any exception for a damaged file
        raise UserError(
            f"{file} cannot be read ({str(error) or type(error).__name__}): not a sound .npz or .npy file. {ADVICE}",
            Remedy.DATASET_PATH,
        ) from error
