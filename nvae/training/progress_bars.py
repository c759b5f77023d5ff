"""What a person sees while a model trains: two bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from tqdm import tqdm

SECONDS_BETWEEN_NUMBERS = 0.5


class Progress:
    """One bar for the epochs, one for the batches of an epoch; where the output is no terminal, lines only."""

    def __init__(self, epochs: int, steps_per_epoch: int, epoch: int) -> None:
        plain = not sys.stderr.isatty()
        self._epochs = tqdm(total=epochs, initial=epoch, desc="epochs", unit="epoch", disable=plain, position=0)
        self._batches = tqdm(total=steps_per_epoch, unit="batch", disable=plain, leave=False, position=1)
        self._numbers_at = -SECONDS_BETWEEN_NUMBERS

    def batch(self, number: int, numbers: Callable[[], dict[str, str]]) -> None:
        """After batch `number` of the epoch. `numbers` is only called now and then: fetching them costs time."""
        now = time.monotonic()
        if not self._batches.disable and now - self._numbers_at >= SECONDS_BETWEEN_NUMBERS:
            self._batches.set_postfix(numbers(), refresh=False)
            self._numbers_at = now
        self._batches.update(number - self._batches.n)

    def epoch(self, number: int) -> None:
        """After epoch `number`."""
        self._epochs.update(number - self._epochs.n)
        self._batches.reset()

    def doing(self, what: str) -> None:
        """What takes time between two batches."""
        self._batches.set_description_str(what)

    def say(self, line: str) -> None:
        """A line that stays."""
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def close(self) -> None:
        self._batches.close()
        self._epochs.close()
