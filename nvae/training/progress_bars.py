"""Progress bars of training, also in notebooks: one for the epochs, one for the steps of an epoch."""

from __future__ import annotations

import time
from collections.abc import Callable

from tqdm.auto import tqdm

SECONDS_BETWEEN_NUMBERS = 0.5


class ProgressBars:
    """Two bars, or nothing if not enabled. If the terminal is closed, the bars end and training continues."""

    def __init__(self, epochs: int, steps_per_epoch: int, epoch: int, enabled: bool) -> None:
        self._enabled = enabled
        self._numbers_at = -SECONDS_BETWEEN_NUMBERS
        self._try(lambda: self._open(epochs, steps_per_epoch, epoch))

    def _open(self, epochs: int, steps_per_epoch: int, epoch: int) -> None:
        self._epochs = tqdm(total=epochs, initial=epoch, desc="epochs", unit="epoch", position=0)
        self._steps = tqdm(total=steps_per_epoch, unit="step", leave=False, position=1)

    def step(self, number: int, numbers: Callable[[], dict[str, str]]) -> None:
        """Show step `number` of the epoch. `numbers` is called only every half second, because it takes time."""

        def show() -> None:
            now = time.monotonic()
            if now - self._numbers_at >= SECONDS_BETWEEN_NUMBERS:
                self._steps.set_postfix(numbers(), refresh=False)
                self._numbers_at = now
            self._steps.update(number - self._steps.n)

        self._try(show)

    def epoch(self, number: int) -> None:
        """Show that `number` epochs are complete."""

        def show() -> None:
            self._epochs.update(number - self._epochs.n)
            self._steps.reset()

        self._try(show)

    def activity(self, name: str) -> None:
        """Show a text about the work between two steps."""
        self._try(lambda: self._steps.set_description_str(name))

    def close(self) -> None:
        """Remove the bar of the steps, and leave the bar of the epochs."""

        def close() -> None:
            self._steps.close()
            self._epochs.close()

        self._try(close)
        self._enabled = False

    def _try(self, action: Callable[[], object]) -> None:
        if not self._enabled:
            return
        try:
            action()
        except Exception:  # a closed output raises various exceptions
            self._enabled = False
