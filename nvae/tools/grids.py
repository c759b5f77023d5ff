"""Grids of images: put together, labelled, saved with what reproduces them."""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from nvae.data.image_files import open_image
from nvae.data.images import to_pixels
from nvae.errors import UserError

MARGIN = 4
PAPER = (255, 255, 255)
INK = (60, 60, 60)
MARK = (220, 40, 90)


@dataclass(frozen=True)
class Layout:
    """Where the cells of a grid are, in pixels."""

    columns: int
    side: int  # of a cell
    left: int  # of the labels
    caption: int  # height of the line below every cell

    @property
    def row_height(self) -> int:
        return self.side + self.caption + MARGIN

    def corner(self, cell: int) -> tuple[int, int]:
        """The left upper corner of a cell."""
        row, column = divmod(cell, self.columns)
        return self.left + MARGIN + column * (self.side + MARGIN), MARGIN + row * self.row_height

    def cell_at(self, x: float, y: float, cells: int) -> int | None:
        """The cell that is drawn at a place, if one of so many is."""
        for cell in range(cells):
            left, top = self.corner(cell)
            if 0 <= x - left < self.side and 0 <= y - top < self.side:
                return cell
        return None


def layout(
    size: int, columns: int, cell: int = 160, labels: Sequence[str] = (), captions: Sequence[str] = ()
) -> Layout:
    """The layout of `grid` for images of `size` pixels a side."""
    side = enlarged_side(size, cell)
    left = max(round(_font(side).getlength(label)) for label in labels) + 2 * MARGIN if labels else 0
    return Layout(columns, side, left, round(1.5 * _font(side).size) if captions else 0)


def _font(side: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(12, side // 9))


def grid(
    images: Tensor,
    columns: int,
    cell: int = 160,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    marked: Collection[int] = (),
) -> Image.Image:
    """Images (N, C, S, S) in [0, 1] row by row, with a white margin around each.

    cell: pixels per side that an image at least gets; smaller ones are enlarged by a whole number of times, smoothly.
    labels: a text to the left of each row. captions: a text below each image. marked: which get a frame.
    """
    pixels = to_pixels(images)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    places = layout(pixels.shape[1], columns, cell, labels, captions)
    side, font = places.side, _font(places.side)
    rows = -(-len(pixels) // columns)
    width = places.left + columns * (side + MARGIN) + MARGIN
    picture = Image.new("RGB", (width, MARGIN + rows * places.row_height), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, image in enumerate(pixels):
        x, y = places.corner(i)
        picture.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        if captions:
            pen.text((x + side // 2, y + side + places.caption // 2), captions[i], INK, font, anchor="mm")
        if i in marked:
            pen.rectangle(
                (x - MARGIN, y - MARGIN, x + side + MARGIN - 1, y + side + MARGIN - 1), None, MARK, 2 * MARGIN
            )
    for row, label in enumerate(labels):
        pen.text((2 * MARGIN, MARGIN + row * places.row_height + side // 2), label, INK, font, anchor="lm")
    return picture


def single(image: Tensor) -> Image.Image:
    """One image (C, S, S) in [0, 1], as it is."""
    return from_pixels(to_pixels(image[None])[0])


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """uint8 (S, S, 1 or 3) as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def enlarged_side(size: int, least: int) -> int:
    """The smallest whole number of times a size that is not below `least`."""
    return size * max(1, -(-least // size))


def near_square(cells: int) -> int:
    """The columns of a grid that is as wide as high, or a little wider."""
    columns = 1
    while columns * columns < cells:
        columns += 1
    return columns


def heat_maps(values: Tensor, brightest: float) -> Tensor:
    """(N, H, W) from 0 to `brightest` as colors (N, 3, H, W) in [0, 1], black to yellow."""
    from matplotlib import colormaps

    scaled = (values / brightest if brightest > 0 else values).clamp(0, 1).cpu().numpy()
    return torch.from_numpy(colormaps["inferno"](scaled)[..., :3]).permute(0, 3, 1, 2).float()


def enlarged(values: Tensor, size: int) -> Tensor:
    """(N, h, w) to (N, size, size), every value as a square."""
    return torch.nn.functional.interpolate(values[:, None], (size, size), mode="nearest-exact")[:, 0]


# ------------------------------------------------------------------------------------------------------ saving


def save_picture(picture: Image.Image, path: Path, about: dict[str, object]) -> Path:
    """Save as PNG, with `about` as text in its metadata. Raises UserError where that cannot be."""
    metadata = PngInfo()
    for key, value in about.items():
        metadata.add_itxt(key, as_text(value))
    with saving(path) as unfinished:
        picture.save(unfinished, "png", pnginfo=metadata)
    return path


@contextmanager
def saving(path: Path) -> Iterator[Path]:
    """As `replacing`, in a folder that is made; raises UserError where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as unfinished:
            yield unfinished
    except OSError as error:
        raise UserError(
            f"{path} could not be saved: {error}; make room or choose a folder that can be written."
        ) from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write, which takes the place of `path` in the end, or goes away where something is raised."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def save_result(picture: Image.Image, folder: Path, name: str, about: dict[str, object]) -> Path:
    """As <folder>/<name>.png, or with the first number after it that no picture of other settings has."""
    texts = {key: as_text(value) for key, value in about.items()}
    return save_picture(picture, unused_path(folder, name, ".png", texts), about)


def unused_path(folder: Path, name: str, ending: str, texts: dict[str, str] | None = None) -> Path:
    """<folder>/<name><ending>, or with the first number that makes it new, or that of a PNG with these very texts."""
    number, path = 1, folder / f"{name}{ending}"
    while path.exists() and (texts is None or _texts_of(path) != texts):
        number += 1
        path = folder / f"{name}_{number}{ending}"
    return path


def as_text(value: object) -> str:
    """A text as it is, but for the bytes of a file's name that are no text; anything else as JSON."""
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="backslashreplace").decode()


def _texts_of(path: Path) -> dict[str, str] | None:
    try:
        with open_image(path) as picture:
            return {key: str(text) for key, text in getattr(picture, "text", {}).items()}
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
