"""Ctrl-C, SIGTERM and a closed terminal: what is under way may end first."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANGUPS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopRequest:
    """`signal` is the number of the signal that asked for a stop, if one did."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Within it, the first such signal is only noted; the handlers are put back afterwards."""
    request = StopRequest()

    def note(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number
        with suppress(OSError):  # the terminal may be what has gone
            print("\nfinishing this step, then saving; once more to stop at once", file=sys.stderr)

    with _handled_by(note, signal.SIGINT, *HANGUPS):
        yield request


@contextmanager
def hangups(interrupt: bool) -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does, or do nothing."""

    def take(number: int, frame: FrameType | None) -> None:
        if interrupt:
            raise KeyboardInterrupt

    with _handled_by(take, *HANGUPS):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *signals: int) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
