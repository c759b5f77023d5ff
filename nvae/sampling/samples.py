"""Samples from a model: one seed, one image."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nvae.model.hierarchy import FromNoise, FromPosterior, HierarchicalVAE
from nvae.seeds import seeded

PASS_IMAGES = 32


def noise_of(model: HierarchicalVAE, seeds: Sequence[int]) -> list[Tensor]:
    """The noise of some images, one (B, L, H, W) per latent group, top group first.

    The noise of an image depends on its seed alone: not on the others, the device or the temperature.
    """
    generators = [seeded(seed, "sample") for seed in seeds]
    device = model.constant.device
    return [
        torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(device)
        for shape in model.noise_shapes
    ]


@torch.no_grad()
def sample(model: HierarchicalVAE, seeds: Sequence[int], temperature: float | Sequence[float] = 1.0) -> Tensor:
    """The mean images (B, C, H, W) in [0, 1] that a model in eval mode makes of some seeds at a temperature."""
    images = []
    for start in range(0, len(seeds), PASS_IMAGES):
        noise = noise_of(model, seeds[start : start + PASS_IMAGES])
        images.append(model.top_down(FromNoise(noise, temperature), len(noise[0])).pixels.mean().clamp(0, 1))
    return torch.cat(images)


@torch.no_grad()
def reconstruct(model: HierarchicalVAE, images: Tensor) -> Tensor:
    """The mean images (B, C, H, W) in [0, 1] of the posterior's means, from images (B, C, H, W) in [0, 1]."""
    posterior = FromPosterior(model.bottom_up(images), noise=model.no_noise(len(images)))
    return model.top_down(posterior, len(images)).pixels.mean().clamp(0, 1)
