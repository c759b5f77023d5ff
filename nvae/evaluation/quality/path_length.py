"""Perceptual path length, and how far an image moves with the noise of each latent group."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nvae.evaluation.likelihood import Estimate
from nvae.evaluation.quality.features import describe
from nvae.inference.arguments import check_count
from nvae.inference.sampling import Sampler
from nvae.models.distributions import Noise
from nvae.schema.choices import Pixels
from nvae.system.errors import InvalidValueError
from nvae.system.progress import batches
from nvae.system.seeds import seeded

EPSILON = 0.01  # of the way from one noise to another
PERCENTILES = (0.01, 0.99)
MOVED_IMAGES = 64
ANGLE = 0.05  # of a movement, in radians
# Images (B, C, S, S) in [0, 1] twice to squared distances (B,) on the CPU. LPIPS is a sum of squares already.
Distance = Callable[[Tensor, Tensor], Tensor]


class NamedDistance(NamedTuple):
    """A distance with a name, and a key that identifies the distance with its weights."""

    name: str
    key: str
    function: Distance


def moving_groups(groups: int, which: str | int) -> list[int]:
    """Return the latent groups that move: `which` is "top", the first group; "all"; or the number of one, from 1."""
    if which == "all":
        return list(range(groups))
    if which == "top":
        return [0]
    return [check_count("the latent group", which, 1, groups) - 1]


def squared_distance(features: Callable[[Tensor], Tensor]) -> Distance:
    """Return the squared distance of features, summed over dimensions."""

    def distance(a: Tensor, b: Tensor) -> Tensor:
        return (features(a).double() - features(b).double()).square().sum(1)

    return distance


def path_lengths(
    sampler: Sampler,
    distances: Sequence[NamedDistance],
    pairs: int,
    groups: Sequence[int],
    epsilon: float = EPSILON,
    pixels: Pixels = "mean",
    seed: int = 0,
    key: Mapping[str, Any] | None = None,
) -> dict[str, Estimate]:
    """Measure path lengths in the noise (Karras et al. 2019, section 4.1), for each of the distances.

    A path of `groups` goes from one draw a of noise to another b: cos(t pi / 2) a + sin(t pi / 2) b, which has the law
    of a draw for every t. t is uniform. The noise of all other groups is one more draw, and stays. The length is
    E d(x(t), x(t + epsilon)) / epsilon^2 of squared distances d, without the pairs below percentile 1 or above 99.
    epsilon: from 0.001 to 0.1. Smaller steps vanish in the rounding of float32. key: identifies the sampler; with
    it, finished lengths are kept on the disk (`describe`). Returns the lengths by the names of the distances.
    """
    check_count("pairs", pairs, 2)
    if not 1e-3 <= epsilon <= 0.1:
        raise InvalidValueError("epsilon", epsilon, "a number from 0.001 to 0.1")

    def make(part: slice) -> Tensor:
        """Return both images of each pair, (B, 2, C, S, S)."""
        numbers = range(part.start, part.stop)
        steps = [_step(sampler.model.noise_shapes, number, groups, epsilon, seed) for number in numbers]
        # All noise at t, then all at t + epsilon.
        noise = [torch.stack(group, 1).flatten(0, 1).to(sampler.model.device) for group in zip(*steps, strict=True)]
        images = sampler.top_down(noise, pixels, 2 * list(numbers))[0]
        return torch.stack(images.chunk(2), 1)

    def squared_speed(distance: Distance) -> Callable[[Tensor], Tensor]:
        return lambda images: distance(images[:, 0], images[:, 1]).double() / epsilon**2

    functions = {distance.key: squared_speed(distance.function) for distance in distances}
    step, keep = max(1, sampler.batch_size // 2), key is not None
    all_of_key = {**(key or {}), "path of groups": list(groups), "epsilon": epsilon, "pixels": pixels, "seed": seed}
    values = describe(pairs, make, functions, all_of_key, "path lengths", sampler.progress, keep, step).values
    return {distance.name: trimmed_mean(values[distance.key]) for distance in distances}


def trimmed_mean(values: Tensor) -> Estimate:
    """Return the mean of the values (N,) between percentiles 1 and 99, and its standard error."""
    low = torch.quantile(values, PERCENTILES[0], interpolation="lower")
    high = torch.quantile(values, PERCENTILES[1], interpolation="higher")
    return Estimate.of(values[(values >= low) & (values <= high)])


def _step(shapes: Sequence[tuple[int, ...]], number: int, groups: Sequence[int], epsilon: float, seed: int) -> Noise:
    """Return the noise of pair `number` at t and at t + epsilon, (2, *shape) for each shape of a group's noise."""
    generator = seeded(seed, "path length", number)
    t = torch.rand((), generator=generator, dtype=torch.float64).item() * (1 - epsilon)
    angles = (t * math.pi / 2, (t + epsilon) * math.pi / 2)
    noise = []
    for index, shape in enumerate(shapes):
        a = torch.randn(shape, generator=generator)
        b = torch.randn(shape, generator=generator)
        noise.append(torch.stack([_on_arc(a, b, angle) if index in groups else a for angle in angles]))
    return noise


def _on_arc(a: Tensor, b: Tensor, angle: float) -> Tensor:
    return (math.cos(angle) * a.double() + math.sin(angle) * b.double()).float()


def movement_per_group(
    sampler: Sampler, images: int = MOVED_IMAGES, pixels: Pixels = "mean", seed: int = 0
) -> list[float]:
    """Return, for each latent group, how far an image moves per unit of the group's noise.

    The noise of one group turns by a small angle to another draw of noise, so that every number of the noise changes
    by about the angle, in standard deviations. The result is the root mean square change of a subpixel, of values in
    [0, 1], over the angle: the first-order change for a change of 1.
    """
    model = sampler.model
    sums = [0.0] * len(model.groups)
    for part in batches(images, sampler.batch_size, "movement per group", sampler.progress):
        numbers = range(part.start, part.stop)
        base, other = _draws(sampler, numbers, seed, "a"), _draws(sampler, numbers, seed, "b")
        seeds = list(numbers)
        unmoved, output = sampler.top_down(base, pixels, seeds, return_states=True)
        for index in range(len(model.groups)):
            moved = list(base)
            moved[index] = math.cos(ANGLE) * base[index] + math.sin(ANGLE) * other[index]
            changed = sampler.top_down(moved, pixels, seeds, start=output.states[index])[0]
            sums[index] += (changed - unmoved).cpu().double().square().mean((1, 2, 3)).sum().item()
    return [math.sqrt(total / images) / ANGLE for total in sums]


def _draws(sampler: Sampler, numbers: range, seed: int, purpose: str) -> Noise:
    generators = [seeded(seed, f"movement {purpose}", number) for number in numbers]
    return [
        torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(sampler.model.device)
        for shape in sampler.model.noise_shapes
    ]
