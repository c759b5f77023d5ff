"""Keep the decoded images of a data set in a file for later runs, in a folder of the program."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nvae.errors import UserError
from nvae.files import UNFINISHED, WriteError, atomic_write

SPARE_BYTES = 2**20
ABANDONED = 24 * 3600  # seconds after which an unfinished file is from a program that was killed


def cache_folder() -> Path:
    """Return the folder for files that can be made again. The folder may be missing.

    The folder is $NVAE_CACHE, or else $XDG_CACHE_HOME/nvae, or else ~/.cache/nvae; on Windows %LOCALAPPDATA%\\nvae.
    """
    if chosen := os.environ.get("NVAE_CACHE"):
        return Path(os.path.expanduser(chosen))
    system = os.environ.get("LOCALAPPDATA" if sys.platform == "win32" else "XDG_CACHE_HOME")
    return Path(system or os.path.expanduser("~/.cache"), "nvae")


class CachedImages(NamedTuple):
    """A file of images, <folder>/<group>_<key>.npy, and a .json file of facts beside the images.

    Files of one group replace each other: the same source, decoded with the same keys.
    """

    group: str
    key: str

    @property
    def path(self) -> Path:
        return cache_folder() / f"{self.group}_{self.key}.npy"

    def read(self, shape: tuple[int, ...]) -> tuple[np.ndarray, Any] | None:
        """Return the images, a memory-mapped array that can be changed in memory, and the facts.

        Returns None where there are no such files, and for damaged ones.
        """
        try:
            facts = json.loads(self.path.with_suffix(".json").read_bytes())
            images_u8 = np.lib.format.open_memmap(self.path, "c")
        except (OSError, ValueError, RecursionError):
            return None
        return (images_u8, facts) if images_u8.shape == shape and images_u8.dtype == np.uint8 else None

    @contextmanager
    def write(self, shape: tuple[int, ...], facts: dict[str, Any]) -> Iterator[np.ndarray]:
        """Yield a memory-mapped uint8 array to fill, while `facts` is filled too; keep both on success.

        Without facts, no later `read` returns the images.

        Removes the outdated files of the group. Raises UserError for a full disk or a folder without write access.
        """
        num_bytes = math.prod(shape)
        try:
            with atomic_write(self.path) as temporary:
                _reserve(temporary, num_bytes)
                images_u8 = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
                yield images_u8
                images_u8.flush()
                if facts:
                    with atomic_write(self.path.with_suffix(".json")) as file:
                        file.write_text(json.dumps(facts), encoding="ascii")
        except WriteError as error:
            raise UserError(
                f"{error} The file holds decoded images, {num_bytes / 2**30:.1f} GiB. Set the environment variable "
                "NVAE_CACHE to a folder with enough space, or use a smaller input_dimension."
            ) from error
        self._remove_outdated()

    def _remove_outdated(self) -> None:
        for file in self.path.parent.glob(f"{self.group}_*"):
            with suppress(OSError):  # removed by another program, or in use on Windows
                in_use = file.suffix == UNFINISHED and time.time() - file.stat().st_mtime < ABANDONED
                if not in_use and not file.name.startswith(self.path.stem):
                    file.unlink()


def _reserve(file: Path, num_bytes: int) -> None:
    """Raise OSError if the disk has too little space: a memory-mapped write to a full disk would kill the process."""
    if shutil.disk_usage(file.parent).free < num_bytes + SPARE_BYTES:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
