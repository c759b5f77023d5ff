"""Convert a decoded picture of any size and format to a uint8 image of a model's size."""

from __future__ import annotations

import numpy as np
from PIL import ExifTags, Image, ImageOps

from nvae.data.pictures.profiles import to_srgb
from nvae.data.pictures.report import PictureError
from nvae.schema import DatasetConfig, PictureDataset

UPRIGHT = {  # EXIF orientation: how a picture is turned upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
SWAPPING = [UPRIGHT[orientation] for orientation in (5, 6, 7, 8)]  # width and height
WHITE_IS_ZERO = 0  # a value of TIFF's tag PhotometricInterpretation


def picture_keys(dataset: DatasetConfig) -> PictureDataset:
    """Return the dataset section if it has the keys of picture files, else these keys with their defaults."""
    return dataset if isinstance(dataset, PictureDataset) else PictureDataset()


def fit(
    image: Image.Image, size: int, channels: int, keys: PictureDataset | None = None, place: float = 0.5
) -> np.ndarray:
    """Convert any image to uint8 (channels, size, size).

    The first frame of an animation is turned upright, scaled to 8 bits, converted to sRGB, composited on the
    background, converted to gray or color, and made square. keys: fit, resampling, background and percentiles; default:
    the defaults. A picture of the right size keeps its values. place: of the crop, from 0 (left or top) to 1, with fit:
    crop_anywhere.
    """
    keys = keys or PictureDataset()
    image.load()
    transposition = _transposition(image)
    if is_deep(image):
        image = _to_8_bits(image, keys.percentiles)
    elif image.mode == "LAB":  # which Pillow converts to RGB alone
        image = image.convert("RGB")
    else:
        image = to_srgb(image)
    if transposition is not None:
        image = image.transpose(transposition)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, keys.background), image)
    image = _square(image.convert("L" if channels == 1 else "RGB"), size, keys, place)
    array = np.asarray(image)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def cropped(image: Image.Image, box: tuple[int, int, int, int]) -> Image.Image:
    """Return the part [left, top, width, height] of the picture turned upright. Raises PictureError if it has none."""
    left, top, width, height = box
    if _transposition(image) is not None:
        image = ImageOps.exif_transpose(image)
    if left + width > image.width or top + height > image.height:
        raise PictureError("too small", f"{image.width} x {image.height} pixels, without the part dataset.crop")
    return image.crop((left, top, left + width, top + height))


def upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height of the picture turned upright."""
    width, height = image.size
    return (height, width) if _transposition(image) in SWAPPING else (width, height)


def _transposition(image: Image.Image) -> Image.Transpose | None:
    """Return how the picture is turned upright; None for no change, and for an orientation that cannot be read."""
    try:
        return UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # Pillow's readers raise almost any exception for broken EXIF data
        return None


def is_deep(image: Image.Image) -> bool:
    """Return whether a gray picture has more than 8 bits per pixel: integers of 16 or 32 bits, or floats."""
    return image.mode in ("I", "F") or image.mode.startswith("I;")


def has_deep_colors(image: Image.Image) -> bool:
    """Return whether a picture that is not loaded yet has 16 bits per color, or gray of 16 bits with transparency.

    Pillow keeps the upper 8 bits.
    """
    return not is_deep(image) and any(";16" in str(tile[3]) for tile in getattr(image, "tile", ()))


def _to_8_bits(image: Image.Image, percentiles: tuple[float, ...] | None) -> Image.Image:
    """Scale the lowest and the highest value, or two percentiles, to 0 and 255. A constant picture becomes black.

    Infinite values become 0 or 255, and values that are no numbers become 0.
    """
    values = np.asarray(image)
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    if finite.size == 0:
        return Image.new("L", image.size)
    low, high = float(finite.min()), float(finite.max())
    if percentiles is not None:
        lower, upper = map(float, np.percentile(finite, percentiles))
        low, high = (lower, upper) if lower < upper else (low, high)  # equal where most pixels have one value
    result = np.zeros(values.shape, np.uint8)
    for row, target in zip(values, result, strict=True):  # one row in float64 at a time: pictures can be large
        row = np.nan_to_num(row.astype(np.float64), nan=low, posinf=high, neginf=low).clip(low, high)
        target[:] = np.rint((row - low) / (high - low) * 255) if low < high else 0
    tags = getattr(image, "tag_v2", {})
    inverted = tags.get(ExifTags.Base.PhotometricInterpretation) == WHITE_IS_ZERO
    scaled = Image.fromarray(255 - result if inverted else result)
    clear = image.info.get("transparency")  # one value, in a PNG file
    if isinstance(clear, int):
        scaled.putalpha(Image.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return scaled


def _square(image: Image.Image, size: int, keys: PictureDataset, place: float) -> Image.Image:
    """Resize an image of mode L or RGB to (size, size)."""
    resampling = Image.Resampling[keys.resampling.upper()]
    if keys.fit in ("crop", "crop_anywhere"):
        centering = (place, place) if keys.fit == "crop_anywhere" else (0.5, 0.5)
        return ImageOps.fit(image, (size, size), resampling, centering=centering)
    if keys.fit == "stretch":
        return image.resize((size, size), resampling)
    scale = size / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], resampling)
    padded = Image.new(image.mode, (size, size), keys.background)
    padded.paste(image, ((size - image.width) // 2, (size - image.height) // 2))
    return padded
