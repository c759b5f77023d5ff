"""Open image files from outside safely, and read single ones as a model sees them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from nvae.data.images import fit, to_network
from nvae.errors import UserError
from nvae.schema import ModelConfig

# The formats that Pillow decodes by itself, whatever the file is called. EPS would start Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 64_000_000  # a decoded image of this size takes about 0.5 GB while it is resized


@contextmanager
def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file of one of FORMATS, chosen by its content. No other program is ever started.

    max_pixels: width times height that is decoded at most, which bounds the memory and time that one file takes.
    Raises OSError for a file that is not regular (a pipe would block for ever) and ValueError for too many pixels.
    """
    if not path.is_file():
        raise OSError("not a regular file")
    Image.init()
    with Image.open(path, formats=[name for name in FORMATS if name in Image.OPEN]) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels, more than the limit of {max_pixels:,}")
        yield image


@contextmanager
def without_size_warnings() -> Iterator[None]:
    """Silence Pillow's warning about large images; `open_picture` has a limit of its own. Not for use in threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_pictures(paths: Sequence[Path], config: ModelConfig, device: torch.device | str) -> tuple[Tensor, list[str]]:
    """Pictures as images (N, C, S, S) in [0, 1] of a model's size and channels, and what had to be done to them.

    Raises UserError, naming the file, where one cannot be read.
    """
    pixels, notices = [], []
    for path in paths:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; give the pictures in it, such as {path}/*.png.")
        if not path.exists():
            raise UserError(f"there is no picture '{path}'.")
        try:
            with without_size_warnings(), open_picture(path) as image:
                notices += _changes(path, image, config)
                pixels.append(torch.from_numpy(fit(image, config.input_dimension, config.image_channels).copy()))
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise UserError(f"the picture '{path}' cannot be read: {str(error) or type(error).__name__}.") from error
    return to_network(torch.stack(pixels), device, config.pixel_bits), notices


def _changes(path: Path, image: Image.Image, config: ModelConfig) -> list[str]:
    size = config.input_dimension
    upright = ImageOps.exif_transpose(image)
    width, height = upright.size
    done = ["turned upright"] if upright.size != image.size else []
    if width != height:
        done.append("cut to a square")
    if min(width, height) != size:
        done.append(f"resized to {size} x {size}")
    gray = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;")
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        done.append("laid on white")
    if gray != (config.image_channels == 1):
        done.append("turned gray" if config.image_channels == 1 else "turned from gray into color")
    return [f"{path} ({width} x {height}): {', '.join(done)}, as the model wants it"] if done else []
