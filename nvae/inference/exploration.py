"""What each latent group does: jam its noise, keep all other noise, and look at what changes.

A pass starts again right before the choice at the jammed group, with what the unchanged image had come to until then,
and all jams of a group go in one batch: nothing above is computed twice.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from nvae.inference.sampling import PASS_IMAGES, Noise, Pixels, Temperature, images_of
from nvae.models.hierarchy import DecoderState, FromNoise, HierarchicalVAE, group_value
from nvae.seeds import seeded

Strength = float | Sequence[float]  # a factor on new noise, for all latent groups or one per group


@dataclass(frozen=True)
class BasePoint:
    """An image, the noise it comes from, and where passes from there can start."""

    noise: Noise  # (1, L, H, W) per latent group
    temperature: Temperature
    image: Tensor  # (C, H, W) in [0, 1]
    states: dict[int, DecoderState]  # at each group
    pixels: Pixels  # what images show of p(x | z)
    pixel_seed: int  # of drawn pixels: the same for all images, so that they differ only by their parameters


@torch.no_grad()
def base_point(
    model: HierarchicalVAE,
    noise: Noise,
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
    pixel_seed: int = 0,
) -> BasePoint:
    """Where to explore from: the noise of one image, (1, L, H, W) per group, as `noise_of` or `encode` give it."""
    mean_only = pixels != "sample"
    result = model.top_down(FromNoise(noise, temperature), 1, return_states=True, mean_only=mean_only)
    image = images_of(model, result, pixels, [pixel_seed])[0]
    return BasePoint(noise, temperature, image, result.states, pixels, pixel_seed)


@torch.no_grad()
def jammed(model: HierarchicalVAE, view: BasePoint, group: int, noise: Tensor) -> Tensor:
    """The images (K, C, H, W) in [0, 1] with other noise, (K, L, H, W), at one group and the same at all others."""
    images = []
    for part in noise.split(PASS_IMAGES):
        count = len(part)
        everywhere = [kept.expand(count, -1, -1, -1) for kept in view.noise]
        everywhere[group] = part
        start = view.states[group].repeated(count)
        source, mean_only = FromNoise(everywhere, view.temperature), view.pixels != "sample"
        result = model.top_down(source, start=start, mean_only=mean_only)
        images.append(images_of(model, result, view.pixels, [view.pixel_seed] * count))
    return torch.cat(images)


def fresh_noise(model: HierarchicalVAE, group: int, count: int, seed: int, strength: Strength = 1.0) -> Tensor:
    """Other noise for a group, (K, L, H, W), `strength` times a standard Normal's: 0 is what the prior expects."""
    purpose, shape = f"jam of group {group}", model.noise_shapes[group]
    noise = torch.stack([torch.randn(shape, generator=seeded(seed, purpose, jam)) for jam in range(count)])
    return group_value(strength, group) * noise.to(model.device)


def explore(
    model: HierarchicalVAE,
    view: BasePoint,
    jams: int = 1,
    strength: Strength = 1.0,
    seed: int = 0,
    progress: bool = False,
) -> list[Tensor]:
    """Every group jammed in turn, `jams` times: images (jams, C, H, W) in [0, 1] for each group, top group first."""
    groups = tqdm(range(len(model.groups)), "jamming", unit="group", leave=False, disable=None if progress else True)
    return [jammed(model, view, group, fresh_noise(model, group, jams, seed, strength)) for group in groups]


def mean_change(images: Tensor, image: Tensor) -> float:
    """The mean absolute difference of images (K, C, H, W) from one (C, H, W), in units of the range from 0 to 1."""
    return (images - image).abs().mean().item()


@dataclass(frozen=True)
class Positions:
    """What the positions of one group do, each jammed by itself."""

    influence: Tensor  # (h, w): the mean absolute change of the image when that position is jammed
    where: Tensor  # (H, W): the mean absolute change of every pixel, over all those jams
    strongest: list[tuple[int, int]]  # row and column of the positions with most influence
    images: Tensor  # (N, C, H, W) in [0, 1]: the image with each of these jammed once
    changes: Tensor  # (N, H, W): the mean absolute change that each of these makes


def explore_positions(
    model: HierarchicalVAE,
    view: BasePoint,
    group: int,
    jams: int = 4,
    strength: Strength = 1.0,
    seed: int = 0,
    shown: int = 8,
    progress: bool = False,
) -> Positions:
    """Every spatial position of a group jammed by itself, `jams` times; `shown`: how many of them to keep images of."""
    height, width = model.noise_shapes[group][1:]
    fresh = fresh_noise(model, group, jams, seed, strength)
    influence = torch.zeros(height * width)
    where = torch.zeros_like(view.image[0])
    every = [(position, jam) for position in range(height * width) for jam in range(jams)]
    with tqdm(
        total=len(every), desc="jamming positions", unit="jam", leave=False, disable=None if progress else True
    ) as bar:
        for first in range(0, len(every), PASS_IMAGES):
            part = every[first : first + PASS_IMAGES]
            changes = (jammed(model, view, group, _at(view.noise[group], fresh, part)) - view.image).abs().mean(1)
            where += changes.sum(0)
            influence.index_add_(0, torch.tensor([position for position, _ in part]), changes.mean((1, 2)).cpu())
            bar.update(len(part))
    strongest = influence.argsort(descending=True)[:shown].tolist()
    repeated = [(position, jam) for position in strongest for jam in range(jams)]
    images = jammed(model, view, group, _at(view.noise[group], fresh, repeated))
    changes = (images - view.image).abs().mean(1).unflatten(0, (len(strongest), jams)).mean(1)
    return Positions(
        influence.view(height, width) / jams,
        where.cpu() / len(every),
        [divmod(position, width) for position in strongest],
        images[::jams],
        changes.cpu(),
    )


def _at(noise: Tensor, fresh: Tensor, positions_and_jams: Sequence[tuple[int, int]]) -> Tensor:
    """(K, L, h, w): a group's noise (1, L, h, w) with one position of each from one of the draws (jams, L, h, w)."""
    result = noise.repeat(len(positions_and_jams), 1, 1, 1)
    for row, (position, jam) in zip(result, positions_and_jams, strict=True):
        row.flatten(1)[:, position] = fresh[jam].flatten(1)[:, position]
    return result


def sweep(
    model: HierarchicalVAE, view: BasePoint, group: int, frames: int, strength: Strength = 1.0, seed: int = 0
) -> Iterator[Tensor]:
    """Images (B, C, H, W) in [0, 1], `frames` in all, while one group's noise goes round a circle and comes back.

    The circle leads from the group's own noise through a fresh draw, `strength` times a standard Normal's, to the
    opposite of the first, the opposite of the second, and back, at constant speed.
    """
    own, other = view.noise[group], fresh_noise(model, group, 1, seed, strength)
    for part in torch.arange(frames).split(PASS_IMAGES):
        angle = (2 * math.pi / frames * part)[:, None, None, None].to(own)
        yield jammed(model, view, group, angle.cos() * own + angle.sin() * other)
