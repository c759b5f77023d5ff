"""Arrays in memory-mapped files, read without filling the memory: pages that were used are given back.

The system reads a page of a mapped file when the page is used, and counts the page as memory of the process until the
system needs the memory. A page that is given back stays in the system's cache of files, which all processes share.
"""

from __future__ import annotations

import mmap
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar, cast
from weakref import WeakSet

import numpy as np
from torch import Tensor

_Item = TypeVar("_Item")

_maps: WeakSet[mmap.mmap] = WeakSet()
_lock = threading.Lock()  # a set cannot be changed and read at once


def with_release(array: np.memmap) -> np.memmap:
    """Make `release_pages` give back the pages of an array, and return the array.

    An array of the mode "c" then loses what was changed in memory: it has the values of the file again.
    """
    with _lock:
        _maps.add(cast(mmap.mmap, array.base))
    return array


def release_pages() -> None:
    """Give the pages of all arrays from `with_release` back to the system; they can be used as before.

    Does nothing on Windows, which limits the memory of mapped files itself.
    """
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    with _lock:
        maps = list(_maps)
    for each in maps:
        each.madvise(mmap.MADV_DONTNEED)


def releasing(items: Iterable[_Item], every: int = 1) -> Iterator[_Item]:
    """Yield the items of a loop, and call `release_pages` after `every` items."""
    for number, item in enumerate(items, 1):
        yield item
        if number % every == 0:
            release_pages()


def chunks(images: Tensor, size: int) -> Iterator[Tensor]:
    """Yield consecutive parts of `size` images, the last one smaller. Use each part before the next one is asked for.

    Images in memory-mapped files need the memory of one part only.
    """
    return releasing(images.split(size))
