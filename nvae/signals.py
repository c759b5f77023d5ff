"""Ctrl-C, SIGTERM and a closed terminal: what is under way may end first."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType


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

    signals = [signal.SIGINT, signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, note) for number in signals}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def hangups(interrupt: bool) -> Iterator[None]:
    """Within it, SIGTERM and a closed terminal raise KeyboardInterrupt, as Ctrl-C does, or do nothing."""

    def take(*_: object) -> None:
        if interrupt:
            raise KeyboardInterrupt

    signals = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    before = {number: signal.signal(number, take) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
