"""Handle Ctrl-C, SIGTERM and a closed terminal, so that the work in progress can finish first."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANGUPS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopRequest:
    """The number of the first signal that asked for a stop, or None."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record the first SIGINT, SIGTERM or SIGHUP in the StopRequest; raise KeyboardInterrupt for the second one.

    The earlier handlers are restored on exit.
    """
    request = StopRequest()

    def record(number: int, frame: FrameType | None) -> None:
        if request.signal is not None:
            raise KeyboardInterrupt
        request.signal = number
        _print_error(
            "\nFinishing this step and saving. Press Ctrl-C again to quit now (loses the progress since the last "
            "checkpoint)."
        )

    with _handled_by(record, signal.SIGINT, *HANGUPS):
        yield request


@contextmanager
def hangups(interrupt: bool) -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt, as Ctrl-C does, or ignore them."""

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt:
            raise KeyboardInterrupt

    with _handled_by(handle, *HANGUPS):
        yield


def _print_error(message: str) -> None:
    """Print to the standard error, which may be closed, gone, or in use by the code that the signal interrupted."""
    with suppress(OSError, ValueError, RuntimeError):
        print(message, file=sys.stderr, flush=True)


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None], *signals: int) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
