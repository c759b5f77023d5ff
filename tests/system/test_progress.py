import errno
import io
import os
import sys

import pytest

from nvae.system.progress import ProgressBars, batches, track


@pytest.mark.parametrize("progress", [False, True, lambda items, description: iter(items)])
def test_track_returns_the_items(progress):
    assert list(track(range(3), "counting", progress)) == [0, 1, 2]


def test_track_true_shows_a_bar_without_a_terminal(capsys):
    list(track(range(3), "counting", True))
    assert "counting" in capsys.readouterr().err


def test_track_without_progress_shows_nothing(capsys):
    list(track(range(3), "counting", False))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "size"), [(0, 3), (1, 3), (3, 3), (7, 3)])
def test_batches_cover_all_in_order(count, size):
    parts = [list(range(count))[part] for part in batches(count, size)]
    assert [item for part in parts for item in part] == list(range(count))
    assert all(1 <= len(part) <= size for part in parts)


def test_bars_of_a_training_survive_a_terminal_that_has_gone(monkeypatch):
    class Terminal(io.StringIO):
        has_gone = False

        def write(self, text):
            if self.has_gone:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return super().write(text)

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    bars = ProgressBars(2, 100, 0, True)
    assert "epoch" in terminal.getvalue()
    terminal.has_gone = True
    for number in range(100):
        bars.step(number + 1, lambda: {"loss": "1"})
    bars.activity("saving")
    bars.epoch(1)
    bars.close()
