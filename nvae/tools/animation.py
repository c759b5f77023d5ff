"""Animations: GIF through Pillow, MP4 through imageio-ffmpeg (the extra `video`)."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from nvae.data.images import to_pixels
from nvae.errors import UserError
from nvae.tools.grids import enlarged_side, from_pixels, saving, unused_path

FRAMES_PER_SECOND = 20  # a GIF's frames last whole hundredths of a second: 20 are five each
PALETTE_COLORS = 256

Format = Literal["gif", "mp4"]


def save_animation(
    images: Iterable[Tensor],
    frames: int,
    folder: Path,
    name: str,
    format: Format,
    about: dict[str, object],
    side: int = 160,
) -> Path:
    """Images (B, C, S, S) in [0, 1], batch by batch, as an endless animation of 20 frames a second; returns its path.

    frames: how many there are in all, for the progress bar. side: pixels per side that a frame at least gets; smaller
    images are enlarged by a whole number of times. about: goes into the file as a comment. Never replaces a file.
    Raises UserError.
    """
    if format == "mp4":
        _ffmpeg()  # before the work
    with tqdm(total=frames, desc="animating", unit="frame", leave=False, disable=None) as bar:
        pictures = []
        for batch in images:
            pictures += list(to_pixels(batch))
            bar.update(len(batch))
    path = unused_path(folder, name, f".{format}")
    with saving(path) as unfinished:
        (_write_gif if format == "gif" else _write_mp4)(pictures, side, unfinished, json.dumps(about))
    return path


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    side = enlarged_side(len(pixels), side)
    return from_pixels(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _write_gif(frames: list[np.ndarray], side: int, path: Path, comment: str) -> None:
    # One palette for all frames, or the background flickers: that of some of them side by side.
    some = [_enlarged(pixels, side) for pixels in frames[:: max(1, len(frames) // 16)]]
    strip = Image.new("RGB", (some[0].width * len(some), some[0].height))
    for i, picture in enumerate(some):
        strip.paste(picture, (i * picture.width, 0))
    palette = strip.quantize(PALETTE_COLORS, Image.Quantize.MEDIANCUT)
    pictures = (_enlarged(pixels, side) for pixels in frames)
    first, *others = (picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG) for picture in pictures)
    first.save(
        path,
        "gif",
        save_all=True,
        append_images=others,
        duration=1000 // FRAMES_PER_SECOND,
        loop=0,
        comment=comment.encode(),
    )


def _write_mp4(frames: list[np.ndarray], side: int, path: Path, comment: str) -> None:
    ffmpeg = _ffmpeg()
    writer = ffmpeg.write_frames(
        str(path),
        _enlarged(frames[0], side).size,
        fps=FRAMES_PER_SECOND,
        quality=8,
        macro_block_size=2,
        output_params=["-metadata", f"comment={comment}", "-f", "mp4"],
    )
    writer.send(None)
    for pixels in frames:
        writer.send(_enlarged(pixels, side).tobytes())
    writer.close()
    try:  # a program that came to grief does not say so
        written, _ = ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != len(frames):
        raise OSError(f"{written} of {len(frames)} frames were written")


def _ffmpeg():
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "an MP4 needs the extra 'video': pip install -e '.[video]'; a GIF needs nothing more (--animate gif)."
        ) from error
    return imageio_ffmpeg
