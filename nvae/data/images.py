"""What every data set becomes: uint8 pixels (N, C, S, S), so that a batch is an index operation."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

FINGERPRINT_BYTES = 2**30


@dataclass(frozen=True)
class Data:
    """A data set, split. No image is in both parts. `notices` says what a person should know about the set."""

    training: Tensor  # uint8 (N, C, S, S)
    validation: Tensor  # uint8 (N, C, S, S)
    notices: tuple[str, ...] = ()

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the split and of its pixels (of evenly spaced images where there are more than a gigabyte)."""
        digest = hashlib.blake2b(digest_size=16)
        for part in (self.training, self.validation):
            digest.update(repr(tuple(part.shape)).encode())
            step = part.numel() // FINGERPRINT_BYTES + 1
            digest.update(np.ascontiguousarray(part[::step].numpy()))
        return digest.hexdigest()


def to_network(pixels: Tensor, device: torch.device | str) -> Tensor:
    """uint8 (B, C, S, S) to float32 in [0, 1] on a device, channels last."""
    return pixels.to(device, memory_format=torch.channels_last).float().div_(255)


def to_pixels(images: Tensor) -> np.ndarray:
    """Images (N, C, S, S), clamped to [0, 1], to uint8 (N, S, S, C)."""
    return images.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def fit(image: Image.Image, size: int, channels: int) -> np.ndarray:
    """Any picture to uint8 (channels, size, size).

    Turned upright as its camera says, laid on white where it is transparent, its shorter side resized to `size`, the
    middle of its longer side kept.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # 16 bits a pixel, which convert() would clip
        image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = ImageOps.fit(image.convert("L" if channels == 1 else "RGB"), (size, size), Image.Resampling.LANCZOS)
    pixels = np.asarray(image)
    return pixels[None] if channels == 1 else pixels.transpose(2, 0, 1)
