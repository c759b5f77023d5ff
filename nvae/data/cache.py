"""Images in files of a folder of the program: decoded ones for later runs, and arrays larger than the memory limit."""

from __future__ import annotations

import errno
import math
import os
import shutil
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.system.devices import available_bytes
from nvae.system.errors import Remedy, UserError
from nvae.system.files import UNFINISHED, WriteError, atomic_write, expand_home, remove_unfinished
from nvae.system.memory_maps import with_release

MEMORY_LIMIT = 4 * 2**30  # bytes of an array of images; a larger array is kept in a memory-mapped file
MEMORY_SHARE = 0.25  # of the machine's memory: the limit of a small machine
SPARE_BYTES = 2**20


def cache_folder() -> Path:
    """Return the folder for files that can be made again. The folder may be missing.

    The folder is $NVAE_CACHE, or else $XDG_CACHE_HOME/nvae, or else ~/.cache/nvae; on Windows %LOCALAPPDATA%\\nvae.
    """
    if chosen := os.environ.get("NVAE_CACHE"):
        return expand_home(chosen)
    system = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return expand_home(system or "~/.cache", temporary=True) / "nvae"


def memory_limit() -> int:
    """Return the size in bytes above which an array of images is kept in a memory-mapped file.

    The limit is $NVAE_MEMORY_LIMIT, in GiB, or else 4 GiB, or a quarter of the memory of a small machine. Raises
    UserError for a variable that is not a positive number.
    """
    if not (chosen := os.environ.get("NVAE_MEMORY_LIMIT")):
        memory = available_bytes(torch.device("cpu"))
        return MEMORY_LIMIT if memory is None else min(MEMORY_LIMIT, int(MEMORY_SHARE * memory))
    with suppress(ValueError):
        if 0 < (limit := float(chosen) * 2**30) < math.inf:
            return int(limit)
    raise UserError(
        f"the environment variable NVAE_MEMORY_LIMIT is {chosen!r}, expected a positive number of GiB. Set "
        "NVAE_MEMORY_LIMIT to 4, for example, or unset the variable."
    )


def new_images(*shape: int) -> Tensor:
    """Return a uint8 tensor of this shape to fill, with any values.

    A tensor above `memory_limit` is a memory-mapped file without a name in the cache folder; the file vanishes with the
    tensor. Raises UserError for a full disk or a folder without write access.
    """
    if math.prod(shape) <= memory_limit():
        return torch.empty(shape, dtype=torch.uint8)
    folder = cache_folder()
    with _explained(math.prod(shape)):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                _reserve(file.fileno(), folder, math.prod(shape))
                array = np.memmap(file, np.uint8, "r+", shape=shape)
        except OSError as error:
            raise WriteError(folder, error) from error
    return torch.from_numpy(with_release(array))


class CachedImages(NamedTuple):
    """A file of images, <folder>/<group>_<key>.npy, and a file of facts beside it, .facts: a digest of both, a text.

    The facts are written last. Files of one group replace each other: the same source, decoded with the same keys.
    """

    group: str
    key: str

    @property
    def path(self) -> Path:
        return cache_folder() / f"{self.group}_{self.key}.npy"

    def read(self, shape: tuple[int, ...], progress: bool = False) -> tuple[np.ndarray, str] | None:
        """Return the images, a memory-mapped array, and the facts; None where there are no such files.

        Changes of the array do not reach the file; they last until the next `release_pages`. progress: show a bar while
        the digest of a large file is computed. Raises ValueError for damaged files.
        """
        try:
            digest, _, facts = self._facts_path.read_bytes().partition(b"\n")
            images_u8 = np.lib.format.open_memmap(self.path, "c")
            is_whole = digest == _digest(self.path, facts, progress)
        except OSError:
            return None
        if not is_whole or images_u8.shape != shape or images_u8.dtype != np.uint8:
            raise ValueError(f"{self.path} is damaged")
        return with_release(images_u8), facts.decode()

    def write(self, shape: tuple[int, ...], fill: Callable[[np.ndarray], str]) -> None:
        """Keep what `fill` writes into a memory-mapped uint8 array, and the facts that `fill` returns, a text.

        Removes the outdated files of the group. Two programs may write the same images at once. Raises UserError for a
        full disk or a folder without write access.
        """
        with _explained(math.prod(shape)):
            with atomic_write(self.path) as temporary:
                images_u8 = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                with open(temporary, "rb+") as opened:
                    _reserve(opened.fileno(), temporary.parent, temporary.stat().st_size)
                facts = fill(with_release(images_u8)).encode()
                images_u8.flush()
                del images_u8  # on Windows, a mapped file cannot be renamed
                digest = _digest(temporary, facts)
            with atomic_write(self._facts_path) as temporary:
                temporary.write_bytes(digest + b"\n" + facts)
        files = list(self.path.parent.glob(f"{self.group}_*"))
        remove_unfinished(files)
        for file in files:
            if file.suffix != UNFINISHED and file.stem != self.path.stem:
                with suppress(OSError):  # removed by another program, or in use on Windows
                    file.unlink()

    @property
    def _facts_path(self) -> Path:
        return self.path.with_suffix(".facts")


def _digest(path: Path, facts: bytes, progress: bool = False) -> bytes:
    """Return 8 hexadecimal digits, the CRC-32 of some facts and of a file: several GB per second from memory."""
    total, digest = path.stat().st_size, zlib.crc32(facts)
    with (
        open(path, "rb", buffering=0) as file,
        tqdm(desc=f"checking {path}", total=total, unit="B", unit_scale=True, disable=not progress, delay=1) as bar,
    ):
        while part := file.read(2**20):
            digest = zlib.crc32(part, digest)
            bar.update(len(part))
    return b"%08x" % digest


def _reserve(file: int, folder: Path, num_bytes: int) -> None:
    """Allocate the bytes of a file in a folder, and raise OSError if the disk has too little space.

    A memory-mapped write to a full disk would kill the process.
    """
    if shutil.disk_usage(folder).free < num_bytes + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if hasattr(os, "posix_fallocate"):  # elsewhere the file grows when it is mapped
        os.posix_fallocate(file, 0, num_bytes)


@contextmanager
def _explained(num_bytes: int) -> Iterator[None]:
    """Add to a WriteError what the file is for, and what to do."""
    try:
        yield
    except WriteError as error:
        raise UserError(
            f"{error} The file holds images, {num_bytes / 2**30:.1f} GiB. Set the environment variable NVAE_CACHE to a "
            "folder with enough space, or set a smaller input_dimension.",
            Remedy.IMAGE_SIZE,
        ) from error
