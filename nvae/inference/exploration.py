"""Explore the latent groups: resample the noise of one group, keep all other noise, and compare the images.

The tools call resampling a group a "jam". A pass starts right before z of the resampled group is sampled, from the
cached state of the unchanged image, so that nothing above the group is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nvae.inference.arguments import Factors, check_count, check_noise, check_seeds, per_group
from nvae.inference.sampling import Sampler
from nvae.models.distributions import Noise
from nvae.models.hierarchy import DecoderState, HierarchicalVAE
from nvae.schema.choices import Pixels
from nvae.system.errors import InvalidValueError
from nvae.system.progress import batches, track
from nvae.system.seeds import seeded


@dataclass(frozen=True)
class BasePoint:
    """The image to explore around, the noise that gives it, and the decoder states where later passes can start."""

    noise: Noise  # (1, *noise_shape) per latent group
    jam_noise: Noise  # the same of a group while it is jammed: other noise only if absolute
    image: Tensor  # (1, C, S, S) in [0, 1]
    states: dict[int, DecoderState]  # before each group
    pixels: Pixels  # which image of p(x | z) is shown
    pixel_seed: int  # of drawn pixels, the same for all images: they differ only where p(x | z) does
    pseudo_input: Tensor | None = None  # (1, C, S, S) in [0, 1]: the image that z of the first group stands for
    absolute: bool = False  # a jammed group has temperature 1, not that of the sampler


@torch.no_grad()
def base_point(
    sampler: Sampler, noise: Noise, pixels: Pixels = "mean", pixel_seed: int = 0, absolute: bool = False
) -> BasePoint:
    """Return the point to explore around, from the noise of one image, (1, *noise_shape) per latent group.

    The noise comes from `seed_noise`, or from `encode` with `Sampler(model, iterations=0)`.
    absolute: new noise of a group acts as at temperature 1, whatever the temperature of the sampler: for Normals, z is
    mu + sigma * noise.
    """
    check_noise(sampler.model, noise, count=1)
    image, output = sampler.top_down(noise, pixels, check_seeds([pixel_seed]), return_states=True)
    pseudo_input = sampler.model.groups[0].image_of(output.groups[0].z)
    jam_noise = [group.prior.to_noise(group.z) for group in output.groups.values()] if absolute else noise
    return BasePoint(noise, jam_noise, image, output.states, pixels, pixel_seed, pseudo_input, absolute)


def jam_sampler(sampler: Sampler, base: BasePoint, group: int) -> Sampler:
    """Return the sampler of passes in which a group is jammed."""
    return sampler.with_group_temperature(group, 1.0) if base.absolute else sampler


def resample_group(sampler: Sampler, base: BasePoint, group: int, noise: Tensor) -> Tensor:
    """Return images (K, C, S, S) in [0, 1] with other noise, (K, *noise_shape), at one group.

    All other groups keep the noise of the base point. The tools call this a jam of the group.
    """
    check_count("group", group, 0, len(base.noise) - 1)
    if noise.shape[1:] != (expected := base.noise[group].shape[1:]):
        raise InvalidValueError("noise", f"shape {tuple(noise.shape)}", f"shape (K, {', '.join(map(str, expected))})")
    sampler, images = jam_sampler(sampler, base, group), []
    for part in batches(len(noise), sampler.batch_size):
        count = len(noise[part])
        all_noise = [kept.expand(count, *kept.shape[1:]) for kept in base.noise]
        all_noise[group] = noise[part]
        start = base.states[group].repeated(count)
        images.append(sampler.top_down(all_noise, base.pixels, [base.pixel_seed] * count, start)[0])
    return torch.cat(images)


def draw_group_noise(model: HierarchicalVAE, group: int, count: int, seed: int = 0, strength: Factors = 1.0) -> Tensor:
    """Draw noise (count, *noise_shape) for one group: `strength`, a factor or several, times standard Normals.

    Draw number k depends only on the seed, the group and k. Strength 0 gives the center of the prior.
    """
    check_count("group", group, 0, len(model.groups) - 1)
    (seed,) = check_seeds([seed])
    factor = per_group(model, strength, "strength")[group]
    purpose, shape = f"jam of group {group}", model.noise_shapes[group]
    draws = [torch.randn(shape, generator=seeded(seed, purpose, draw)) for draw in range(check_count("count", count))]
    return factor * torch.stack(draws).to(model.device)


def explore(sampler: Sampler, base: BasePoint, draws: int = 1, strength: Factors = 1.0, seed: int = 0) -> list[Tensor]:
    """Resample every group in turn, `draws` times; returns images (draws, C, S, S) in [0, 1] per group."""
    model = sampler.model
    groups = track(range(len(model.groups)), "resampling groups", sampler.progress)
    return [
        resample_group(sampler, base, group, draw_group_noise(model, group, draws, seed, strength)) for group in groups
    ]


def strength_of(model: HierarchicalVAE, base: BasePoint, temperature: Factors, strength: float = 1.0) -> list[float]:
    """Return the strength per latent group that makes new noise act as at a temperature.

    For a base point from `encode`, whose sampler has temperature 1.
    """
    temperatures = per_group(model, temperature, "temperature")
    return [strength * base.states[i].prior.noise_factor(number) for i, number in enumerate(temperatures)]


def mean_change(images: Tensor, image: Tensor) -> float:
    """Return the mean absolute difference of images (K, C, S, S) from an image (1, C, S, S), both in [0, 1]."""
    return (images - image).abs().mean().item()


@dataclass(frozen=True)
class PositionEffects:
    """The effects of the positions (h, w) of one group, each resampled by itself.

    A position is a place in the image, or a coefficient of the whole image (`GroupInfo.is_spatial`).
    """

    influence: Tensor  # (h, w): the mean absolute change of the image when the position is resampled
    where: Tensor  # (S, S): the mean absolute change of every pixel, over all positions and draws
    strongest: list[tuple[int, int]]  # row and column of the positions with the largest influence
    images: Tensor  # (N, C, S, S) in [0, 1]: the image with one of the strongest positions resampled
    changes: Tensor  # (N, S, S): the mean absolute change of every pixel by each of the strongest positions
    pseudo_inputs: Tensor | None = None  # (N, C, S, S) in [0, 1]: of `images`, if z of the group stands for an image


def explore_positions(
    sampler: Sampler,
    base: BasePoint,
    group: int,
    draws: int = 4,
    strength: Factors = 1.0,
    seed: int = 0,
    keep: int = 8,
) -> PositionEffects:
    """Resample every position of a group by itself, `draws` times; keep the images of the `keep` strongest.

    A group whose noise is several draws, (N, *channels, h, w), gets a position resampled in all of them.
    """
    fresh = draw_group_noise(sampler.model, group, draws, seed, strength)
    own = base.jam_noise[group]  # (1, *channels, h, w)
    height, width = own.shape[-2:]
    shared = sampler.model.groups[group].info.shared_draws
    influence = torch.zeros(height * width)
    where = torch.zeros_like(base.image[0, 0])
    pairs = [(position, draw) for position in range(height * width) for draw in range(draws)]
    for part in batches(len(pairs), sampler.batch_size, "resampling positions", sampler.progress):
        images = resample_group(sampler, base, group, _resample_positions(own, fresh, pairs[part], shared))
        changes = (images - base.image).abs().mean(1)  # (K, S, S)
        where += changes.sum(0)
        positions = torch.tensor([position for position, _ in pairs[part]])
        influence.index_add_(0, positions, changes.mean((1, 2)).cpu())
    strongest = influence.argsort(descending=True)[: check_count("keep", keep)].tolist()
    shown = [(position, draw) for position in strongest for draw in range(draws)]
    noise = _resample_positions(own, fresh, shown, shared)
    images = resample_group(sampler, base, group, noise)
    changes = (images - base.image).abs().mean(1).unflatten(0, (len(strongest), draws)).mean(1)
    return PositionEffects(
        influence.view(height, width) / draws,
        where.cpu() / len(pairs),
        [divmod(position, width) for position in strongest],
        images[::draws],
        changes.cpu(),
        jam_sampler(sampler, base, group).pseudo_inputs(noise[::draws]) if group == 0 else None,
    )


def _resample_positions(own: Tensor, fresh: Tensor, pairs: Sequence[tuple[int, int]], shared: int) -> Tensor:
    """Repeat a group's noise (1, ..., h, w), with one position of each copy from one of the draws (K, ..., h, w).

    shared: the last draws of the noise, this many, stay as they are.
    """
    result = own.repeat(len(pairs), *(1,) * (own.dim() - 1))
    for row, (position, draw) in zip(result, pairs, strict=True):
        changed = slice(len(row) - shared)
        row[changed].flatten(-2)[..., position] = fresh[draw][changed].flatten(-2)[..., position]
    return result


def sweep(
    sampler: Sampler, base: BasePoint, group: int, frames: int, strength: Factors = 1.0, seed: int = 0
) -> Iterator[Tensor]:
    """Yield images (B, C, S, S) in [0, 1], `frames` in all, while the noise of one group moves along a closed ellipse.

    The curve leads from the group's own noise through a fresh draw to the opposite of the first, the opposite of the
    second, and back, in equal steps of the angle.
    """
    check_count("frames", frames)
    own, fresh = base.jam_noise[group], draw_group_noise(sampler.model, group, 1, seed, strength)
    for part in batches(frames, sampler.batch_size):
        angle = 2 * math.pi / frames * torch.arange(frames)[part]
        angle = angle.view(-1, *(1,) * (own.dim() - 1)).to(own)
        yield resample_group(sampler, base, group, angle.cos() * own + angle.sin() * fresh)
