import io
import os
import signal
import sys

import pytest

from nvae.signals import hangups, stop_requests


class Reentrant(io.StringIO):
    def write(self, text):
        raise RuntimeError("reentrant call")


class Gone(io.StringIO):
    def write(self, text):
        raise OSError("the terminal has gone")


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("stream", [Gone, Reentrant, closed, lambda: None])
def test_stop_request_survives_a_terminal_that_has_gone(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream())
    with stop_requests() as request:
        os.kill(os.getpid(), signal.SIGINT)
        assert request.signal == signal.SIGINT


def test_stop_requests_interrupt_at_the_second_signal_and_restore_the_handlers():
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(KeyboardInterrupt), stop_requests() as request:
        assert request.signal is None
        os.kill(os.getpid(), signal.SIGTERM)
        assert request.signal == signal.SIGTERM
        os.kill(os.getpid(), signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_hangups_interrupt_or_are_ignored():
    with hangups(interrupt=False):
        os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), hangups(interrupt=True):
        os.kill(os.getpid(), signal.SIGTERM)
