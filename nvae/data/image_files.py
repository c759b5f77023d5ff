"""Open untrusted image files safely, and read image files as a model's input."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import BinaryIO

import torch
from PIL import Image, ImageOps
from torch import Tensor

from nvae.data.images import fit, to_float
from nvae.errors import UserError
from nvae.schema import ModelConfig

# The formats that Pillow decodes without other programs. EPS would start Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
MAX_PIXELS = 64_000_000  # resizing a decoded image of this size takes about 0.5 GB


@contextmanager
def open_image(file: str | Path | BinaryIO | Image.Image, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file whose content, not its name, is in one of FORMATS. No other program is ever started.

    file: a path, an open file, which is closed at the end, or an image, which is yielded as it is.
    max_pixels: upper limit of width times height, which bounds the memory and time per file.
    Raises OSError for a file that is not regular (a pipe would block forever) and ValueError for too many pixels.
    """
    if isinstance(file, Image.Image):
        yield file
        return
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise OSError("not a regular file")
    Image.init()
    with (
        closing(file) if hasattr(file, "close") else nullcontext(),
        Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN]) as image,
    ):
        width, height = image.size
        if width * height > max_pixels:
            raise ValueError(f"{width} x {height} pixels, more than the limit of {max_pixels:,}")
        yield image


@contextmanager
def without_size_warnings() -> Iterator[None]:
    """Silence Pillow's warning about large images, because `open_image` has its own limit. Not thread-safe."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def read_image_files(
    paths: str | Path | Sequence[str | Path], config: ModelConfig, device: torch.device | str
) -> tuple[Tensor, list[str]]:
    """Read image files as images (N, C, S, S) in [0, 1] with a model's size and channels.

    Also returns one sentence per type of change: the name of the changed file, or how many files were changed.
    Raises UserError with the name of a file that cannot be read.
    """
    paths = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not paths:
        raise UserError("no image files: got an empty list, expected at least one file.")
    images_u8, changed = [], defaultdict(list)
    for path in paths:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder, not an image file. Give the files in the folder.")
        if not path.exists():
            raise UserError(f"the image file '{path}' does not exist.")
        try:
            with without_size_warnings(), open_image(path) as image:
                for change in _changes(image, config):
                    changed[change].append(path)
                images_u8.append(torch.from_numpy(fit(image, config.input_dimension, config.image_channels).copy()))
        except Exception as error:  # Pillow's decoders raise almost any exception for a broken file
            raise UserError(f"the image file '{path}' cannot be read: {str(error) or type(error).__name__}.") from error
    sentences = [
        f"{files[0]} was {change}" if len(files) == 1 else f"{len(files)} images were {change}"
        for change, files in changed.items()
    ]
    return to_float(torch.stack(images_u8), device, config.pixel_bits), sentences


def _changes(image: Image.Image, config: ModelConfig) -> list[str]:
    """Describe how `fit` changes an image."""
    size = config.input_dimension
    upright = ImageOps.exif_transpose(image)
    grayscale = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;")
    transparent = image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255
    changes = {
        "rotated upright": upright.size != image.size,
        "cropped to a square": upright.width != upright.height,
        f"resized to {size} x {size}": min(upright.size) != size,
        "composited on white": transparent,
        "converted to grayscale": config.image_channels == 1 and not grayscale,
        "converted from grayscale to color": config.image_channels == 3 and grayscale,
    }
    return [change for change, happens in changes.items() if happens]
