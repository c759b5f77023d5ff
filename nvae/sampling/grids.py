"""Grids of images: put together, labelled, saved with what reproduces them, shown."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nvae.data.images import to_pixels
from nvae.errors import UserError

MARGIN = 4
PAPER = (255, 255, 255)
INK = (60, 60, 60)


def grid(images: Tensor, columns: int, cell: int = 160, labels: Sequence[str] = ()) -> Image.Image:
    """Images (N, C, S, S) in [0, 1] row by row, with a white margin around each.

    cell: pixels per side that an image at least gets; smaller ones are enlarged by a whole number of times, smoothly.
    labels: a text to the left of each row.
    """
    pixels = to_pixels(images)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    side = pixels.shape[1] * max(1, -(-cell // pixels.shape[1]))
    font = ImageFont.load_default(max(12, side // 8))
    left = MARGIN + (max(round(font.getlength(label)) for label in labels) + 2 * MARGIN if labels else 0)
    rows = -(-len(pixels) // columns)
    picture = Image.new("RGB", (left + columns * (side + MARGIN), MARGIN + rows * (side + MARGIN)), PAPER)
    for i, image in enumerate(pixels):
        x, y = left + i % columns * (side + MARGIN), MARGIN + i // columns * (side + MARGIN)
        picture.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (x, y))
    pen = ImageDraw.Draw(picture)
    for row, label in enumerate(labels):
        pen.text((2 * MARGIN, MARGIN + row * (side + MARGIN) + side // 2), label, INK, font, anchor="lm")
    return picture


def save_picture(picture: Image.Image, path: Path, about: dict[str, object]) -> Path:
    """Save as PNG, with `about` as text in its metadata. Raises UserError where that cannot be."""
    metadata = PngInfo()
    for key, value in about.items():
        metadata.add_itxt(key, str(value))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".unfinished")
        picture.save(unfinished, "png", pnginfo=metadata)
        unfinished.replace(path)
    except OSError as error:
        raise UserError(
            f"{path} could not be saved: {error}; make room or choose a folder that can be written."
        ) from error
    return path


def has_display() -> bool:
    """Whether a window can be opened."""
    if sys.platform in ("win32", "darwin"):
        return not os.environ.get("SSH_CONNECTION")
    return bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))


def show(picture: Image.Image, title: str) -> None:
    """Show in a window until it is closed, where there is a display and matplotlib has a toolkit for it."""
    if not has_display():
        return
    import matplotlib
    from matplotlib import pyplot

    if matplotlib.get_backend().lower() in NOT_INTERACTIVE:
        return
    pixels = np.asarray(picture)
    figure = pyplot.figure(title, figsize=(pixels.shape[1] / 100, pixels.shape[0] / 100))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(pixels)
    axes.axis("off")
    pyplot.show()


NOT_INTERACTIVE = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
