"""Progress bars, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence, Sized
from typing import TypeVar

Batch = TypeVar("Batch", bound=Sized)
Item = TypeVar("Item")


def progress_bar(items: Sequence[Item], description: str) -> Iterable[Item]:
    """Yield the items of a loop and show a bar: the `progress` that the commands give to the library."""
    from tqdm.auto import tqdm

    return tqdm(items, description, leave=False, delay=1, disable=None)  # None: not in a file or pipe


def with_progress(batches: Iterable[Batch], total: int, description: str) -> Iterator[Batch]:
    """Yield batches, and count their items on a bar of `total` items."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, leave=False, delay=1, disable=None) as bar:
        for batch in batches:
            yield batch
            bar.update(len(batch))
