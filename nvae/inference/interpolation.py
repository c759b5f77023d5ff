"""Ways from one image to another, and images mixed of two, through their noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nvae.inference.sampling import PASS_IMAGES, Noise, Pixels, Temperature, decode, noise_of
from nvae.models.hierarchy import HierarchicalVAE


def slerp(a: Tensor, b: Tensor, t: Tensor) -> Tensor:
    """Spherical linear interpolation (Shoemake 1985): a and b (1, ...) at the times t (T,) from 0 to 1, (T, ...).

    Between two draws of a standard Normal every point has a draw's typical length, which on the straight line between
    them is lost. Where a and b (nearly) lie on one line with the origin, the way is the straight one.
    """
    t = t.to(a).view(-1, *(1,) * (a.dim() - 1))
    x, y = a.cpu().double(), b.cpu().double()  # in float32 an angle of nearly pi is not known well enough
    lengths = x.norm().item() * y.norm().item()
    angle = math.acos(min(max((x * y).sum().item() / lengths, -1.0), 1.0)) if lengths else 0.0
    if math.sin(angle) < 1e-4:
        return (1 - t) * a + t * b
    return (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / math.sin(angle)


def interpolate(
    model: HierarchicalVAE,
    a: Noise,
    b: Noise,
    times: Tensor,
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
    pixel_seed: int = 0,
) -> Tensor:
    """Images (T, C, H, W) in [0, 1] between two of noise a and b, (1, L, H, W) per group, at times (T,) from 0 to 1.

    pixels, pixel_seed: as in `decode`, the same seed for all images.
    """
    images = []
    for part in times.split(PASS_IMAGES):
        noise = [slerp(of_a, of_b, part) for of_a, of_b in zip(a, b, strict=True)]
        images.append(decode(model, noise, temperature, pixels, [pixel_seed] * len(part)))
    return torch.cat(images)


def mix(
    model: HierarchicalVAE,
    coarse: Noise,
    fine: Noise,
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
    pixel_seed: int = 0,
) -> Tensor:
    """Images (G + 1, C, H, W) in [0, 1] with the noise of one at the first 0, 1, ..., G groups, of another at the rest.

    coarse, fine: (1, L, H, W) per group, as `encode` or `noise_of` give it. pixels, pixel_seed: as in `interpolate`.
    """
    count = len(model.groups) + 1
    noise = []
    for index, (from_coarse, from_fine) in enumerate(zip(coarse, fine, strict=True)):
        taken = (torch.arange(count) > index).to(from_coarse.device)[:, None, None, None]
        noise.append(torch.where(taken, from_coarse, from_fine))
    return decode(model, noise, temperature, pixels, [pixel_seed] * count)


def walk(
    model: HierarchicalVAE,
    seeds: Sequence[int],
    frames: int,
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
) -> Iterator[Tensor]:
    """Images (B, C, H, W) in [0, 1], `frames` in all, from seed to seed and back to the first, at constant speed."""
    noise = [noise_of(model, [seed]) for seed in (*seeds, seeds[0])]
    places = torch.arange(frames, dtype=torch.float64) * len(seeds) / frames
    for leg, (a, b) in enumerate(zip(noise[:-1], noise[1:], strict=True)):
        times = places[(places >= leg) & (places < leg + 1)] - leg
        for part in times.split(PASS_IMAGES) if len(times) else ():
            yield interpolate(model, a, b, part, temperature, pixels, seeds[0])
