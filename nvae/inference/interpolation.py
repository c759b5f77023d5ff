"""Interpolate between images, and mix two images, through their noise."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from nvae.inference.arguments import check_count, check_noise, check_seeds
from nvae.inference.sampling import Sampler, seed_noise
from nvae.models.distributions import Noise
from nvae.schema.choices import Pixels
from nvae.system.errors import InvalidValueError
from nvae.system.progress import batches


def slerp(a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """Interpolate spherically (Shoemake 1985) between a and b (1, ...) at times (T,) in [0, 1]; returns (T, ...).

    Between two draws of a standard Normal every point has the typical length of a draw; points on the straight line
    between them are shorter. Where a and b are (nearly) collinear with the origin, the interpolation is linear.
    """
    x, y = a.cpu().double(), b.cpu().double()  # float32 is too coarse for angles close to pi
    lengths = x.norm().item() * y.norm().item()
    angle = math.acos(min(max((x * y).sum().item() / lengths, -1.0), 1.0)) if lengths else 0.0
    if math.sin(angle) < 1e-4:
        return lerp(a, b, times)
    times = times.to(a).view(-1, *(1,) * (a.dim() - 1))
    return (((1 - times) * angle).sin() * a + (times * angle).sin() * b) / math.sin(angle)


def lerp(a: Tensor, b: Tensor, times: Tensor) -> Tensor:
    """Interpolate linearly between a and b (1, ...) at times (T,) in [0, 1]; returns (T, ...).

    Between two draws of a standard Normal the length of a point is sqrt((1 - t)^2 + t^2) of that of a draw: 0.71 in the
    middle.
    """
    times = times.to(a).view(-1, *(1,) * (a.dim() - 1))
    return (1 - times) * a + times * b


def interpolate(
    sampler: Sampler,
    a: Noise,
    b: Noise,
    times: Tensor | int,
    pixels: Pixels = "mean",
    pixel_seed: int = 0,
    linear: bool = False,
) -> Tensor:
    """Return images (T, C, S, S) in [0, 1] between two, at times (T,) in [0, 1], or at T evenly spaced times.

    a, b: the noise of the two images, (1, *noise_shape) per latent group, from `seed_noise`, or from `encode` with
    `Sampler(model, iterations=0)`. Each group is interpolated separately, with `slerp`, or with `lerp` if linear.
    pixel_seed: seed of drawn pixels.
    """
    check_noise(sampler.model, a, count=1)
    check_noise(sampler.model, b, count=1)
    if not isinstance(times, Tensor):
        times = torch.linspace(0, 1, check_count("times", times))
    if times.dim() != 1 or len(times) == 0:
        raise InvalidValueError("times", f"shape {tuple(times.shape)}", "shape (T,), T from 1")
    parts = batches(len(times), sampler.batch_size, "interpolating", sampler.progress)
    return torch.cat([_between(sampler, a, b, times[part], pixels, pixel_seed, linear) for part in parts])


def _between(
    sampler: Sampler, a: Noise, b: Noise, times: Tensor, pixels: Pixels, pixel_seed: int, linear: bool
) -> Tensor:
    path = lerp if linear else slerp
    noise = [path(group_a, group_b, times) for group_a, group_b in zip(a, b, strict=True)]
    return sampler.top_down(noise, pixels, check_seeds([pixel_seed]) * len(times))[0]


def mix(sampler: Sampler, coarse: Noise, fine: Noise, pixels: Pixels = "mean", pixel_seed: int = 0) -> Tensor:
    """Return images (G + 1, C, S, S) in [0, 1]: number k has the first k groups of one image, the rest of another.

    coarse, fine: the noise of the two images, (1, *noise_shape) per latent group.
    """
    count = len(sampler.model.groups) + 1
    noise = []
    for index, (group_coarse, group_fine) in enumerate(zip(coarse, fine, strict=True)):
        parts = [group_coarse if kept > index else group_fine for kept in range(count)]
        noise.append(torch.cat(parts))
    return sampler.decode(noise, pixels, pixel_seed)


def walk(
    sampler: Sampler,
    seeds: Sequence[int],
    frames: int,
    pixels: Pixels = "mean",
    pixel_seed: int = 0,
    linear: bool = False,
) -> Iterator[Tensor]:
    """Yield images (B, C, S, S) in [0, 1], `frames` in all, from seed to seed and back to the first, in equal steps.

    linear: as in `interpolate`.
    """
    seeds = check_seeds(seeds)
    positions = torch.arange(check_count("frames", frames), dtype=torch.float64) * len(seeds) / frames
    noise = [seed_noise(sampler.model, [seed]) for seed in (*seeds, seeds[0])]
    for leg, (a, b) in enumerate(zip(noise[:-1], noise[1:], strict=True)):
        times = positions[(positions >= leg) & (positions < leg + 1)] - leg
        for part in batches(len(times), sampler.batch_size):
            yield _between(sampler, a, b, times[part], pixels, pixel_seed, linear)
