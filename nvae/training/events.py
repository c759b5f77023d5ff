"""The events that training reports to its caller. The training loop itself prints nothing."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

from tqdm import tqdm


class Event(NamedTuple):
    """Something that happened in training, as a text for people, and for "metrics" also as a line of numbers."""

    kind: Literal["info", "metrics", "warning"]
    text: str
    metrics: dict[str, Any] | None = None


def print_event(event: Event) -> None:
    """Print an event above the progress bars: an `on_event` for programs."""
    tqdm.write(f"warning: {event.text}" if event.kind == "warning" else event.text, file=sys.stdout)
    sys.stdout.flush()


class Reporter:
    """Passes events to a receiver. An error of the receiver never ends a run."""

    def __init__(self, on_event: Callable[[Event], object] | None) -> None:
        """on_event: receives every Event; without one, warnings become Python warnings and the rest is dropped."""
        self._on_event = on_event or _warn
        self._warned: set[str] = set()

    def info(self, text: str) -> None:
        """Report progress."""
        self._send(Event("info", text))

    def metrics(self, text: str, line: dict[str, Any]) -> None:
        """Report a line of metrics."""
        self._send(Event("metrics", text, line))

    def warn(self, text: str, once: str | None = None) -> None:
        """Report a warning; of those with the same `once`, only the first."""
        if once is None or once not in self._warned:
            self._warned.add(once or text)
            self._send(Event("warning", text))

    def _send(self, event: Event) -> None:
        try:
            self._on_event(event)
        except Exception as error:
            self._on_event = _warn
            warnings.warn(f"training continues without reports, because a report failed: {error!r}", stacklevel=2)


def _warn(event: Event) -> None:
    if event.kind == "warning":
        warnings.warn(event.text, stacklevel=4)
