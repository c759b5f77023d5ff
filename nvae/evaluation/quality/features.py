"""Features of many images, computed part by part: finished parts are kept on the disk, so that a new call continues."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvae.data.cache import cache_folder
from nvae.system.files import DAY, remove_unfinished
from nvae.system.progress import Progress, track
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
) -> Described:
    """Return the values of functions on images 0, ..., count - 1: features, or thumbnails.

    make: returns the images (B, C, S, S) in [0, 1] of a slice, always the same ones for one `key`. functions: from
    images to (B, ...) on the CPU. key: plain values that identify the images; the functions add their names, and names
    of extractors must contain their digests. step: images made at once. Memory: the values, and `step` images.
    keep: Parts of 500 images are files in the cache folder; a part that cannot be written is kept in memory only.
    """
    folder = set_folder(key, functions)
    finished = _finished(folder, count, list(functions)) if keep else {}
    slices = [
        slice(start, min(start + step, end))
        for first, end in _parts(count)
        if first not in finished
        for start in range(first, end, step)
    ]
    done: list[dict[str, Tensor]] = []  # of the unfinished part
    seconds = 0.0
    for images_of_step in track(slices, description, progress) if slices else ():
        before = time.perf_counter()
        images = make(images_of_step)
        seconds += time.perf_counter() - before
        done.append({name: function(images) for name, function in functions.items()})
        first, end = images_of_step.start // PART * PART, images_of_step.stop
        if end == min(first + PART, count):
            values = {name: torch.cat([part[name] for part in done]) for name in functions}
            finished[first] = {"values": values, "seconds": seconds}
            done, seconds = [], 0.0
            if keep:
                with suppress(CheckpointError):
                    write_whole(finished[first], _part_path(folder, first, end), keep_previous=False)
    if keep:
        _remove_old(folder)
    seconds = sum(part["seconds"] for part in finished.values())
    return Described(_joined(finished, count), seconds)


def _joined(parts: dict[int, dict[str, Any]], count: int) -> dict[str, Tensor]:
    """Join the parts, and remove each from the dictionary, so that the memory is that of the values once."""
    result: dict[str, Tensor] = {}
    for first, end in _parts(count):
        for name, values in parts.pop(first)["values"].items():
            if name not in result:
                result[name] = values.new_empty((count, *values.shape[1:]))
            result[name][first:end] = values
    return result


def set_folder(key: Mapping[str, Any], functions: Mapping[str, Any]) -> Path:
    """Return the folder of a set of images and functions."""
    digest = content_digest({"version": VERSION, "key": repr(sorted(key.items())), "functions": sorted(functions)})
    return cache_folder() / "features" / digest


def _parts(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + PART, count)) for first in range(0, count, PART)]


def _part_path(folder: Path, first: int, end: int) -> Path:
    return folder / f"{first:07d}_{end - first}.features"


def _finished(folder: Path, count: int, names: list[str]) -> dict[int, dict[str, Any]]:
    """Return the parts on the disk, by their first image. Damaged files count as absent."""
    finished = {}
    for first, end in _parts(count):
        with suppress(CheckpointError, KeyError, TypeError, AttributeError):
            content = read_whole(_part_path(folder, first, end))
            values = content["values"]
            if values.keys() == set(names) and all(len(value) == end - first for value in values.values()):
                finished[first] = {"values": values, "seconds": float(content["seconds"])}
    return finished


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
