"""folder: any pictures under a folder, resized and cropped to the model's size."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nvae.data.image_files import open_picture, without_size_warnings
from nvae.data.images import HOW_TO_SAY, Data, fit
from nvae.errors import UserError
from nvae.schema import ModelConfig

# What people keep pictures in. Pillow opens more (PDF, MPEG...), which is no picture for a data set.
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
MEMORY_LIMIT = 4 * 2**30  # bytes of pixels; a larger set is kept in a file, mapped, and found again by the next run
NAMED_AT_MOST = 5


def load_folder(config: ModelConfig) -> Data:
    """All pictures under `dataset.path` and its subfolders, links followed.

    Which of them are for validation depends on their names alone, so a picture added later moves no other one from
    one part to the other (except in sets so small that one had to be chosen for either part). Files that cannot be
    read are left out, and named. Raises UserError.
    """
    folder = Path(config.dataset.path).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"the image folder '{folder}' does not exist; put pictures into it, or say where they are {HOW_TO_SAY}, or "
            "train on built-in pictures with --set dataset.name=toy_faces."
        )
    files = sorted(_picture_files(folder), key=lambda file: _rank(folder, file), reverse=True)
    if len(files) < 2:
        raise UserError(
            f"the image folder '{folder}' holds {len(files)} pictures, subfolders included; put at least two into it "
            f"({', '.join(ending[1:] for ending in ENDINGS)}), or say where they are {HOW_TO_SAY}."
        )
    pixels, unreadable = _read_or_map(
        folder, files, config.input_dimension, config.image_channels, config.dataset.max_image_pixels
    )
    if len(pixels) < 2:
        raise UserError(
            f"of {len(files)} pictures in the image folder '{folder}' only {len(pixels)} can be read (the first that "
            f"cannot is {next(iter(unreadable))}); put at least two into it."
        )
    threshold = config.dataset.validation_fraction
    below = sum(_rank(folder, file) < threshold for file in files if str(file) not in unreadable)
    training = len(pixels) - min(max(below, 1), len(pixels) - 1)
    return Data(pixels[:training], pixels[training:], _notices(len(files), unreadable))


def _picture_files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()  # links may lead in a circle
    for parent, subfolders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if not name.startswith(".") and name.lower().endswith(ENDINGS):
                yield Path(parent, name)


def _rank(folder: Path, file: Path) -> float:
    """A number in [0, 1) that the file's name inside the folder determines."""
    name = file.relative_to(folder).as_posix().encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48


def _read_or_map(
    folder: Path, files: list[Path], size: int, channels: int, max_pixels: int
) -> tuple[torch.Tensor, dict[str, str]]:
    """Pixels of the readable files, uint8 (N, C, S, S), and why each of the others is not."""
    shape = (len(files), channels, size, size)
    size_in_bytes = math.prod(shape)
    if size_in_bytes <= MEMORY_LIMIT:
        pixels = np.empty(shape, np.uint8)
        unreadable = _read(files, pixels, folder, max_pixels)
        return torch.from_numpy(pixels)[: len(files) - len(unreadable)], unreadable
    kind = f".pixels_{size}x{size}x{channels}_"
    stats = [(str(file), (stat := file.stat()).st_size, stat.st_mtime_ns) for file in files if file.exists()]
    key = kind + hashlib.blake2b(repr(stats).encode(errors="surrogateescape"), digest_size=8).hexdigest()
    mapped, notes = folder / f"{key}.npy", folder / f"{key}.json"
    if not mapped.exists():
        unfinished = folder / f"{key}.unfinished"
        try:
            for outdated in folder.glob(f"{kind}*"):
                outdated.unlink()
            _reserve(unfinished, size_in_bytes)
            mapping = np.lib.format.open_memmap(unfinished, "w+", np.uint8, shape)
            unreadable = _read(files, mapping, folder, max_pixels)
            notes.write_text(json.dumps(unreadable))
            unfinished.replace(mapped)
        except OSError as error:
            with suppress(OSError):
                unfinished.unlink()
            problem = "no space is left for" if error.errno == errno.ENOSPC else "the folder takes no file for"
            raise UserError(
                f"{problem} the {size_in_bytes / 2**30:.1f} GiB of resized pixels of '{folder}' ({error}); "
                "make room there, or choose a smaller input_dimension."
            ) from error
    unreadable = json.loads(notes.read_text())
    pixels = np.lib.format.open_memmap(mapped, "c")
    return torch.from_numpy(pixels)[: len(files) - len(unreadable)], unreadable


def _reserve(file: Path, size: int) -> None:
    """Raise OSError now where the disk has no room: writing to a mapped file that finds none kills the process."""
    if shutil.disk_usage(file.parent).free < size + 2**20:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(files: list[Path], pixels: np.ndarray, folder: Path, max_pixels: int) -> dict[str, str]:
    """Fills `pixels` from the front with the files that can be read; returns why the others cannot."""
    _, channels, size, _ = pixels.shape

    def read(file: Path) -> np.ndarray | str:
        try:
            with open_picture(file, max_pixels) as image:
                return fit(image, size, channels)
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            return str(error) or type(error).__name__

    unreadable: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool, without_size_warnings():
        bar = tqdm(files, f"reading {folder}", unit=" pictures", leave=False, disable=None, delay=1)
        for i, (file, result) in enumerate(zip(bar, pool.map(read, files), strict=True)):
            if isinstance(result, str):
                unreadable[str(file)] = result
            else:
                pixels[i - len(unreadable)] = result
    return unreadable


def _notices(files: int, unreadable: dict[str, str]) -> tuple[str, ...]:
    if not unreadable:
        return ()
    named = "; ".join(f"{file} ({why})" for file, why in list(unreadable.items())[:NAMED_AT_MOST])
    more = f"; and {len(unreadable) - NAMED_AT_MOST} more" if len(unreadable) > NAMED_AT_MOST else ""
    return (f"{len(unreadable)} of {files} pictures cannot be read and are left out: {named}{more}",)
