"""Images from noise, noise from images: one seed, one image.

The noise of an image, one (B, L, H, W) per latent group with the top group first, is what every tool plays with: the
prior's Normals turn it into latents on the way down. Seeds give noise, and so do pictures, through the posterior.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor
from tqdm import tqdm

from nvae.errors import UserError
from nvae.models.hierarchy import FromNoise, FromPosterior, HierarchicalVAE, LatentSource, PerGroup, TopDownOutput
from nvae.seeds import seeded

PASS_IMAGES = 32

Noise = list[Tensor]
Pixels = Literal["mean", "most_likely", "sample"]  # what is shown of p(x | z)
Temperature = float | Sequence[float]  # for all latent groups, or one per group, the top group first


def per_group(model: HierarchicalVAE, per_scale: Sequence[float], what: str) -> float | list[float]:
    """One number as it is; one per scale, the coarsest first, as one per latent group. Raises UserError.

    what: what the numbers are called in the message, such as "temperature".
    """
    if len(per_scale) == 1:
        return per_scale[0]
    if len(per_scale) != len(model.levels):
        scales = ", ".join(f"{level.resolution}x{level.resolution}" for level in model.levels)
        raise UserError(
            f"{len(per_scale)} numbers are given as the {what}, and the model's latents have {len(model.levels)} "
            f"scales ({scales}); give one number, or one per scale, the coarsest first."
        )
    return [number for number, level in zip(per_scale, model.levels, strict=True) for _ in range(level.groups)]


def joined(values: Sequence[float], separator: str = ",") -> str:
    """Numbers as a person would type them."""
    return separator.join(f"{value:g}" for value in values)


# ----------------------------------------------------------------------------------------------- from seeds


def noise_of(model: HierarchicalVAE, seeds: Sequence[int]) -> Noise:
    """The noise of some images, one (B, L, H, W) per latent group, top group first.

    The noise of an image depends on its seed alone: not on the others, the device or the temperature.
    """
    generators = [seeded(seed, "sample") for seed in seeds]
    return [
        torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(model.device)
        for shape in model.noise_shapes
    ]


@torch.no_grad()
def decode(
    model: HierarchicalVAE,
    noise: Noise,
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
    seeds: Sequence[int] | None = None,
) -> Tensor:
    """The images (B, C, H, W) in [0, 1] of some noise, one (B, L, H, W) per latent group, from a model in eval mode.

    pixels: the mean of p(x | z), the mean of its most likely component, or a draw. seeds: of the draws, one per image.
    """
    images = []
    for start in range(0, len(noise[0]), PASS_IMAGES):
        part = [group[start : start + PASS_IMAGES] for group in noise]
        result = model.top_down(FromNoise(part, temperature), len(part[0]), mean_only=pixels != "sample")
        images.append(images_of(model, result, pixels, seeds[start : start + PASS_IMAGES] if seeds else None))
    return torch.cat(images)


def images_of(
    model: HierarchicalVAE, result: TopDownOutput, pixels: Pixels = "mean", seeds: Sequence[int] | None = None
) -> Tensor:
    """The images (B, C, H, W) in [0, 1] of a top-down pass; `pixels` and `seeds` as in `decode`."""
    if pixels == "sample":
        if seeds is None:
            raise ValueError("drawn pixels need the images' seeds")
        outputs = zip(result.parameters.split(1), seeds, strict=True)
        drawn = [model.likelihood(output).sample(seeded(seed, "pixels")) for output, seed in outputs]
        images = torch.cat(drawn)
    elif pixels in ("mean", "most_likely"):
        images = getattr(result.px_z, pixels)()
    else:
        raise ValueError(f"pixels is {pixels!r}, and can be {', '.join(get_args(Pixels))}")
    if not images.isfinite().all():
        raise UserError(
            "the images are not finite; the temperature or the noise is too strong, or the weights are damaged."
        )
    return images.clamp(0, 1)


def sample(
    model: HierarchicalVAE,
    seeds: Sequence[int],
    temperature: Temperature = 1.0,
    pixels: Pixels = "mean",
    scale_noise: Temperature = 1.0,
    progress: bool = False,
) -> Tensor:
    """The images (B, C, H, W) in [0, 1] that a model in eval mode makes of some seeds at a temperature.

    pixels: as in `decode`. scale_noise: a factor on the noise, for all latent groups or one per group.
    """
    images = []
    factors = [scale_noise] * len(model.groups) if isinstance(scale_noise, int | float) else scale_noise
    with tqdm(total=len(seeds), desc="sampling", leave=False, disable=None if progress else True, delay=1) as bar:
        for start in range(0, len(seeds), PASS_IMAGES):
            part = seeds[start : start + PASS_IMAGES]
            noise = [group * factor for group, factor in zip(noise_of(model, part), factors, strict=True)]
            images.append(decode(model, noise, temperature, pixels, part))
            bar.update(len(part))
    return torch.cat(images)


# -------------------------------------------------------------------------------------------- from pictures


@torch.no_grad()
def encode(model: HierarchicalVAE, images: Tensor) -> Noise:
    """The noise, one (B, L, H, W) per latent group, from which `decode` makes the reconstructions of some images.

    images: (B, C, H, W) in [0, 1]. The noise is (z - mu) / sigma with z the mean of the posterior and mu and sigma of
    the prior, what the prior would have to draw at temperature 1: 0 where an image is what the prior expects, and far
    beyond a standard Normal's values where it is not.
    """
    passes = []
    for part in images.split(PASS_IMAGES):
        result = model.top_down(_posterior_means(model, part), len(part), mean_only=True)
        passes.append([group.prior.to_noise(group.z) for group in result.groups.values()])
    return [torch.cat(group_value) for group_value in zip(*passes, strict=True)]


@torch.no_grad()
def reconstruct(
    model: HierarchicalVAE,
    images: Tensor,
    keep_groups: int | None = None,
    temperature: Temperature = 0.0,
    seed: int = 0,
    pixels: Pixels = "mean",
) -> Tensor:
    """The images (B, C, H, W) in [0, 1] of the posterior's means, from images (B, C, H, W) in [0, 1].

    keep_groups: z of the first so many latent groups, the top one first, comes from the posterior, the rest from the
    prior, at a temperature: at 0 its mean, above with the noise of a seed, the same for all images.
    pixels: as in `decode`; drawn pixels have that seed too.
    """
    keep = len(model.groups) if keep_groups is None else keep_groups
    noise = noise_of(model, [seed]) if is_random(temperature) else model.no_noise(1)
    found = []
    for part in images.split(PASS_IMAGES):
        posterior = _posterior_means(model, part)
        prior = FromNoise([group.expand(len(part), -1, -1, -1) for group in noise], temperature)
        choosers: list[LatentSource] = [posterior if index < keep else prior for index in range(len(model.groups))]
        result = model.top_down(PerGroup(choosers), len(part), mean_only=pixels != "sample")
        found.append(images_of(model, result, pixels, [seed] * len(part)))
    return torch.cat(found)


def is_random(temperature: Temperature) -> bool:
    """Whether noise has a say at a temperature."""
    return temperature > 0 if isinstance(temperature, int | float) else any(t > 0 for t in temperature)


def _posterior_means(model: HierarchicalVAE, images: Tensor) -> FromPosterior:
    return FromPosterior(model.bottom_up(images), noise=model.no_posterior_noise(len(images)))
