"""Animations: WebP and GIF through Pillow, MP4 through imageio-ffmpeg (the extra `video`)."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from nvae.data.images import to_pixels
from nvae.data.pictures.metadata import EXIF_DESCRIPTION
from nvae.schema.choices import AnimationFormat
from nvae.system.errors import UserError
from nvae.system.files import atomic_write, unused_path
from nvae.tools.grids import enlarged_side, from_pixels, is_file_name

FRAMES_PER_SECOND = 20  # a GIF's frames last whole hundredths of a second: 20 are five each
FRAME_MILLISECONDS = 1000 // FRAMES_PER_SECOND
PALETTE_COLORS = 256
WEBP_QUALITY = 90


def save_animation(
    images: Iterable[Tensor],
    out: Path,
    name: str,
    file_format: AnimationFormat,
    metadata: Mapping[str, object],
    side: int = 256,
) -> Path:
    """Save batches of images (B, C, S, S) in [0, 1] as an endless animation of 20 frames a second; return its path.

    out: a folder, or a file name with the format's suffix. side: minimum
    side of a frame in pixels; smaller images are enlarged by a whole factor. metadata: goes into the file, as JSON.
    A file in a folder is never replaced. Raises UserError.
    """
    suffix = f".{file_format}"
    path = out if is_file_name(out, suffix) else unused_path(out, name, suffix)
    if file_format == "mp4":
        _ffmpeg()  # refuse before the work
    frames = [frame for batch in images for frame in to_pixels(batch)]
    write = {"webp": _write_webp, "gif": _write_gif, "mp4": _write_mp4}[file_format]
    with atomic_write(path) as temporary:
        write(frames, side, temporary, json.dumps(metadata))
    return path


def _enlarged(pixels: np.ndarray, side: int) -> Image.Image:
    side = enlarged_side(len(pixels), side)
    return from_pixels(pixels).convert("RGB").resize((side, side), Image.Resampling.BICUBIC)


def _write_webp(frames: list[np.ndarray], side: int, path: Path, metadata: str) -> None:
    exif = Image.Exif()
    exif[EXIF_DESCRIPTION] = metadata
    pictures = [_enlarged(pixels, side) for pixels in frames]
    # Every frame is a key frame (kmin, kmax): of differences to the frame before, blocks remain.
    _write(pictures, path, "webp", quality=WEBP_QUALITY, method=4, kmin=0, kmax=1, exif=exif)


def _write_gif(frames: list[np.ndarray], side: int, path: Path, metadata: str) -> None:
    # A palette of its own for each frame: one palette for all leaves contour lines, which flicker.
    # No dithering: its pattern moves from frame to frame, and the file becomes several times as large.
    median_cut, none = Image.Quantize.MEDIANCUT, Image.Dither.NONE
    reduced = [_enlarged(pixels, side).quantize(PALETTE_COLORS, median_cut, dither=none) for pixels in frames]
    _write(reduced, path, "gif", comment=metadata.encode())


def _write(pictures: list[Image.Image], path: Path, file_format: str, **options: Any) -> None:
    first, *others = pictures
    first.save(path, file_format, save_all=True, append_images=others, duration=FRAME_MILLISECONDS, loop=0, **options)


def _write_mp4(frames: list[np.ndarray], side: int, path: Path, metadata: str) -> None:
    ffmpeg = _ffmpeg()
    writer = ffmpeg.write_frames(
        str(path),
        _enlarged(frames[0], side).size,
        fps=FRAMES_PER_SECOND,
        quality=8,
        macro_block_size=2,
        output_params=["-metadata", f"comment={metadata}", "-f", "mp4"],
    )
    writer.send(None)
    for pixels in frames:
        writer.send(_enlarged(pixels, side).tobytes())
    writer.close()
    try:  # the program reports no error when its disk is full
        written, _ = ffmpeg.count_frames_and_secs(str(path))
    except RuntimeError:
        written = 0
    if written != len(frames):
        raise OSError(f"ffmpeg wrote {written} of {len(frames)} frames")


def _ffmpeg() -> Any:
    try:
        import imageio_ffmpeg
    except ImportError as error:
        raise UserError(
            "an MP4 needs the extra 'video': install it with pip install -e '.[video]', or choose webp or gif."
        ) from error
    return imageio_ffmpeg
