import io
import os
import signal
import sys

import pytest

from nvae.system.signals import hangups, stop_requests


@pytest.fixture(autouse=True)
def no_nohup():
    """Signals as in a terminal, also where the tests run in the background."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in (signal.SIGHUP, signal.SIGTERM)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


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


@pytest.mark.parametrize("second", [signal.SIGHUP, signal.SIGTERM])
def test_stop_requests_only_ctrl_c_asks_twice(second):
    """A closed terminal sends SIGHUP twice (fault 35)."""
    with stop_requests() as request:
        for number in (signal.SIGHUP, second, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert request.signal == signal.SIGHUP
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_signals_that_are_ignored_stay_ignored():
    """nohup ignores SIGHUP."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_requests() as request, hangups(interrupt=True):
            os.kill(os.getpid(), signal.SIGHUP)
            assert request.signal is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_hangups_raise_the_number_of_the_signal():
    with pytest.raises(KeyboardInterrupt) as raised, hangups(interrupt=True):
        os.kill(os.getpid(), signal.SIGTERM)
    assert raised.value.args == (signal.SIGTERM,)
