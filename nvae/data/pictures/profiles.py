"""Color profiles (ICC) of pictures: colors become those of sRGB."""

from __future__ import annotations

from functools import lru_cache
from io import BytesIO

import numpy as np
from PIL import Image, ImageCms

MODES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}  # of Pillow, by the color space of a profile
SAME = 2  # the largest difference of 8-bit values by which a profile counts as sRGB


class ProfileError(ValueError):
    """A color profile that is damaged, or of another kind of picture."""


def to_srgb(image: Image.Image) -> Image.Image:
    """Convert a picture of 8 bits with a color profile to sRGB, its gray tones to those of sRGB; transparency stays.

    A picture without a profile, with that of sRGB, or with one that cannot be used is returned as it is.
    """
    try:
        transform = profile_transform(image)
    except ProfileError:
        return image
    if transform is None:
        return image
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    mode = _mode(image)
    colors = transform.apply(image.convert("RGBA").convert(mode) if alpha else image.convert(mode))
    colors = colors.convert("L") if mode == "L" else colors
    if alpha:
        colors.putalpha(alpha)
    return colors


def profile_transform(image: Image.Image) -> ImageCms.ImageCmsTransform | None:
    """Return what converts the colors of a picture to sRGB; None where they are of sRGB, or have no profile.

    None for pictures of more than 8 bits too, whose values are scaled, and of the mode LAB, whose colors are absolute.
    Raises ProfileError for a profile that cannot be used.
    """
    profile = image.info.get("icc_profile")
    if not profile or image.mode in ("LAB", "I", "F") or image.mode.startswith("I;"):
        return None
    return _transform(profile, _mode(image))


def _mode(image: Image.Image) -> str:
    return "L" if image.mode in ("1", "L", "LA") else "CMYK" if image.mode == "CMYK" else "RGB"


@lru_cache(maxsize=64)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        if MODES.get(source.profile.xcolor_space.strip()) != mode:
            raise ProfileError("of another kind of picture")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except Exception as error:  # of Pillow, or a Pillow that was built without color management
        raise ProfileError(str(error)) from error
    if mode == "CMYK":
        return transform
    steps = np.arange(0, 256, 17, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), axis=-1).reshape(64, 64, 3)
    colors = Image.fromarray(grid if mode == "RGB" else np.arange(256, dtype=np.uint8)[None])
    difference = np.asarray(transform.apply(colors), np.int16) - np.asarray(colors.convert("RGB"), np.int16)
    return transform if np.abs(difference).max() > SAME else None
