"""What every data set becomes: uint8 pixels (N, C, S, S), so that a batch is an index operation."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional

FINGERPRINT_BYTES = 2**30
HOW_TO_SAY = "(--set dataset.path=FOLDER; of evaluate: --path FOLDER)"
CHUNK = 256  # images at a time, where a whole set as floating-point numbers could be too large


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


def to_network(pixels: Tensor, device: torch.device | str, bits: int = 8) -> Tensor:
    """uint8 (B, C, S, S) to float32 in [0, 1] on a device, channels last.

    With `bits` b below 8, x becomes floor(255 x / 2^(8 - b)) / (2^b - 1), one of 2^b values (NVAE's `num_x_bits`).
    """
    pixels = pixels.to(device, memory_format=torch.channels_last)
    if bits < 8:
        pixels = pixels >> (8 - bits)  # not in place: these may be the caller's own
    return pixels.float().div_(2**bits - 1)


def flipped(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S), each turned round horizontally with probability one half, independently of the others.

    Drawn on the generator's device: a generator of the CPU turns the same images round on any device.
    """
    turned = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(turned.to(images.device)[:, None, None, None], images.flip(-1), images)


def binarized(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images (B, C, S, S) in [0, 1] to subpixels 0 or 1, drawn with their values as the probabilities of 1.

    Dynamic binarization (Salakhutdinov and Murray 2008; Burda et al. 2016): anew at every call. Drawn on the
    generator's device, as in `flipped`.
    """
    noise = torch.rand(images.shape, generator=generator, device=generator.device)  # never 1, so that 1 stays 1
    return (images > noise.to(images.device)).to(images.dtype)


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


def resized(images: Tensor, size: int) -> Tensor:
    """uint8 (N, C, H, W) to (N, C, size, size), resampled unless they are of that size."""
    if images.shape[2:] == (size, size):
        return images

    def resample(part: Tensor) -> Tensor:
        part = functional.interpolate(part.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
        return part.round_().clamp_(0, 255)

    return in_chunks(resample, images, (images.shape[1], size, size))


def gray(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) to (N, 1, H, W): luma of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    return in_chunks(lambda part: (part * weights).sum(1, keepdim=True).round_(), images, (1, *images.shape[2:]))


def in_chunks(change: Callable[[Tensor], Tensor], images: Tensor, shape: tuple[int, ...]) -> Tensor:
    """uint8 images (N, ...) to uint8 (N, *shape), `change` taking some, (B, ...), to whole numbers (B, *shape)."""
    result = images.new_empty((len(images), *shape))
    for part, place in zip(images.split(CHUNK), result.split(CHUNK), strict=True):
        place.copy_(change(part))
    return result
