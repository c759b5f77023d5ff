"""Open untrusted image files safely, and read image files as a model's input."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile
from torch import Tensor

from nvae.data.images import to_float
from nvae.data.pictures.conversion import fit, is_deep, picture_keys, upright_size
from nvae.data.pictures.profiles import ProfileError, profile_transform
from nvae.data.pictures.report import PictureError
from nvae.schema import ModelConfig
from nvae.system.errors import UserError
from nvae.system.files import text_in_place_of

# The formats that Pillow decodes without other programs. EPS would start Ghostscript on the file.
FORMATS = ("PNG", "JPEG", "MPO", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
PREFIX = 16  # bytes by which Pillow recognizes a format
ARCHIVES = (b"PK\3\4", b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!")  # zip, gzip, bzip2, xz, 7z and RAR
MAX_PIXELS = 64_000_000  # resizing a decoded image of this size takes about 0.5 GB
MAX_FILE_BYTES = 2**29
CHUNK = 2**20
# Tags of TIFF 6.0: bit 0 of NewSubfileType and 2 of SubfileType say that a page is a reduced version of another page.
NEW_SUBFILE_TYPE, SUBFILE_TYPE, DNG_VERSION = 254, 255, 50706
RAW = "a camera's raw file, or a TIFF that begins with a thumbnail; convert it to PNG, JPEG or a plain TIFF"


def read_content(file: IO[bytes]) -> BytesIO:
    """Read a picture file into memory, at most MAX_FILE_BYTES.

    Raises PictureError for a file that is empty, larger, or does not begin like one of FORMATS.
    """
    prefix = file.read(PREFIX)
    if not prefix:
        raise PictureError("empty")
    _check_format(prefix)
    content = BytesIO(prefix)
    content.seek(0, 2)
    while chunk := file.read(CHUNK):
        content.write(chunk)
        if content.tell() > MAX_FILE_BYTES:
            raise PictureError("too large", f"more than {MAX_FILE_BYTES:,} bytes")
    content.seek(0)
    return content


def _check_format(prefix: bytes) -> None:
    Image.init()
    prefix = prefix.ljust(PREFIX, b"\0")
    accepts = (Image.OPEN[name][1] for name in FORMATS if name in Image.OPEN)
    accepted = [accept(prefix) for accept in accepts if accept]
    if True not in accepted:  # a text: Pillow recognizes the format, but was built without its decoder
        is_archive = prefix.startswith(ARCHIVES)
        text = "an archive; extract it" if is_archive else text_in_place_of(prefix).partition(".")[0]
        raise PictureError("not an image", text or str(next(filter(None, accepted), "")))


@contextmanager
def open_image(file: str | Path | IO[bytes] | Image.Image, max_pixels: int = MAX_PIXELS) -> Iterator[Image.Image]:
    """Open an image file whose content, not its name, is in one of FORMATS. No other program is ever started.

    file: a path, an open file, which is closed at the end, or an image, which is yielded as it is.
    max_pixels: upper limit of width times height, which bounds the memory and time per file.
    Raises OSError for a file that is not regular (a pipe would block forever), and PictureError for too many pixels and
    for a file whose first picture is only a thumbnail of the picture, as in a camera's raw files.
    """
    if isinstance(file, Image.Image):
        yield file
        return
    if isinstance(file, str | Path) and not Path(file).is_file():
        raise OSError("not a regular file")
    Image.init()
    with closing(file) if hasattr(file, "close") else nullcontext(), _opened(file, max_pixels) as image:
        width, height = image.size
        if width * height > max_pixels:
            raise PictureError("too large", f"{width} x {height} pixels, more than the limit of {max_pixels:,}")
        if isinstance(image, TiffImageFile) and _begins_with_a_thumbnail(image):
            raise PictureError("not an image", RAW)
        yield image


def _begins_with_a_thumbnail(image: TiffImageFile) -> bool:
    tags, file = image.tag_v2, image.fp
    assert file  # open until the image is loaded
    file.seek(8)
    is_cr2 = file.read(2) == b"CR"  # the raw files of Canon, which have none of the tags
    return is_cr2 or DNG_VERSION in tags or bool(tags.get(NEW_SUBFILE_TYPE, 0) & 1) or tags.get(SUBFILE_TYPE) == 2


def _opened(file: str | Path | IO[bytes], max_pixels: int) -> Image.Image:
    try:
        return Image.open(file, formats=[name for name in FORMATS if name in Image.OPEN])
    except Image.DecompressionBombError as error:  # Pillow's own limit, above every `max_pixels`
        raise PictureError("too large", f"more pixels than the limit of {max_pixels:,}") from error


@contextmanager
def without_pillow_warnings() -> Iterator[None]:
    """Silence Pillow's warnings: `open_image` has its own limit of the size, and broken metadata does no harm.

    Not thread-safe.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        yield


def read_image_files(
    paths: str | Path | Sequence[str | Path], config: ModelConfig, device: torch.device | str
) -> tuple[Tensor, list[str]]:
    """Read image files as images (N, C, S, S) in [0, 1] with a model's size, channels and keys of picture files.

    Also returns one sentence per type of change: the name of the changed file, or how many files were changed.
    Raises UserError with the name of a file that cannot be read.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    if not files:
        raise UserError("no image files: got an empty list, expected at least one file.")
    keys, images_u8 = picture_keys(config.dataset), []
    changed: dict[str, list[Path]] = defaultdict(list)
    for path in files:
        if path.is_dir():
            raise UserError(f"'{path}' is a folder, not an image file. Give the files in the folder.")
        if not path.exists():
            raise UserError(f"the image file '{path}' does not exist.")
        try:
            with without_pillow_warnings(), open_image(path, keys.max_image_pixels) as image:
                for change in _changes(image, config):
                    changed[change].append(path)
                images_u8.append(
                    torch.from_numpy(fit(image, config.input_dimension, config.image_channels, keys).copy())
                )
        except Exception as error:  # Pillow's decoders raise almost any exception for a broken file
            raise UserError(f"the image file '{path}' cannot be read: {str(error) or type(error).__name__}.") from error
    sentences = [
        f"{those[0]} was {change}" if len(those) == 1 else f"{len(those)} images were {change}"
        for change, those in changed.items()
    ]
    return to_float(torch.stack(images_u8), device, config.input_bits), sentences


def _changes(image: Image.Image, config: ModelConfig) -> list[str]:
    """Describe how `fit` changes an image."""
    size, keys = config.input_dimension, picture_keys(config.dataset)
    width, height = upright = upright_size(image)
    made_square = {"crop": "cropped", "pad": "padded", "stretch": "stretched"}[keys.fit]
    grayscale = image.mode in ("1", "L", "LA") or is_deep(image)
    shows_background = not is_deep(image) and image.has_transparency_data
    if shows_background:
        shows_background = bool(np.asarray(image.convert("RGBA"))[:, :, 3].min() < 255)
    try:
        profile = "converted from its color profile to sRGB" if profile_transform(image) else ""
    except ProfileError:
        profile = "read as sRGB, because its color profile cannot be used"
    changes = {
        profile: bool(profile),
        "rotated upright": upright != image.size,
        "scaled from its own range of values to 8 bits": is_deep(image),
        f"{made_square} to a square": width != height,
        f"resized to {size} x {size}": (min(upright) if keys.fit == "crop" else max(upright)) != size,
        f"composited on {keys.background}": shows_background,
        "converted to grayscale": config.image_channels == 1 and not grayscale,
        "converted from grayscale to color": config.image_channels == 3 and grayscale,
    }
    return [change for change, happens in changes.items() if happens]
