"""Show pictures in a window or, with a terminal that supports images, in the terminal."""

from __future__ import annotations

import os
import shutil
import sys

import numpy as np
from PIL import Image

from nvae.schema.choices import Inline
from nvae.system.errors import UserError

MAX_TERMINAL_COLUMNS = 60  # of one picture


def can_open_window() -> bool:
    """Tell whether there is a display, and matplotlib has a toolkit for it."""
    has_screen = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if sys.platform in ("win32", "darwin"):
        has_screen = not os.environ.get("SSH_CONNECTION")
    if not has_screen:
        return False
    from matplotlib import pyplot

    try:
        figure = pyplot.figure()  # an installed toolkit can still fail to open the display
    except Exception:  # every toolkit raises its own
        return False
    interactive = figure.canvas.required_interactive_framework is not None
    pyplot.close(figure)
    return interactive


def show(picture: Image.Image, title: str) -> None:
    """Show a picture in a window until the window is closed; do nothing if no window can be opened."""
    if not can_open_window():
        return
    from matplotlib import pyplot

    pixels = np.asarray(picture)
    figure = pyplot.figure(title, figsize=(pixels.shape[1] / 100, pixels.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels)
    axes.axis("off")
    pyplot.show()


# ---------------------------------------------------------------------------------------------- in the terminal


def inline_protocol() -> Inline:
    """Return how this terminal shows pictures, according to its environment variables."""
    if not sys.stdout.isatty():
        return "none"
    try:
        import chafa
    except (ImportError, OSError):  # not installed, or without its C library
        return "none"
    terminal, sequences = chafa.TermDb().detect(), chafa.TermSeq
    protocols: tuple[tuple[Inline, int], ...] = (
        ("kitty", sequences.CHAFA_TERM_SEQ_BEGIN_KITTY_IMMEDIATE_IMAGE_V1),
        ("iterm2", sequences.CHAFA_TERM_SEQ_BEGIN_ITERM2_IMAGE),
        ("sixel", sequences.CHAFA_TERM_SEQ_BEGIN_SIXELS),
    )
    return next((protocol for protocol, sequence in protocols if terminal.have_seq(sequence)), "none")


def inline(picture: Image.Image, protocol: Inline) -> str:
    """Return the text that makes a terminal show a picture. Raises UserError without the extra `terminal`."""
    try:
        import chafa
    except (ImportError, OSError) as error:
        raise UserError(
            "pictures in the terminal need the extra 'terminal': install it with pip install -e '.[terminal]'."
        ) from error
    canvas = chafa.CanvasConfig()
    canvas.pixel_mode = {
        "kitty": chafa.PixelMode.CHAFA_PIXEL_MODE_KITTY,
        "iterm2": chafa.PixelMode.CHAFA_PIXEL_MODE_ITERM2,
        "sixel": chafa.PixelMode.CHAFA_PIXEL_MODE_SIXELS,
    }[protocol]
    columns = max(1, min(MAX_TERMINAL_COLUMNS, (shutil.get_terminal_size().columns or 80) - 1))
    canvas.cell_width, canvas.cell_height = 10, 20  # the shape of a character in most fonts
    canvas.width, canvas.height = columns, max(1, round(columns * picture.height / picture.width / 2))
    drawn = chafa.Canvas(canvas)
    pixels = picture.convert("RGB")
    pixel_type = chafa.PixelType.CHAFA_PIXEL_RGB8
    drawn.draw_all_pixels(pixel_type, pixels.tobytes(), pixels.width, pixels.height, 3 * pixels.width)
    return drawn.print(fallback=True).decode("ascii")
