"""Handle Ctrl-C, SIGTERM and a closed terminal, so that the work in progress can finish first."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

HANGUPS = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]


class StopRequest:
    """The number of the first signal that asked for a stop, or None."""

    signal: int | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Record the first SIGINT, SIGTERM or SIGHUP in the StopRequest; raise KeyboardInterrupt for a later SIGINT.

    Outside of the main thread, no signal is recorded.

    A closed terminal sends SIGHUP twice, and a launcher sends SIGTERM after Ctrl-C, so that only a second Ctrl-C asks
    to quit at once. The earlier handlers are restored on exit.
    """
    request = StopRequest()

    def record(number: int, frame: FrameType | None) -> None:
        if request.signal is None:
            request.signal = number
            text = "Finishing this step and saving. Press Ctrl-C again to quit now (loses the progress since the last "
            # The standard error may be closed, gone, or in use by the code that the signal interrupted.
            with suppress(OSError, ValueError, RuntimeError):
                print(f"\n{text}checkpoint).", file=sys.stderr, flush=True)
        elif number == signal.SIGINT:
            raise KeyboardInterrupt

    with _handled_by(record, signal.SIGINT, *HANGUPS):
        yield request


@contextmanager
def hangups(interrupt: bool) -> Iterator[None]:
    """Make SIGTERM and SIGHUP (a closed terminal) raise KeyboardInterrupt with their number, or ignore them."""

    def handle(number: int, frame: FrameType | None) -> None:
        if interrupt:
            raise KeyboardInterrupt(number)

    with _handled_by(handle, *HANGUPS):
        yield


@contextmanager
def ending_at_once() -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP end the process at once, for a wait in which Python cannot handle them."""
    with _handled_by(signal.SIG_DFL, signal.SIGINT, *HANGUPS):
        yield


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None] | signal.Handlers, *signals: int) -> Iterator[None]:
    """Handle signals, but for a SIGHUP that the caller of the program ignores, as nohup does.

    Outside of the main thread, which alone can handle signals, do nothing.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in signals:
            if number in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(number) is not signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)
