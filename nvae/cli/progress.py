"""Progress bars, shown on a terminal only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

Batch = TypeVar("Batch", bound=Sized)


def with_progress(batches: Iterable[Batch], total: int, description: str) -> Iterator[Batch]:
    """Yield the batches, and count their items on a bar of `total` items."""
    from tqdm.auto import tqdm

    with tqdm(total=total, desc=description, leave=False, delay=1, disable=None) as bar:  # None: not in a file or pipe
        for batch in batches:
            yield batch
            bar.update(len(batch))
