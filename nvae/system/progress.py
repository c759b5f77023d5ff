"""Show the progress of long functions, and split their work into batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

SECONDS_BETWEEN_NUMBERS = 0.5

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


class ProgressBars:
    """The bars of a training: one for the epochs, one for the steps of an epoch. Shows nothing if not enabled."""

    def __init__(self, epochs: int, steps_per_epoch: int, epoch: int, enabled: bool) -> None:
        from tqdm.auto import tqdm

        off = not enabled
        self._epochs = tqdm(total=epochs, initial=epoch, desc="epochs", unit="epoch", position=0, disable=off)
        self._steps = tqdm(total=steps_per_epoch, unit="step", leave=False, position=1, disable=off)
        self._numbers_at = -SECONDS_BETWEEN_NUMBERS

    def step(self, number: int, numbers: Callable[[], dict[str, str]]) -> None:
        """Show step `number` of the epoch. `numbers` is called only every half second, because it takes time."""
        if self._steps.disable:
            return
        now = time.monotonic()
        if now - self._numbers_at >= SECONDS_BETWEEN_NUMBERS:
            self._steps.set_postfix(numbers(), refresh=False)
            self._numbers_at = now
        self._steps.update(number - self._steps.n)

    def epoch(self, number: int) -> None:
        """Show that `number` epochs are complete."""
        self._epochs.update(number - self._epochs.n)
        self._steps.reset()

    def activity(self, name: str) -> None:
        """Show a text about the work between two steps."""
        self._steps.set_description_str(name)

    def close(self) -> None:
        """Remove the bar of the steps, and leave the bar of the epochs."""
        self._steps.close()
        self._epochs.close()
