"""What a person sees while a model trains: two bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys

from tqdm import tqdm


class Progress:
    """One bar for the epochs, one for the batches of an epoch; where the output is no terminal, lines only."""

    def __init__(self, epochs: int, steps_per_epoch: int, epoch: int) -> None:
        plain = not sys.stderr.isatty()
        self._epochs = tqdm(total=epochs, initial=epoch, desc="epochs", unit="epoch", disable=plain, position=0)
        self._batches = tqdm(total=steps_per_epoch, unit="batch", disable=plain, leave=False, position=1)

    @property
    def wants_numbers(self) -> bool:
        """Whether the bar is about to be drawn: fetching numbers from a device costs time."""
        bar = self._batches
        return not bar.disable and bar.n - bar.last_print_n >= bar.miniters

    def batch(self, number: int, numbers: dict[str, str] | None) -> None:
        """After batch `number` of the epoch."""
        if numbers is not None:
            self._batches.set_postfix(numbers, refresh=False)
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
