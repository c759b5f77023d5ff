"""Single pictures of a person's, as a model sees them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor

from nvae.config import Config
from nvae.data.images import fit, to_network
from nvae.errors import UserError


def read_pictures(paths: Sequence[Path], config: Config, device: torch.device | str) -> tuple[Tensor, list[str]]:
    """Pictures as images (N, C, S, S) in [0, 1] of a model's size and channels, and what had to be done to them.

    Raises UserError, naming the file, where one cannot be read.
    """
    pixels, notices = [], []
    for path in paths:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder; give the pictures in it, such as {path}/*.png.")
        if not path.is_file():
            raise UserError(f"there is no picture '{path}'.")
        try:
            with warnings.catch_warnings(), Image.open(path) as image:
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                notices += _changes(path, image, config)
                pixels.append(torch.from_numpy(fit(image, config.input_dimension, config.image_channels).copy()))
        except Exception as error:  # a broken file makes Pillow's decoders raise almost anything
            raise UserError(f"the picture '{path}' cannot be read: {str(error) or type(error).__name__}.") from error
    return to_network(torch.stack(pixels), device, config.pixel_bits), notices


def _changes(path: Path, image: Image.Image, config: Config) -> list[str]:
    size = config.input_dimension
    upright = ImageOps.exif_transpose(image)
    width, height = upright.size
    done = ["turned upright"] if upright.size != image.size else []
    if width != height:
        done.append("cut to a square")
    if min(width, height) != size:
        done.append(f"resized to {size} x {size}")
    grey = image.mode in ("1", "L", "LA", "I", "F") or image.mode.startswith("I;")
    if image.has_transparency_data and image.convert("RGBA").getextrema()[3][0] < 255:
        done.append("laid on white")
    if grey != (config.image_channels == 1):
        done.append("turned grey" if config.image_channels == 1 else "turned from grey into colour")
    return [f"{path} ({width} x {height}): {', '.join(done)}, as the model wants it"] if done else []
