"""Grids of images with labels, captions and heat maps, and where results are saved."""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from nvae.data.images import to_pixels
from nvae.data.pictures.metadata import as_texts, read_metadata, save_picture
from nvae.system.errors import InvalidValueError
from nvae.system.files import unused_path

MARGIN = 4
BLOCK_MARGIN = 12  # more, between blocks of columns
PAPER = (255, 255, 255)
INK = (60, 60, 60)
MARK = (220, 40, 90)
COLOR_MAP = "inferno"
MAX_NAME_BYTES = 200  # of a result's file name; file systems allow 255, temporary names need some of them
MEDIA_SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".mp4", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Layout:
    """The places of a grid's cells, in pixels."""

    columns: int
    side: int  # of a cell
    left: int  # width of the row labels
    caption: int  # height of the line below every cell
    block: int | None = None  # columns between two wider margins

    @property
    def row_height(self) -> int:
        return self.side + self.caption + MARGIN

    def corner(self, cell: int) -> tuple[int, int]:
        """Return the upper left corner of a cell."""
        row, column = divmod(cell, self.columns)
        wider = column // (self.block or self.columns) * BLOCK_MARGIN
        return self.left + MARGIN + column * (self.side + MARGIN) + wider, MARGIN + row * self.row_height

    def cell_at(self, x: float, y: float, cells: int) -> int | None:
        """Return which of the first `cells` cells is at a point; None if none is."""
        for cell in range(cells):
            left, top = self.corner(cell)
            if 0 <= x - left < self.side and 0 <= y - top < self.side:
                return cell
        return None


def layout(
    size: int,
    columns: int,
    cell: int = 160,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    block: int | None = None,
) -> Layout:
    """Return the layout of `grid` for images of `size` pixels a side."""
    side = enlarged_side(size, cell)
    left = max(round(_font(side).getlength(label)) for label in labels) + 2 * MARGIN if labels else 0
    return Layout(columns, side, left, round(1.5 * _font(side).size) if captions else 0, block)


def _font(side: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(max(12, side // 10))  # type: ignore[return-value]  # with a size, it is FreeType


def grid(
    images: Tensor,
    columns: int,
    cell: int = 160,
    labels: Sequence[str] = (),
    captions: Sequence[str] = (),
    marked: Collection[int] = (),
    block: int | None = None,
) -> Image.Image:
    """Draw images (N, C, S, S) in [0, 1] row by row, with a white margin around each.

    cell: minimum side of a cell in pixels; smaller images are enlarged smoothly by a whole factor.
    labels: a text to the left of each row. captions: a text below each image, shortened to its width.
    marked: the cells that get a frame. block: a wider margin follows this many columns (default: no wider margins).
    """
    pixels = to_pixels(images)
    if pixels.shape[-1] == 1:
        pixels = pixels.repeat(3, axis=-1)
    places = layout(pixels.shape[1], columns, cell, labels, captions, block)
    side, font = places.side, _font(places.side)
    rows = -(-len(pixels) // columns)
    width = places.corner(columns - 1)[0] + side + MARGIN
    picture = Image.new("RGB", (width, MARGIN + rows * places.row_height), PAPER)
    pen = ImageDraw.Draw(picture)
    for i, image in enumerate(pixels):
        x, y = places.corner(i)
        picture.paste(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), (x, y))
        if captions:
            caption = shortened(captions[i], side, font)
            pen.text((x + side // 2, y + side + places.caption // 2), caption, INK, font, anchor="mm")
        if i in marked:
            pen.rectangle(
                (x - MARGIN, y - MARGIN, x + side + MARGIN - 1, y + side + MARGIN - 1), None, MARK, 2 * MARGIN
            )
    for row, label in enumerate(labels):
        pen.text((2 * MARGIN, MARGIN + row * places.row_height + side // 2), label, INK, font, anchor="lm")
    return picture


def with_rows_below(columns: int, *rows: tuple[Tensor, Sequence[str]]) -> tuple[Tensor, list[str]]:
    """Return the cells (M, C, S, S) and captions of a grid with rows of other images below each row of images.

    rows: images (N, C, S, S) and their N captions, from the upper to the lowest row. Rows that are not full end with
    white cells.
    """
    cells, texts = [], []
    for first in range(0, len(rows[0][0]), columns):
        part = slice(first, first + columns)
        for images, captions in rows:
            cells.append(filled(images[part], columns))
            texts += [*captions[part], *[""] * (columns - len(captions[part]))]
    return torch.cat(cells), texts


def filled(cells: Tensor, columns: int) -> Tensor:
    """Return the cells (N, C, S, S) of a grid's row, white ones added at the end where they are fewer than columns."""
    return torch.cat([cells, torch.ones_like(cells[:1]).expand(columns - len(cells), -1, -1, -1)])


def shortened(text: str, width: int, font: ImageFont.FreeTypeFont) -> str:
    """Return a text that is at most `width` pixels wide: the middle is replaced by dots if needed."""
    kept = len(text)
    short = text = text.encode(errors="replace").decode()  # bytes of a file name that are no text
    while kept > 2 and font.getlength(short) > width:
        kept -= 1
        short = f"{text[: -(-kept // 2)]}...{text[len(text) - kept // 2 :]}"
    return short


def single(image: Tensor) -> Image.Image:
    """Return one image (C, S, S) in [0, 1] at its own size."""
    return from_pixels(to_pixels(image[None])[0])


def from_pixels(pixels: np.ndarray) -> Image.Image:
    """Return uint8 pixels (S, S, 1 or 3) as a picture."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def enlarged_side(size: int, least: int) -> int:
    """Return the smallest multiple of a size that is at least `least`."""
    return size * max(1, -(-least // size))


def near_square(*cells: int, width: int = 1) -> int:
    """Return the number of columns that makes a grid square, or a little wider than high.

    cells: their number, or several numbers of which each starts a new row. width: of a cell, relative to its height.
    """
    return next(n for n in itertools.count(1) if sum(-(-number // n) for number in cells) <= n * width)


# --------------------------------------------------------------------------------------------------- heat maps


def heat_maps(values: Tensor, brightest: float) -> Tensor:
    """Turn values (N, H, W) from 0 to `brightest` into colors (N, 3, H, W) in [0, 1], black to yellow."""
    from matplotlib import colormaps

    scaled = (values / brightest if brightest > 0 else values).clamp(0, 1).cpu().numpy()
    return torch.from_numpy(colormaps[COLOR_MAP](scaled)[..., :3]).permute(0, 3, 1, 2).float()


def color_bar(brightest: float, text: str, width: int, cell: int) -> Image.Image:
    """Draw the scale of `heat_maps`: the colors of 0 to `brightest`, three numbers below them, and a text below these.

    width: of the whole picture. cell: the side of the grid's cells, which decides the size of the text.
    """
    font = _font(cell)
    height = round(font.size)
    lines = textwrap.wrap(text, max(1, int(len(text) * (width - 2 * MARGIN) / font.getlength(text))))
    picture = Image.new("RGB", (width, round(1.4 * height * (2 + len(lines))) + 2 * MARGIN), PAPER)
    bar_width = max(min(width - 2 * MARGIN, 4 * cell), 1)
    ramp = heat_maps(torch.linspace(0, 1, bar_width).expand(1, height, -1), 1.0)[0]
    picture.paste(single(ramp), (MARGIN, MARGIN))
    pen = ImageDraw.Draw(picture)
    for part, anchor in ((0.0, "lt"), (0.5, "mt"), (1.0, "rt")):
        place = (MARGIN + part * bar_width, 2 * MARGIN + height)
        pen.text(place, f"{part * brightest:.2g}", INK, font, anchor=anchor)
    for i, line in enumerate(lines):
        pen.text((MARGIN, 2 * MARGIN + round(1.4 * height * (i + 1.8))), line, INK, font, anchor="lt")
    return picture


def stacked(pictures: Sequence[Image.Image]) -> Image.Image:
    """Put pictures below each other."""
    result = Image.new("RGB", (max(p.width for p in pictures), sum(p.height for p in pictures)), PAPER)
    top = 0
    for picture in pictures:
        result.paste(picture, (0, top))
        top += picture.height
    return result


def enlarged(values: Tensor, size: int) -> Tensor:
    """Enlarge values (N, h, w) to (N, size, size), every value as a square."""
    return torch.nn.functional.interpolate(values[:, None], (size, size), mode="nearest-exact")[:, 0]


# ------------------------------------------------------------------------------------------------------ saving


def result_name(*parts: str) -> str:
    """Join the parts of a result's file name that are not empty; shorten a name that file systems refuse."""
    name = "_".join(filter(None, parts))
    encoded = name.encode(errors="surrogateescape")
    return name if len(encoded) <= MAX_NAME_BYTES else encoded[:MAX_NAME_BYTES].decode(errors="ignore")


def is_file_name(out: Path, suffix: str) -> bool:
    """Tell whether `out` names a file with this suffix, not a folder. Raises UserError for another kind of file."""
    ending = out.suffix.lower()
    if ending not in MEDIA_SUFFIXES or out.is_dir():
        return False
    if ending != suffix:
        raise InvalidValueError("the file of the result", f"'{out}'", f"a folder, or a name that ends with {suffix}")
    return True


def save_result(picture: Image.Image, out: Path, name: str, metadata: Mapping[str, object]) -> Path:
    """Save a picture as PNG: as `out` if that names a .png file, else as <out>/<name>.png; return the path.

    A folder's picture with the same metadata is replaced; one with other metadata is kept, and the name gets a number.
    The command is not compared: the same settings can be written in several ways.
    """
    if not is_file_name(out, ".png"):
        any_command = {"command": ""}
        expected = as_texts(metadata) | any_command
        out = unused_path(
            out, name, ".png", lambda path: not path.exists() or read_metadata(path) | any_command == expected
        )
    return save_picture(picture, out, metadata)
