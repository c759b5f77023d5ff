"""Images from noise: one seed, one image.

The noise of an image, one (B, *noise_shape) per latent group with the top group first, determines the image: the
priors turn noise into latents in the top-down pass. Noise comes from seeds, or from images (`encode`).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from numbers import Integral
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from nvae.checkpoint import load_model
from nvae.inference.arguments import (
    USUAL_TEMPERATURE,
    Factors,
    check_choice,
    check_count,
    check_noise,
    check_seeds,
    per_group,
)
from nvae.inference.recalibration import Statistics, measure
from nvae.inference.statistics_cache import StatisticsCache
from nvae.models.distributions import Noise
from nvae.models.folding import for_inference
from nvae.models.hierarchy import DecoderState, FromNoise, HierarchicalVAE, TopDownOutput
from nvae.schema.choices import Pixels
from nvae.system.devices import choose_device
from nvae.system.errors import InvalidValueError, UserError
from nvae.system.progress import Progress, batches
from nvae.system.seeds import seeded

BATCH_SIZE = 32


def seed_noise(model: HierarchicalVAE, seeds: Sequence[int], scale: Factors = 1.0) -> Noise:
    """Draw the noise of one image per seed: one (B, *noise_shape) per latent group, top group first.

    scale: one or several factors on the noise, as the temperatures of a `Sampler`. The noise of an image depends on its
    seed alone: not on the other seeds, the device or the temperature.
    """
    generators = [seeded(seed, "sample") for seed in check_seeds(seeds)]
    factors = per_group(model, scale, "noise scale")
    return [
        factor * torch.stack([torch.randn(shape, generator=generator) for generator in generators]).to(model.device)
        for shape, factor in zip(model.noise_shapes, factors, strict=True)
    ]


def to_images(
    model: HierarchicalVAE, output: TopDownOutput, pixels: Pixels = "mean", seeds: Sequence[int] | None = None
) -> Tensor:
    """Return the images (B, C, S, S) in [0, 1] of a top-down pass.

    pixels: the mean of p(x | z), the mean of its most likely component, or a draw. seeds: of the draws, one per image.
    """
    check_choice("pixels", pixels, get_args(Pixels))
    if pixels == "sample":
        if seeds is None:
            raise InvalidValueError("seeds", None, "one seed per image, for drawn pixels")
        parameters = zip(output.parameters.split(1), seeds, strict=True)
        images = torch.cat([model.likelihood(part).sample(seeded(seed, "pixels")) for part, seed in parameters])
    else:
        images = output.px_z.mean() if pixels == "mean" else output.px_z.most_likely()
    if not images.isfinite().all():
        raise UserError(
            "the images are not finite. Use a lower temperature. If that does not help, the weights are damaged."
        )
    return images.clamp(0, 1)


class Sampler:
    """Makes images from noise at a temperature, with batch norms recalibrated to the temperature.

    The recalibration happens once, at the first use. All passes run in copies of the model, which stays as it is. Make
    a new Sampler when the weights have changed.

    temperature: one number, one per scale, the coarsest first, or one per latent group, top first. For a model with a
    context, one more number may come before those of the scales. iterations: passes of the recalibration; 0 keeps the
    statistics of training, which are right for noise from `encode`. cache: where statistics are kept between programs.
    batch_size: images per pass, which bounds the memory. progress: show progress bars. statistics: use these instead of
    a recalibration. `warnings` has sentences about a high temperature, or a recalibration that did not converge. Raises
    InvalidValueError.
    """

    def __init__(
        self,
        model: HierarchicalVAE,
        temperature: Factors = 1.0,
        iterations: int = 20,
        cache: StatisticsCache | None = None,
        batch_size: int = BATCH_SIZE,
        progress: Progress = False,
        statistics: Statistics | None = None,
    ) -> None:
        self.model, self.temperature, self.cache, self.progress = model, temperature, cache, progress
        self.group_temperatures = per_group(model, temperature, "temperature")
        self.iterations = check_count("iterations", iterations, least=0)
        self.batch_size = check_count("batch_size", batch_size)
        if statistics is not None:
            self.statistics = statistics

    @cached_property
    def statistics(self) -> Statistics | None:
        """The recalibrated statistics; None without iterations, or for a model without batch norms."""
        if self.iterations == 0:
            return None
        statistics = self.cache.find(self.group_temperatures, self.iterations) if self.cache else None
        if statistics is None:
            statistics = measure(self.model, self.group_temperatures, self.iterations, self.progress)
            if self.cache and statistics:
                self.cache.keep(self.group_temperatures, self.iterations, statistics)
        return statistics

    @cached_property
    def network(self) -> HierarchicalVAE:
        """The model with the statistics, as `for_inference` makes it."""
        return for_inference(self.model, self.statistics.buffers if self.statistics else None)

    @property
    def warnings(self) -> list[str]:
        """Warnings about the temperature and the recalibration, one sentence each."""
        high = max(self.group_temperatures)
        warnings = [f"the temperature {high:g} is far above 1."] if high > USUAL_TEMPERATURE else []
        if self.iterations == 0 or self.statistics is None:
            return warnings
        return [*warnings, *filter(None, [self.statistics.warning])]

    def with_group_temperature(self, group: int, temperature: float) -> Sampler:
        """Return a sampler with another temperature of one latent group, and the same batch-norm statistics."""
        _ = self.network  # with statistics at the temperatures of this sampler
        other = copy.copy(self)
        other.group_temperatures = [*self.group_temperatures]
        other.group_temperatures[group] = temperature
        return other

    def noise(self, seeds: Sequence[int], scale: Factors = 1.0) -> Noise:
        """Draw the noise of one image per seed, as `seed_noise`."""
        return seed_noise(self.model, seeds, scale)

    def sample(self, seeds: int | Sequence[int], pixels: Pixels = "mean", noise_scale: Factors = 1.0) -> Tensor:
        """Return the images (N, C, S, S) in [0, 1] of seeds; of an integer N: of the seeds 0, ..., N - 1.

        pixels: the mean of p(x | z), the mean of its most likely component, or a draw. noise_scale: one or several
        factors on the noise, as temperatures.
        """
        if isinstance(seeds, Integral):
            seeds = range(check_count("the number of images", seeds))
        seeds = check_seeds(seeds)
        parts = batches(len(seeds), self.batch_size, "sampling", self.progress)
        return torch.cat([self.top_down(self.noise(seeds[p], noise_scale), pixels, seeds[p])[0] for p in parts])

    def decode(self, noise: Noise, pixels: Pixels = "mean", seeds: int | Sequence[int] = 0) -> Tensor:
        """Return the images (B, C, S, S) in [0, 1] of noise, one (B, *noise_shape) per latent group.

        pixels: as in `sample`. seeds: of drawn pixels, one for all images or one per image.
        """
        check_noise(self.model, noise)
        count = len(noise[0])
        seeds = check_seeds([seeds] * count if isinstance(seeds, Integral) else seeds)
        if len(seeds) != count:
            raise InvalidValueError("seeds", f"{len(seeds)} seeds", f"one seed, or one for each of the {count} images")
        parts = batches(count, self.batch_size, "decoding", self.progress)
        return torch.cat([self.top_down([group[p] for group in noise], pixels, seeds[p])[0] for p in parts])

    @torch.no_grad()
    def pseudo_inputs(self, noise: Tensor) -> Tensor | None:
        """Return the images (B, C, S, S) in [0, 1] that z of the first group stands for; None if z is no image.

        noise: of the first group, (B, *noise_shape).
        """
        images, group = [], self.network.groups[0]
        for part in batches(len(noise), self.batch_size):
            _, prior = group.prior(self.network.initial_state(len(noise[part])))
            image = group.image_of(prior.sample(noise[part], self.group_temperatures[0]))
            if image is None:
                return None
            images.append(image)
        return torch.cat(images)

    @torch.no_grad()
    def top_down(
        self,
        noise: Noise,
        pixels: Pixels = "mean",
        seeds: Sequence[int] | None = None,
        start: DecoderState | None = None,
        return_states: bool = False,
    ) -> tuple[Tensor, TopDownOutput]:
        """Run one pass; return images (B, C, S, S) in [0, 1] and the output. start, return_states: see the model."""
        source, mean_only = FromNoise(noise, self.group_temperatures), pixels != "sample"
        output = self.network.top_down(
            source, len(noise[0]), start=start, return_states=return_states, mean_only=mean_only
        )
        return to_images(self.model, output, pixels, seeds), output


# ------------------------------------------------------------------------------------------------- of a model file


def open_sampler(
    path: str | Path,
    temperature: Factors = 1.0,
    iterations: int = 20,
    device: str | None = None,
    progress: Progress = False,
) -> Sampler:
    """Open a .checkpoint or .model file, and return the sampler of its model: `Sampler` describes the arguments.

    The recalibrated statistics are kept for the next program (`StatisticsCache`). device: by default the fastest one.
    Raises UserError.
    """
    model = load_model(path, choose_device(device))
    return open_samplers(model, path, [temperature], iterations, progress)[0]


def open_samplers(
    model: HierarchicalVAE,
    path: str | Path,
    temperatures: Sequence[Factors],
    iterations: int = 20,
    progress: Progress = False,
) -> list[Sampler]:
    """Return a sampler per temperature of a model that is open; its file is `path` (`StatisticsCache`)."""
    cache = StatisticsCache(model, path)
    return [Sampler(model, temperature, iterations, cache, progress=progress) for temperature in temperatures]
