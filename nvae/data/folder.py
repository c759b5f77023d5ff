"""folder: all image files below a folder, resized and cropped to the model's size."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from nvae.data.image_files import open_image, without_size_warnings
from nvae.data.images import Data, fit
from nvae.data.paths import dataset_folder
from nvae.errors import UserError
from nvae.files import WriteError, atomic_write
from nvae.schema import ModelConfig

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
MEMORY_LIMIT = 4 * 2**30  # bytes of resized images; a larger set is kept in a memory-mapped file for later runs
MAX_NAMED = 5


def load_folder(config: ModelConfig, progress: bool = False) -> Data:
    """Load all images in `dataset.path` and its subfolders. Symbolic links are followed.

    An image's name alone decides between training and validation, so adding an image moves no other image to the other
    part (except in tiny sets, where each part needs at least one). Files that cannot be read are left out and named
    in the warnings. Raises UserError.
    """
    folder = dataset_folder(config.dataset)
    if not folder.exists():
        raise UserError(
            f"the image folder '{folder}' does not exist. Set dataset.path to the folder of your images, or set "
            "dataset.name to toy_faces to train on built-in images."
        )
    files = sorted(_image_files(folder), key=lambda file: _rank(folder, file), reverse=True)
    if len(files) < 2:
        raise UserError(
            f"the image folder '{folder}' holds {len(files)} images, subfolders included; expected at least two "
            f"({', '.join(suffix[1:] for suffix in SUFFIXES)}). Set dataset.path to the folder of your images."
        )
    images_u8, unreadable = _read_or_map(folder, files, config, progress)
    if len(images_u8) < 2:
        raise UserError(
            f"only {len(images_u8)} of {len(files)} images in the folder '{folder}' can be read; expected at least "
            f"two. The first one that cannot be read is {next(iter(unreadable))}."
        )
    threshold = config.dataset.validation_fraction
    below = sum(_rank(folder, file) < threshold for file in files if str(file) not in unreadable)
    training = len(images_u8) - min(max(below, 1), len(images_u8) - 1)
    return Data(images_u8[:training], images_u8[training:], warnings=_warnings(len(files), unreadable))


def _image_files(folder: Path) -> Iterator[Path]:
    """Yield the files with one of SUFFIXES. Hidden files and folders are left out."""
    seen: set[str] = set()  # links may form a circle
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.lower().endswith(SUFFIXES):
                yield Path(parent, name)


def _rank(folder: Path, file: Path) -> float:
    """Map the file's path inside the folder to a number in [0, 1)."""
    name = file.relative_to(folder).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48


def _read_or_map(
    folder: Path, files: list[Path], config: ModelConfig, progress: bool
) -> tuple[torch.Tensor, dict[str, str]]:
    """Return the readable images, uint8 (N, C, S, S), and for every other file the reason why it cannot be read."""
    size, channels, max_pixels = config.input_dimension, config.image_channels, config.dataset.max_image_pixels
    shape = (len(files), channels, size, size)
    num_bytes = math.prod(shape)
    if num_bytes <= MEMORY_LIMIT:
        images_u8 = np.empty(shape, np.uint8)
        unreadable = _read(files, images_u8, folder, max_pixels, progress)
        return torch.from_numpy(images_u8)[: len(files) - len(unreadable)], unreadable
    prefix = f".pixels_{size}x{size}x{channels}_"
    stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files if file.exists()]
    key = prefix + hashlib.blake2b(repr(stats).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    mapped, unreadable_file = folder / f"{key}.npy", folder / f"{key}.json"
    if not mapped.exists():
        try:
            with atomic_write(mapped) as temporary:
                for outdated in folder.glob(f"{prefix}*"):
                    outdated.unlink()
                _reserve(temporary, num_bytes)
                mapping = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                unreadable = _read(files, mapping, folder, max_pixels, progress)
                unreadable_file.write_text(json.dumps(unreadable))
        except WriteError as error:
            raise UserError(
                f"{error} The file holds the resized images of '{folder}', {num_bytes / 2**30:.1f} GiB; a smaller "
                "input_dimension needs less space."
            ) from error
    unreadable = json.loads(unreadable_file.read_text())
    images_u8 = np.lib.format.open_memmap(mapped, "c")
    return torch.from_numpy(images_u8)[: len(files) - len(unreadable)], unreadable


def _reserve(file: Path, num_bytes: int) -> None:
    """Raise OSError if the disk has too little space: a memory-mapped write to a full disk would kill the process."""
    if shutil.disk_usage(file.parent).free < num_bytes + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(files: list[Path], images_u8: np.ndarray, folder: Path, max_pixels: int, progress: bool) -> dict[str, str]:
    """Fill `images_u8` from the front with the readable files; return why each of the others cannot be read."""
    _, channels, size, _ = images_u8.shape

    def read(file: Path) -> np.ndarray | str:
        try:
            with open_image(file, max_pixels) as image:
                return fit(image, size, channels)
        except Exception as error:  # Pillow's decoders raise almost any exception for a broken file
            return str(error) or type(error).__name__

    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, without_size_warnings():
        bar = tqdm(files, f"reading {folder}", unit=" images", leave=False, disable=not progress, delay=1)
        for i, (file, result) in enumerate(zip(bar, pool.map(read, files), strict=True)):
            if isinstance(result, str):
                unreadable[str(file)] = result
            else:
                images_u8[i - len(unreadable)] = result
    return unreadable


def _warnings(num_files: int, unreadable: dict[str, str]) -> tuple[str, ...]:
    if not unreadable:
        return ()
    named = "; ".join(f"{file} ({reason})" for file, reason in list(unreadable.items())[:MAX_NAMED])
    more = f"; and {len(unreadable) - MAX_NAMED} more" if len(unreadable) > MAX_NAMED else ""
    return (f"{len(unreadable)} of {num_files} images cannot be read and are left out: {named}{more}",)
