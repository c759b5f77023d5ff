"""Find samples that copy training images: a rule on the largest difference to the nearest training image."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from nvae.data.images import to_float
from nvae.system.memory_maps import chunks
from nvae.system.progress import Progress, track

SMALLEST, SIDE = 4, 32  # smaller and larger images are compared at these sizes
FINE = 0.08  # the largest difference of a copy in luma, of means over windows of 3x3 pixels
COARSE = 0.025, 0.06, 0.06  # the same in Y, Cb and Cr, of means over windows of a quarter of the side
CONTRAST = 0.5  # the root mean square difference of a copy, over the standard deviation of the training image
CELLS = 10  # side of the images that the search for the nearest training image compares
CHUNK = 500  # training images compared at once
SAMPLES = 500  # samples compared at once
YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))  # JFIF, ITU-R BT.601


@dataclass(frozen=True)
class Copies:
    """The nearest training image of every sample, and how far from it the sample is."""

    difference: Tensor  # (N,), over the largest difference of a copy: below 1 for copies, 0 for equal thumbnails
    nearest: Tensor  # (N,), indices of training images

    @property
    def count(self) -> int:
        """The number of copies."""
        return int((self.difference < 1).sum())

    @property
    def equal(self) -> int:
        """The number of copies without any difference."""
        return int((self.difference == 0).sum())

    def most_alike(self, count: int) -> list[int]:
        """Return the samples with the smallest differences, the smallest first."""
        return self.difference.argsort(stable=True)[:count].tolist()


def thumbnails(images: Tensor) -> Tensor:
    """Return images (N, C, S, S) in [0, 1] as uint8 (N, C, s, s), s from 4 to 32, by means over pixels."""
    side = min(max(images.shape[-1], SMALLEST), SIDE)
    if images.shape[-1] != side:
        images = functional.interpolate(images, (side, side), mode="area")
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

    bits: of the model's images. Every sample is compared where it is, and moved by a pixel of the S x S image in each
    of eight directions. The nearest training image has the smallest mean square difference at low resolution.
    `difference` is the largest difference to that image; no other training image has an influence on it.
    """
    step = min(1.0, samples_u8.shape[-1] / training_u8.shape[-1])
    cells = torch.cat([_cells(_moved(part.float().div(255), step)) for part in samples_u8.split(SAMPLES)]).to(device)
    best = torch.full((len(cells),), torch.inf, device=device)  # squared distances
    nearest = torch.zeros(len(cells), dtype=torch.long, device=device)
    firsts = track(range(0, len(training_u8), CHUNK), "comparing with training images", progress)
    for first, part_u8 in zip(firsts, chunks(training_u8, CHUNK), strict=True):
        part = thumbnails(to_float(part_u8, "cpu", bits)).float().div(255)
        part = _cells(part[:, None, :, 1:-1, 1:-1])[:, 0].to(device)
        for start in range(0, len(cells), SAMPLES):
            rows = slice(start, start + SAMPLES)
            moved = cells[rows].flatten(0, 1)
            squares = moved.square().sum(1)[:, None] + part.square().sum(1)
            distances = squares.addmm_(moved, part.T, alpha=-2).unflatten(0, (-1, 9)).amin(1)
            values, columns = distances.min(1)
            better = values < best[rows]
            best[rows] = torch.where(better, values, best[rows])
            nearest[rows] = torch.where(better, columns + first, nearest[rows])
    nearest = nearest.cpu()
    pairs = zip(samples_u8.split(SAMPLES), nearest.split(SAMPLES), strict=True)
    images = ((a, torch.cat([thumbnails(to_float(training_u8[i : i + 1], "cpu", bits)) for i in b])) for a, b in pairs)
    return Copies(torch.cat([_difference(a.float().div(255), b.float().div(255), step) for a, b in images]), nearest)


def _difference(samples: Tensor, images: Tensor, step: float) -> Tensor:
    """Return the smallest over nine moves of the largest difference (B,) of samples and images, (B, C, s, s)."""
    if samples.shape[1] == 3:
        samples, images = (torch.einsum("dc,bchw->bdhw", torch.tensor(YCBCR), part) for part in (samples, images))
    # Between pixels, `_moved` blurs by a factor of 1 - step (1 - step) (1 - cos w) at frequency w, to second order.
    blur = step * (1 - step) / 2
    still = _filtered(images, (blur, 1 - 2 * blur, blur), (blur, 1 - 2 * blur, blur))
    differences = _moved(samples, step) - still
    window = max(1, samples.shape[-1] // 4)
    coarse = functional.avg_pool2d(differences.flatten(1, 2), window, max(1, window // 2)).abs().amax((2, 3))
    fine, details = (functional.avg_pool2d(x[:, :, 0], 3, 1, 1, count_include_pad=False) for x in (differences, still))
    contrast = details.std((2, 3), correction=0).clamp(min=1e-6)
    largest = [
        coarse.unflatten(1, (9, -1)).div(torch.tensor(COARSE[: samples.shape[1]])).amax(2),
        fine.abs().amax((2, 3)) / FINE,
        fine.square().mean((2, 3)).sqrt() / contrast / CONTRAST,
    ]
    return torch.stack(largest).amax(0).amin(1)


def _moved(images: Tensor, step: float) -> Tensor:
    """Move images (B, C, s, s) by `step` pixels, at most 1, in 8 directions: (B, 9, C, s - 2, s - 2), first unmoved."""
    return _filtered(images, (step, 1 - step, 0.0), (0.0, 1 - step, step))


def _filtered(images: Tensor, *filters: tuple[float, float, float]) -> Tensor:
    """Filter images (B, C, s, s) by every pair of the filters and no filter: (B, n x n, C, s - 2, s - 2)."""
    size = images.shape[-1] - 2

    def along(part: Tensor, dim: int) -> list[Tensor]:
        left, middle, right = (part.narrow(dim, start, size) for start in range(3))
        return [middle, *(a * left + b * middle + c * right for a, b, c in filters)]

    return torch.stack([cell for rows in along(images, -2) for cell in along(rows, -1)], 1)


def _cells(images: Tensor) -> Tensor:
    """Return images (B, n, C, s, s) as vectors (B, n, D) of low resolution."""
    cells = functional.adaptive_avg_pool2d(images.flatten(0, 1), min(CELLS, images.shape[-1]))
    return cells.flatten(1).unflatten(0, images.shape[:2])
