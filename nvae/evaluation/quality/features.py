"""Features of many images, computed part by part: finished parts are kept on the disk, so that a new call continues."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nvae.data.cache import cache_folder
from nvae.system.files import DAY, remove_unfinished
from nvae.system.progress import Progress, track
from nvae.system.ranks import Ranks
from nvae.system.torch_files import CheckpointError, content_digest, read_whole, write_whole

PART = 500  # images per file
STEP = 50  # images computed at once
KEPT = 60  # sets of images whose features stay on the disk, besides those of the last day
THUMBNAILS = "thumbnails"
VERSION = 1  # of how images and values are computed: values of other versions are computed again


class Described(NamedTuple):
    """What is kept of a set of images."""

    values: dict[str, Tensor]  # (N, ...) by the name of a function
    seconds: float  # for making the images, without the functions


def describe(
    count: int,
    make: Callable[[slice], Tensor],
    functions: Mapping[str, Callable[[Tensor], Tensor]],
    key: Mapping[str, Any],
    description: str,
    progress: Progress = False,
    keep: bool = True,
    step: int = STEP,
    ranks: Ranks | None = None,
) -> Described:
    """Return the values of functions on images 0, ..., count - 1: features, or thumbnails.

    make: returns the images (B, C, S, S) in [0, 1] of a slice, always the same ones for one `key`. functions: from
    images to (B, ...) on the CPU. key: plain values that identify the images; the functions add their names, and names
    of extractors must contain their digests. step: images made at once. Memory: the values, and `step` images.
    keep: Parts of 500 images are files in the cache folder; a part that cannot be written is kept in memory only.
    ranks: processes that share the parts, each with the same arguments; every rank gets all values.
    """
    folder, ranks = set_folder(key, functions), ranks or Ranks()
    parts = [(first, min(first + PART, count)) for first in range(0, count, PART)]
    parts = parts[ranks.share(0, len(parts))]
    values: dict[str, Tensor] = {}
    total = 0.0

    def place(first: int, computed: dict[str, Tensor]) -> None:
        for name, part in computed.items():
            if name not in values:
                values[name] = part.new_empty((count, *part.shape[1:]))
            values[name][first : first + len(part)] = part

    missing = []
    for first, end in parts:
        finished = _finished(_part_path(folder, first, end), end - first, functions) if keep else None
        if finished is None:
            missing += [slice(start, min(start + step, end)) for start in range(first, end, step)]
        else:
            place(first, finished.values)
            total += finished.seconds
    seconds = 0.0  # of the unfinished part
    for images_of_step in track(missing, description, progress) if missing else ():
        before = time.perf_counter()
        images = make(images_of_step)
        seconds += time.perf_counter() - before
        place(images_of_step.start, {name: function(images) for name, function in functions.items()})
        first, end = images_of_step.start // PART * PART, images_of_step.stop
        if end == min(first + PART, count):
            if keep:
                part = {name: of_all[first:end].clone() for name, of_all in values.items()}
                with suppress(CheckpointError):
                    path = _part_path(folder, first, end)
                    write_whole({"values": part, "seconds": seconds}, path, keep_previous=False)
            total, seconds = total + seconds, 0.0
    if ranks.count > 1:
        start, end = (parts[0][0], parts[-1][1]) if parts else (0, 0)
        own = (start, {name: of_all[start:end].clone() for name, of_all in values.items()}, total)
        total = 0.0
        for first, of_rank, seconds_of_rank in ranks.gather(own):
            place(first, of_rank)
            total += seconds_of_rank
    if keep:
        _remove_old(folder)
    return Described(values, total)


def set_folder(key: Mapping[str, Any], functions: Mapping[str, Any]) -> Path:
    """Return the folder of a set of images and functions."""
    digest = content_digest({"version": VERSION, "key": repr(sorted(key.items())), "functions": sorted(functions)})
    return cache_folder() / "features" / digest


def _part_path(folder: Path, first: int, end: int) -> Path:
    return folder / f"{first:07d}_{end - first}.features"


def _finished(path: Path, count: int, names: Iterable[str]) -> Described | None:
    """Return a part of `count` images from the disk; None for a damaged or missing file."""
    with suppress(CheckpointError):
        content = read_whole(path)
        if content["values"].keys() == set(names) and all(len(value) == count for value in content["values"].values()):
            return Described(content["values"], content["seconds"])
    return None


def _remove_old(used: Path) -> None:
    """Remove what killed processes left, and old sets: neither used in the last day, nor among the sets used last.

    used: the folder of a set that is in use now.
    """
    remove_unfinished(used.glob("*"))
    with suppress(OSError):
        os.utime(used)
        sets = sorted(used.parent.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in (folder for folder in sets[KEPT:] if folder.stat().st_mtime < time.time() - DAY):
            for file in old.glob("*"):
                file.unlink()
            old.rmdir()
