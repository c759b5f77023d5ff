import base64
import io
import os
import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib import pyplot
from PIL import Image

from nvae.system.errors import UserError
from nvae.tools import display
from nvae.tools.display import can_open_window, inline, inline_protocol, show

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def chafa():
    """The library that draws in terminals."""
    return pytest.importorskip("chafa", reason="the extra 'terminal' is not installed", exc_type=(ImportError, OSError))


@pytest.fixture
def environment(monkeypatch):
    """A function: a terminal, or no terminal, with these environment variables and none of the developer's own."""

    class Terminal(io.StringIO):
        def __init__(self, is_one):
            super().__init__()
            self.isatty = lambda: is_one

    def make(terminal=True, **variables):
        for name in list(os.environ):
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "stdout", Terminal(terminal))

    return make


def red_and_blue(width=32, height=16):
    """A picture with a red left and a blue right half."""
    picture = Image.new("RGB", (width, height), RED)
    picture.paste(BLUE, (width // 2, 0, width, height))
    return picture


def assert_red_and_blue(pixels):
    """(H, W, 3), twice as wide as high."""
    height, width = pixels.shape[:2]
    assert width == 2 * height
    difference = np.abs(pixels.astype(int) - np.asarray(red_and_blue(width, height)))
    border = np.abs(np.arange(width) - (width - 1) / 2) < width / 16
    assert difference[:, ~border].max() < 10


# ----------------------------------------------------------------------------------------------- in the terminal


def test_inline_kitty_holds_the_pixels(chafa):
    sequence = inline(red_and_blue(), "kitty").encode()
    parts = re.findall(rb"\x1b_G([^;\x1b]*);?([^\x1b]*)\x1b\\", sequence)
    settings = dict(setting.split(b"=") for setting in parts[0][0].split(b","))
    assert (settings[b"a"], settings[b"f"]) == (b"T", b"32"), "shown at once, four bytes a pixel"
    pixels = np.frombuffer(b"".join(base64.b64decode(data) for _, data in parts), np.uint8)
    assert_red_and_blue(pixels.reshape(int(settings[b"v"]), int(settings[b"s"]), 4)[..., :3])


def test_inline_iterm2_holds_a_file(chafa):
    file = re.fullmatch(rb"\x1b\]1337;File=([^:]*):([^\x07]*)\x07", inline(red_and_blue(), "iterm2").encode())
    settings = dict(setting.split(b"=") for setting in file[1].split(b";"))
    assert settings[b"inline"] == b"1"
    with Image.open(io.BytesIO(base64.b64decode(file[2]))) as picture:
        assert_red_and_blue(np.asarray(picture.convert("RGB")))


def test_inline_sixel_holds_the_colors(chafa):
    sequence = inline(red_and_blue(), "sixel").encode()
    assert sequence.startswith(b"\x1bP")
    assert sequence.endswith(b"\x1b\\")
    defined = {number: tuple(map(int, rgb)) for number, *rgb in re.findall(rb"#(\d+);2;(\d+);(\d+);(\d+)", sequence)}
    colors = {number: np.array(rgb) * 255 / 100 for number, rgb in defined.items()}
    used = {number for number in re.findall(rb"#(\d+)[^;\d]", sequence) if number in colors}
    for wanted in (RED, BLUE):
        assert min(np.abs(colors[number] - wanted).max() for number in used) < 10


@pytest.mark.parametrize("columns", [200, 60, 30, 1, 0])
def test_inline_fits_the_terminal_and_keeps_its_shape(chafa, monkeypatch, columns):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(os, "get_terminal_size", lambda *_: os.terminal_size((columns, 24)))
    settings = inline(red_and_blue(), "kitty").encode().split(b"\x1b\\")[0]
    width, rows = (int(re.search(rb"[,G]%c=(\d+)" % name, settings)[1]) for name in b"cr")
    assert width == {200: 60, 60: 59, 30: 29, 1: 1, 0: 60}[columns], "0 says that nobody knows"
    assert rows == max(1, round(width / 4)), "a character is twice as high as wide"


def test_inline_takes_gray_pictures(chafa):
    gray = Image.new("L", (8, 8), 100)
    for protocol in ("kitty", "iterm2", "sixel"):
        assert inline(gray, protocol) == inline(gray.convert("RGB"), protocol)


def test_inline_without_the_library_names_the_extra(monkeypatch, environment):
    monkeypatch.setitem(sys.modules, "chafa", None)
    with pytest.raises(UserError, match="'terminal'"):
        inline(red_and_blue(), "kitty")
    environment(TERM="xterm-kitty")
    assert inline_protocol() == "none"


# ---------------------------------------------------------------------------------------- what a terminal can show


@pytest.mark.parametrize(
    ("variables", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        ({"TERM": "mlterm"}, "sixel"),
        ({"TERM": "foot"}, "sixel"),
        ({"TERM": "xterm-256color"}, "none"),
        ({"TERM": "dumb"}, "none"),
        ({"TERM": "linux"}, "none"),
        ({}, "none"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value.values()),
)
def test_inline_protocol_follows_the_environment(chafa, environment, variables, protocol):
    environment(**variables)
    assert inline_protocol() == protocol
    environment(terminal=False, **variables)
    assert inline_protocol() == "none"


# ------------------------------------------------------------------------------------------------------- windows


@pytest.mark.parametrize(
    ("platform", "variables", "possible"),
    [
        ("linux", {}, False),
        ("linux", {"DISPLAY": ""}, False),
        ("linux", {"DISPLAY": ":0"}, True),
        ("linux", {"WAYLAND_DISPLAY": "wayland-0"}, True),
        ("darwin", {}, True),
        ("darwin", {"SSH_CONNECTION": "10.0.0.1 22"}, False),
        ("win32", {}, True),
    ],
)
def test_can_open_window_needs_a_display_and_a_toolkit(environment, monkeypatch, platform, variables, possible):
    environment(**variables)
    monkeypatch.setattr(sys, "platform", platform)
    framework = "tk"

    def figure():
        return SimpleNamespace(canvas=SimpleNamespace(required_interactive_framework=framework))

    monkeypatch.setattr(pyplot, "figure", figure)
    monkeypatch.setattr(pyplot, "close", lambda figure: None)
    assert can_open_window() == possible
    framework = None  # a canvas without a window, as a notebook's
    assert not can_open_window()
    monkeypatch.setattr(pyplot, "figure", lambda: 1 / 0)  # a toolkit that finds no screen
    assert not can_open_window()


def test_show_needs_a_window(monkeypatch):
    shown = []
    monkeypatch.setattr(pyplot, "show", lambda: shown.append(pyplot.gcf()))
    monkeypatch.setattr(display, "can_open_window", lambda: False)
    show(red_and_blue(), "a")
    assert shown == []
    monkeypatch.setattr(display, "can_open_window", lambda: True)
    show(red_and_blue(), "a")
    (figure,) = shown
    assert np.array_equal(figure.axes[0].images[0].get_array(), np.asarray(red_and_blue()))
    pyplot.close(figure)
