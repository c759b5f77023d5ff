"""Features of many images, computed part by part: finished parts are kept on the disk, so that a new call continues."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvae.data.cache import cache_folder
from nvae.progress import Progress, track
from nvae.torch_files import CheckpointError, content_digest, read_whole, write_whole

PART = 500  # images per file
STEP = 50  # images computed at once
KEPT = 60  # sets of images whose features stay on the disk
THUMBNAILS = "thumbnails"


class Described(NamedTuple):
    """What is kept of a set of images."""

    values: dict[str, Tensor]  # (N, ...) by the name of a function
    seconds: float  # for making the images, without the functions
    start: int  # images whose values were on the disk


def describe(
    count: int,
    make: Callable[[slice], Tensor],
    functions: Mapping[str, Callable[[Tensor], Tensor]],
    key: Mapping[str, Any],
    description: str,
    progress: Progress = False,
    keep: bool = True,
) -> Described:
    """Return the values of functions on images 0, ..., count - 1: features, or thumbnails.

    make: returns the images (B, C, S, S) in [0, 1] of a slice, always the same ones for one `key`. functions: from
    images to (B, ...) on the CPU. key: plain values that identify the images; the functions add their names, and names
    of extractors must contain their digests. Memory: the values, and 50 images.
    keep: Parts of 500 images are files in the cache folder; a part that cannot be written is kept in memory only.
    """
    folder = set_folder(key, functions)
    found = _finished(folder, count, list(functions)) if keep else {}
    steps = [
        slice(start, min(start + STEP, end))
        for first, end in _parts(count)
        if first not in found
        for start in range(first, end, STEP)
    ]
    parts: dict[int, list[dict[str, Tensor]]] = {}
    durations: dict[int, float] = {}
    for step in track(steps, description, progress) if steps else ():
        first = step.start // PART * PART
        before = time.perf_counter()
        images = make(step)
        durations[first] = durations.get(first, 0.0) + time.perf_counter() - before
        parts.setdefault(first, []).append({name: function(images) for name, function in functions.items()})
        if step.stop == min(first + PART, count):
            done = parts.pop(first)
            values = {name: torch.cat([part[name] for part in done]) for name in functions}
            found[first] = {"values": values, "seconds": durations[first]}
            if keep:
                with suppress(CheckpointError):
                    write_whole(found[first], _part_path(folder, first, step.stop), keep_previous=False)
    computed = sum(part.stop - part.start for part in steps)
    _remove_old(folder.parent)
    ordered = [found[first] for first, _ in _parts(count)]
    return Described(
        {name: torch.cat([part["values"][name] for part in ordered]) for name in functions},
        sum(part["seconds"] for part in ordered),
        count - computed,
    )


def set_folder(key: Mapping[str, Any], functions: Mapping[str, Any]) -> Path:
    """Return the folder of a set of images and functions."""
    digest = content_digest({"key": repr(sorted(key.items())), "functions": sorted(functions)})
    return cache_folder() / "features" / digest


def _parts(count: int) -> list[tuple[int, int]]:
    return [(first, min(first + PART, count)) for first in range(0, count, PART)]


def _part_path(folder: Path, first: int, end: int) -> Path:
    return folder / f"{first:07d}_{end - first}.features"


def _finished(folder: Path, count: int, names: list[str]) -> dict[int, dict[str, Any]]:
    """Return the parts on the disk, by their first image. Damaged files count as absent."""
    found = {}
    for first, end in _parts(count):
        with suppress(CheckpointError, KeyError, TypeError, AttributeError):
            content = read_whole(_part_path(folder, first, end))
            values = content["values"]
            if list(values) == names and all(len(value) == end - first for value in values.values()):
                found[first] = {"values": values, "seconds": float(content["seconds"])}
    return found


def _remove_old(folder: Path) -> None:
    """Remove the files of all sets but the newest ones."""
    with suppress(OSError):
        sets = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime, reverse=True)
        for old in sets[KEPT:]:
            for file in old.glob("*"):
                file.unlink()
            old.rmdir()
