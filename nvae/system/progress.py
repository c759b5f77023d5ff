"""Show the progress of long functions, and split their work into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

# True: progress bars of tqdm.auto, which also work in notebooks. A function: gets the items of a loop and a
# description, and returns the items again; `tqdm.auto.tqdm` is such a function.
Progress = bool | Callable[[Sequence[Any], str], Iterable[Any]]


def track(items: Sequence[Any], description: str, progress: Progress) -> Iterable[Any]:
    """Return the items of a loop, with a progress bar if wanted."""
    if not progress:
        return items
    if progress is True:
        from tqdm.auto import tqdm

        return tqdm(items, description, leave=False)
    return progress(items, description)


def batches(count: int, batch_size: int, description: str = "", progress: Progress = False) -> Iterable[slice]:
    """Return slices of at most `batch_size` that cover 0, ..., count - 1 in order."""
    starts = range(0, count, batch_size)
    return track([slice(start, min(start + batch_size, count)) for start in starts], description, progress)
