"""Find samples that copy training images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nvae.data.images import to_float
from nvae.system.memory_maps import chunks
from nvae.system.progress import Progress, track

NEIGHBORS = 50
THRESHOLD = 1 / 3  # of the ratio: below, a sample is a copy; of 2,000 test images of MNIST none is below 0.42
SIDE = 32  # images are compared at this size, if they are larger
CHUNK = 500  # training images compared at once
SAMPLES = 1000  # samples compared at once


@dataclass(frozen=True)
class Copies:
    """The nearest training image of every sample.

    ratio: the distance to the nearest training image, over the mean distance to the nearest 50 (Carlini et al. 2023,
    section 5.1). About 1 for a new image, 0 for a copy.
    """

    ratio: Tensor  # (N,)
    nearest: Tensor  # (N,), indices of training images
    distance: Tensor  # (N,), root mean square over subpixels, of values in [0, 1]

    @property
    def count(self) -> int:
        """The number of copies: ratios below a third."""
        return int((self.ratio < THRESHOLD).sum())

    def most_alike(self, count: int) -> list[int]:
        """Return the samples with the smallest ratios, the smallest first."""
        return self.ratio.argsort(stable=True)[:count].tolist()


def thumbnails(images: Tensor) -> Tensor:
    """Return images (N, C, S, S) in [0, 1] as uint8 (N, C, s, s), s at most 32, by means over pixels."""
    if images.shape[-1] > SIDE:
        images = functional.interpolate(images, (SIDE, SIDE), mode="area")
    return images.mul(255).round().clamp(0, 255).byte().cpu()


def thumbnails_of(images_u8: Tensor, bits: int = 8) -> Tensor:
    """Return the thumbnails, uint8 (N, C, s, s), of uint8 images (N, C, S, S), in chunks that need little memory."""
    return torch.cat([thumbnails(to_float(part, "cpu", bits)) for part in chunks(images_u8, CHUNK)])


def find_copies(
    samples_u8: Tensor,
    training_u8: Tensor,
    bits: int = 8,
    device: torch.device | str = "cpu",
    progress: Progress = False,
) -> Copies:
    """Compare thumbnails of samples, uint8 (N, C, s, s), with all training images, uint8 (M, C, S, S).

    bits: of the model's images. The distance is Euclidean, in pixels.
    """
    count = len(training_u8)
    kept = min(NEIGHBORS, count)
    samples = (samples_u8.float().div(255).flatten(1) - 0.5).to(device)
    squares = samples.square().sum(1)
    best = torch.full((len(samples), kept), torch.inf, device=device)  # squared distances
    which = torch.zeros(len(samples), kept, dtype=torch.long, device=device)
    firsts = track(range(0, count, CHUNK), "comparing with training images", progress)
    for first, part_u8 in zip(firsts, chunks(training_u8, CHUNK), strict=True):
        part = thumbnails(to_float(part_u8, "cpu", bits)).to(device).float().div_(255).flatten(1) - 0.5
        part_squares = part.square().sum(1)
        for start in range(0, len(samples), SAMPLES):
            rows = slice(start, start + SAMPLES)
            distances = (squares[rows, None] + part_squares[None]).addmm_(samples[rows], part.T, alpha=-2)
            new, columns = distances.topk(min(kept, len(part)), largest=False)
            values = torch.cat([best[rows], new], 1)
            indices = torch.cat([which[rows], columns + first], 1)
            best[rows], order = values.topk(kept, largest=False)
            which[rows] = indices.gather(1, order)
    nearest = which[:, 0].cpu()
    # Again without the rounding of a difference of large numbers, which matters for copies.
    first_u8 = torch.cat([thumbnails(to_float(training_u8[i : i + 1], "cpu", bits)) for i in nearest.tolist()])
    pairs = zip(samples_u8.split(SAMPLES), first_u8.split(SAMPLES), strict=True)
    exact = torch.cat([(a.float() - b.float()).div_(255).flatten(1).norm(dim=1) for a, b in pairs])
    others = best.clamp(min=0).sqrt().cpu()
    others[:, 0] = exact
    mean = others.mean(1)
    ratio = torch.where(mean > 0, exact / mean, torch.zeros_like(exact))
    return Copies(ratio, nearest, exact / samples.shape[1] ** 0.5)
