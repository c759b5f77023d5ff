"""Save pictures together with the settings that made them, and read these settings back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngImageFile, PngInfo

from nvae.data.pictures.image_files import open_image, without_pillow_warnings
from nvae.system.files import atomic_write

EXIF_DESCRIPTION = 0x010E  # ImageDescription: where an animated WebP keeps its metadata, as JSON
MAX_PIXELS = 178_000_000  # of a grid that is read back


def save_picture(image: Image.Image, path: Path, metadata: Mapping[str, object]) -> Path:
    """Save an image as PNG, with one text chunk per entry of `metadata`; return the path. Raises WriteError."""
    chunks = PngInfo()
    for key, text in as_texts(metadata).items():
        chunks.add_itxt(key, text)
    with atomic_write(path) as temporary:
        image.save(temporary, "png", pnginfo=chunks)
    return path


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a PNG, GIF or WebP file of this program; an empty dictionary for any other file."""
    try:
        with without_pillow_warnings(), open_image(path, MAX_PIXELS) as image:
            if isinstance(image, PngImageFile):
                return {key: str(text) for key, text in image.text.items()}
            packed = image.info.get("comment") if image.format == "GIF" else image.getexif().get(EXIF_DESCRIPTION)
            content = json.loads(packed or "{}")
    except Exception:  # Pillow's decoders raise almost anything for a damaged file
        return {}
    return as_texts(content) if isinstance(content, dict) else {}


def as_texts(metadata: Mapping[str, object]) -> dict[str, str]:
    """Return the metadata as texts: a text unchanged but for bytes of file names that are no text, others as JSON."""
    texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()}
    return {key: text.encode(errors="backslashreplace").decode() for key, text in texts.items()}
