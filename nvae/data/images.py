"""Data sets as uint8 tensors, and the operations that turn them into a model's input."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from nvae.data.cache import new_images
from nvae.system.memory_maps import chunks, release_pages

FINGERPRINT_BYTES = 2**30
CHUNK = 256  # images converted at once: a whole data set as float32 could exceed the memory


@dataclass(frozen=True)
class Data:
    """A data set, split into disjoint parts. `warnings` holds sentences for the user, for example on bad files.

    A part may be larger than the memory: a tensor in a memory-mapped file. Read all images with `chunks` of
    `memory_maps.py`, and make copies with `new_images` of `cache.py`.
    """

    training: Tensor  # uint8 (N, C, S, S)
    validation: Tensor  # uint8 (N, C, S, S)
    test: Tensor | None = None  # uint8 (N, C, S, S); None where the validation part is all that is kept from training
    warnings: tuple[str, ...] = ()
    report: str = ""  # a text on every picture that was left out or changed, for data_report.txt
    validation_is_test: bool = False  # whether the validation part is the test images that the publisher names so
    recipe: str = ""  # of images that the program draws: what they depend on beside the version of Pillow

    @cached_property
    def fingerprint(self) -> str:
        """A digest of the images for training and validation (evenly spaced ones if a part exceeds a gigabyte)."""
        return images_digest(self.training, self.validation)

    @property
    def fingerprints(self) -> tuple[str, ...]:
        """The digests by which a checkpoint may know these images: of their recipe, if there is one, and the pixels."""
        if not self.recipe:
            return (self.fingerprint,)
        return (hashlib.blake2b(self.recipe.encode(), digest_size=16).hexdigest(), self.fingerprint)

    def title(self, part: str) -> str:
        """Return what the images of a part are: "validation images", for example."""
        is_test = part == "validation" and self.validation_is_test
        return "test images (the validation part)" if is_test else f"{part} images"

    def map(self, function: Callable[[Tensor], Tensor]) -> Data:
        """Apply a function of uint8 images to every part."""
        test = None if self.test is None else function(self.test)
        return replace(self, training=function(self.training), validation=function(self.validation), test=test)


def images_digest(*parts: Tensor) -> str:
    """Return 32 hexadecimal digits that identify uint8 images (N, C, S, S), of large parts evenly spaced images."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(repr(tuple(part.shape)).encode())
        step = part.numel() // FINGERPRINT_BYTES + 1
        for chunk in chunks(part[::step], CHUNK):
            digest.update(np.ascontiguousarray(chunk.numpy()).data)
    return digest.hexdigest()


def to_float(images_u8: Tensor, device: torch.device | str, bits: int = 8) -> Tensor:
    """Convert uint8 (B, C, S, S) to float32 in [0, 1] on a device, channels last.

    With `bits` b below 8, x becomes floor(255 x / 2^(8 - b)) / (2^b - 1), one of 2^b values (NVAE's `num_x_bits`).
    """
    images_u8 = images_u8.to(device, memory_format=torch.channels_last)
    if bits < 8:
        images_u8 = images_u8 >> (8 - bits)  # not in place: the tensor may be the caller's
    return images_u8.float().div_(2**bits - 1)


def with_bits(images: Tensor, bits: int, target_bits: int) -> Tensor:
    """Return images (B, C, S, S) of 2^bits values in [0, 1] with 2^target_bits values, as `to_float` makes them."""
    if target_bits == bits:
        return images
    return ((images * (2**bits - 1)).round() / 2 ** (bits - target_bits)).floor() / (2**target_bits - 1)


def flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Flip each of the images (B, C, S, S) horizontally with probability 1/2, independently of the others.

    Random numbers are drawn on the generator's device, so a CPU generator flips the same images on any device.
    """
    flipped = torch.rand(len(images), generator=generator, device=generator.device) < 0.5
    return torch.where(flipped.to(images.device)[:, None, None, None], images.flip(-1), images)


def random_crop(images: Tensor, margin: int, generator: torch.Generator) -> Tensor:
    """Move each of the images (B, C, S, S) by up to `margin` pixels in both directions, below S; edges are reflected.

    The same as padding by `margin` and cropping at a random place. Random numbers are drawn as in `flip`.
    """
    batch, size = len(images), images.shape[-1]
    shifts = torch.randint(-margin, margin + 1, (2, batch, 1), generator=generator, device=generator.device)
    places = shifts.to(images.device) + torch.arange(size, device=images.device)  # (2, B, S), of rows and columns
    rows, columns = (size - 1) - ((size - 1) - places.abs()).abs()
    every = torch.arange(batch, device=images.device)[:, None, None]
    moved = images.movedim(1, -1)[every, rows[:, :, None], columns[:, None, :]]  # (B, S, S, C)
    return moved.movedim(-1, 1)


def dequantize(images: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Add uniform noise to images (B, C, S, S) of 2^bits values in [0, 1]: value number v becomes (v + u) / 2^bits.

    With u from [0, 1), the mean over u of log p of a density p on [0, 1], minus bits x ln 2 per subpixel, is at most
    the log probability of the value, the integral of p over its bin (Theis et al. 2016). Random numbers are drawn as
    in `flip`.
    """
    noise = torch.rand(images.shape, generator=generator, device=generator.device)
    return ((images * (2**bits - 1)).round() + noise.to(images.device)) / 2**bits


def binarize(images: Tensor, generator: torch.Generator) -> Tensor:
    """Draw subpixels 0 or 1 from images (B, C, S, S) in [0, 1], whose values are the probabilities of 1.

    Every call draws new values: dynamic binarization (Salakhutdinov and Murray 2008; Burda et al. 2016). Random
    numbers are drawn on the generator's device, as in `flip`.
    """
    noise = torch.rand(images.shape, generator=generator, device=generator.device)  # in [0, 1): 1 always stays 1
    return (images > noise.to(images.device)).to(images.dtype)


def to_pixels(images: Tensor) -> np.ndarray:
    """Clamp images (N, C, S, S) to [0, 1] and convert them to uint8 (N, S, S, C)."""
    return images.detach().float().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def resize(images_u8: Tensor, size: int) -> Tensor:
    """Resample uint8 (N, C, H, W) to (N, C, size, size). Images of that size are returned as they are."""
    if images_u8.shape[2:] == (size, size):
        return images_u8

    def resample(part: Tensor) -> Tensor:
        part = functional.interpolate(part.float(), (size, size), mode="bicubic", antialias=True, align_corners=False)
        return part.round_().clamp_(0, 255)

    return map_chunks(resample, images_u8, (images_u8.shape[1], size, size))


def to_grayscale(images_u8: Tensor) -> Tensor:
    """Convert uint8 (N, 3, H, W) to (N, 1, H, W), the luma of ITU-R BT.601."""
    weights = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    shape = (1, *images_u8.shape[2:])
    return map_chunks(lambda part: (part * weights).sum(1, keepdim=True).round_(), images_u8, shape)


def map_chunks(function: Callable[[Tensor], Tensor], images_u8: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Apply a function from (B, ...) to integer values (B, *shape) to chunks of uint8 (N, ...); returns (N, *shape)."""
    result = new_images(len(images_u8), *shape)
    for source, target in zip(chunks(images_u8, CHUNK), result.split(CHUNK), strict=True):
        target.copy_(function(source))
    return result


def select(images_u8: Tensor, indices: Tensor) -> Tensor:
    """Return a copy of the images (N, ...) with these indices, (B, ...)."""
    result = new_images(len(indices), *images_u8.shape[1:])
    for chosen, target in zip(indices.split(CHUNK), result.split(CHUNK), strict=True):
        target.copy_(images_u8[chosen])
        release_pages()
    return result
