"""From images to noise and back, through the posterior."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from nvae.inference.arguments import Factors, check_count, check_images, check_seeds, per_group
from nvae.inference.sampling import BATCH_SIZE, seed_noise, to_images
from nvae.models.distributions import Noise
from nvae.models.folding import for_inference
from nvae.models.hierarchy import FromNoise, FromPosterior, HierarchicalVAE, LatentSource, PerGroup, TopDownOutput
from nvae.schema.choices import Pixels
from nvae.system.progress import Progress, batches


@torch.no_grad()
def encode(model: HierarchicalVAE, images: Tensor, batch_size: int = BATCH_SIZE, progress: Progress = False) -> Noise:
    """Return the noise, one (N, *noise_shape) per latent group, that decodes to the reconstructions of images.

    images: (N, C, S, S) in [0, 1]. z is the center of each posterior. The noise is the noise from which the prior makes
    this z at temperature 1: for Normals (mu_q - mu_p) / sigma_p, which is 0 if the two centers are equal.
    Decode with `Sampler(model, iterations=0)`. Raises InvalidValueError.
    """
    outputs = _posterior_passes(model, check_images(model, images), batch_size, progress)
    parts = [[group.prior.to_noise(group.z) for group in output.groups.values()] for output in outputs]
    return [torch.cat(group) for group in zip(*parts, strict=True)]


@torch.no_grad()
def reconstruct(
    model: HierarchicalVAE,
    images: Tensor,
    keep_groups: int | None = None,
    temperature: Factors = 0.0,
    seed: int = 0,
    pixels: Pixels = "mean",
    batch_size: int = BATCH_SIZE,
    progress: Progress = False,
) -> Tensor:
    """Return the reconstructions (N, C, S, S) in [0, 1] of images (N, C, S, S) in [0, 1], from the posteriors' centers.

    keep_groups: z of the first groups, this many, comes from the posterior, the rest from the prior (default: all from
    the posterior). A group above the scales, a context, is not counted and always comes from the posterior: with 0, the
    image shows what the context alone carries. temperature: of the prior, one number or several, as in `Sampler`; 0
    gives the prior's center. seed: of the prior's noise, the same for all images, and of drawn pixels. pixels: as in
    `Sampler.sample`. Raises InvalidValueError.
    """
    images = check_images(model, images)
    groups, above = len(model.groups), model.groups_above_scales
    counted = groups - above
    keep = above + (counted if keep_groups is None else check_count("keep_groups", keep_groups, 0, counted))
    temperatures = per_group(model, temperature, "temperature")
    noise = seed_noise(model, [seed]) if any(temperatures) else model.no_noise(1)
    network, reconstructions = for_inference(model), []
    for part in batches(len(images), check_count("batch_size", batch_size), "reconstructing", progress):
        count = len(images[part])
        posterior = _posterior_centers(network, images[part])
        prior = FromNoise([group.expand(count, *group.shape[1:]) for group in noise], temperatures)
        sources: list[LatentSource] = [posterior if index < keep else prior for index in range(groups)]
        output = network.top_down(PerGroup(sources), count, mean_only=pixels != "sample")
        reconstructions.append(to_images(network, output, pixels, check_seeds([seed]) * count))
    return torch.cat(reconstructions)


@torch.no_grad()
def pseudo_inputs(model: HierarchicalVAE, images: Tensor, batch_size: int = BATCH_SIZE) -> Tensor | None:
    """Return the images (N, C, S, S) in [0, 1] that z of the first group stands for, of images (N, C, S, S) in [0, 1].

    z is the center of each posterior. The result is None if z stands for no image. Raises InvalidValueError.
    """
    outputs = _posterior_passes(model, check_images(model, images), batch_size)
    parts = [model.groups[0].image_of(output.groups[0].z) for output in outputs]
    return None if parts[0] is None else torch.cat(parts)


def _posterior_passes(
    model: HierarchicalVAE, images: Tensor, batch_size: int, progress: Progress = False
) -> Iterator[TopDownOutput]:
    """Yield the passes of all images, a batch at a time, with z at the posteriors' centers."""
    network = for_inference(model)
    for part in batches(len(images), check_count("batch_size", batch_size), "encoding", progress):
        yield network.top_down(_posterior_centers(network, images[part]), len(images[part]), mean_only=True)


def _posterior_centers(model: HierarchicalVAE, images: Tensor) -> FromPosterior:
    return FromPosterior(model.bottom_up(images), model.no_noise(len(images), posterior=True))
