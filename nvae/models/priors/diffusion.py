"""The diffusion prior: a variational diffusion model (Kingma et al. 2021) as a prior over z.

z_t = alpha_t z + sigma_t n at times t in [0, 1], with alpha_t^2 = sigmoid(-gamma_t) and sigma_t^2 = sigmoid(gamma_t).
A network predicts the noise n. The bound is log p(z) >= -(L_0 + L_t + L_T), in expectation over the noise:

    L_0 = D/2 (log 2 pi + gamma_0 + 1)                        of D numbers; the expectation is known
    L_t = 1/2 E gamma'_t ||n - n_predicted||^2                over t uniform in [0, 1]
    L_T = 1/2 sum(alpha_1^2 z^2 + sigma_1^2 - log sigma_1^2 - 1)

A sample starts from z_1 ~ N(0, 1) and takes `steps` ancestral steps to t = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nvae.models.distributions import Distribution, at_least_float32, sum_per_image
from nvae.models.hierarchy import GroupInfo
from nvae.models.priors.config import NoiseSchedule, Parametrization, TopPriorConfig
from nvae.models.priors.unet import UNet
from nvae.system.seeds import seeded

LOG_2PI = math.log(2 * math.pi)


@dataclass(frozen=True)
class Schedule:
    """gamma_t, the negative log signal-to-noise ratio, from `lowest` at t = 0 to `highest` at t = 1.

    linear: in t (Kingma et al. 2021). cosine: gamma = 2 log tan(angle), the angle linear in t (Nichol and Dhariwal
    2021, with the ends of Hoogeboom et al. 2023), so that alpha_t is a cosine.
    """

    kind: NoiseSchedule
    lowest: float
    highest: float

    @property
    def _angles(self) -> tuple[float, float]:
        return math.atan(math.exp(self.lowest / 2)), math.atan(math.exp(self.highest / 2))

    def gamma(self, t: Tensor) -> Tensor:
        """Return gamma at times t, elementwise."""
        if self.kind == "linear":
            return self.lowest + (self.highest - self.lowest) * t
        first, last = self._angles
        return 2 * torch.log(torch.tan(first + (last - first) * t))

    def slope(self, t: Tensor) -> Tensor:
        """Return the derivative of gamma at times t, elementwise."""
        if self.kind == "linear":
            return torch.full_like(t, self.highest - self.lowest)
        first, last = self._angles
        return 4 * (last - first) / torch.sin(2 * (first + (last - first) * t))


class Losses(NamedTuple):
    """The terms of the bound, (B,), in nats."""

    start: Tensor  # L_0
    diffusion: Tensor  # L_t
    end: Tensor  # L_T

    @property
    def log_prob(self) -> Tensor:
        return -(self.start + self.diffusion + self.end)


class DrawnNoise(NamedTuple):
    """The parts of the noise of a posterior pass, beside the noise of z. S terms of L_t."""

    start: Tensor  # (B, *shape), of L_0; used by the published protocol alone
    diffusion: Tensor  # (S, B, *shape)
    times: Tensor  # (S, B), standard normal


class DiffusionPrior(nn.Module):
    """The network and the schedule of a diffusion prior over z of one shape (C, H, W).

    evaluation_terms: number S of terms of L_t in evaluation mode, the number of sampling steps by default; training
    mode has one. The times are stratified, t_i = (i - 1 + uniform) / S, so that the mean over the terms is an unbiased
    estimate of L_t for every S.
    bounded: z is about inside [-1, 1], and the sampler clamps its predictions of z.
    """

    def __init__(self, config: TopPriorConfig, shape: tuple[int, int, int], bounded: bool) -> None:
        super().__init__()
        self.shape, self.steps, self.bounded = shape, config.diffusion_steps, bounded
        self.evaluation_terms = self.steps
        self.parametrization: Parametrization = config.diffusion_parametrization
        self.schedule = Schedule(config.diffusion_schedule, config.diffusion_min_gamma, config.diffusion_max_gamma)
        self.unet = UNet(
            shape[0], config.unet_channels, config.unet_blocks, config.unet_attention_heads, config.unet_dropout
        )

    @property
    def info(self) -> GroupInfo:
        return GroupInfo(bound=self)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Noise of a sample: of z_1, then of every step."""
        return self.steps + 1, *self.shape

    @property
    def posterior_noise_shape(self) -> tuple[int, ...]:
        """Noise of a posterior pass, flat: of z, of L_0, of S terms of L_t, and of their S times."""
        terms = 1 if self.training else self.evaluation_terms
        return (math.prod(self.shape) * (2 + terms) + terms,)

    def split_noise(self, noise: Tensor) -> DrawnNoise:
        """Split the noise (B, M) of a posterior pass, without the part of z."""
        size = math.prod(self.shape)
        terms = (noise.shape[1] - 2 * size) // (size + 1)
        _, start, diffusion, times = noise.split([size, size, terms * size, terms], dim=1)
        return DrawnNoise(
            start.unflatten(1, self.shape),
            diffusion.unflatten(1, (terms, *self.shape)).movedim(1, 0),
            times.movedim(1, 0),
        )

    def forward(self, batch_size: int) -> DiffusionDistribution:
        return DiffusionDistribution(self)

    def predicted_noise(self, z: Tensor, t: Tensor) -> Tensor:
        """Predict the noise n in z_t (B, *shape) at times t (B,)."""
        output = at_least_float32(self.unet(z, t))
        if self.parametrization == "eps":
            return output
        gamma = self.schedule.gamma(t)[:, None, None, None]  # v = alpha n - sigma z (Salimans and Ho 2022)
        return gamma.neg().sigmoid().sqrt() * output + gamma.sigmoid().sqrt() * z

    def losses(self, z: Tensor, noise: DrawnNoise, uniform_times: bool = True) -> Losses:
        """Return the terms of the bound at z (B, *shape), with the expectation of L_0.

        uniform_times: False for t = 1/S, 2/S, ..., 1, the published evaluation. The sum over these times is a right-end
        sum of a falling function, so it is too small: no bound.
        """
        z = at_least_float32(z)
        terms = len(noise.times)
        uniform = torch.special.ndtr(noise.times) if uniform_times else torch.ones_like(noise.times)
        diffusion = z.new_zeros(len(z))
        for index, (n, u) in enumerate(zip(noise.diffusion, uniform, strict=True)):
            diffusion = diffusion + self._diffusion_term(z, n, (index + u) / terms)
        start = z.new_full((len(z),), 0.5 * math.prod(self.shape) * (LOG_2PI + self.schedule.lowest + 1))
        return Losses(start, diffusion / terms, self._end_term(z))

    def published_log_prob(self, z: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z) as published: a noisy L_0, and the times 1/S, 2/S, ..., 1. No bound. noise: (B, M)."""
        drawn = self.split_noise(noise)
        return self.losses(z, drawn, uniform_times=False)._replace(start=self.noisy_start(drawn)).log_prob

    def noisy_start(self, noise: DrawnNoise) -> Tensor:
        """Return L_0 at one draw of its noise, (B,), as the published program computes it."""
        return 0.5 * sum_per_image(LOG_2PI + self.schedule.lowest + noise.start.square())

    def _diffusion_term(self, z: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        gamma = self.schedule.gamma(t)[:, None, None, None]
        z_t = gamma.neg().sigmoid().sqrt() * z + gamma.sigmoid().sqrt() * noise
        return 0.5 * self.schedule.slope(t) * sum_per_image((noise - self.predicted_noise(z_t, t)).square())

    def _end_term(self, z: Tensor) -> Tensor:
        signal, noise = (1 / (1 + math.exp(sign * self.schedule.highest)) for sign in (1, -1))
        constant = -signal - math.log(noise)  # = noise - 1 - log noise, in float64: next to 1, a float32 loses it
        return 0.5 * sum_per_image(signal * z.square() + constant)

    def step(self, z: Tensor, index: int) -> tuple[Tensor, float]:
        """Return the mean and the standard deviation of ancestral step `index` (0 to steps - 1) from z_t.

        The step goes from t = 1 - index / steps to r = t - 1 / steps.
        """
        gamma = self._gamma(index)
        noise = self.predicted_noise(z, torch.full_like(z[:, 0, 0, 0], 1 - index / self.steps))
        predicted = (z - math.sqrt(1 / (1 + math.exp(-gamma))) * noise) * math.sqrt(1 + math.exp(gamma))
        return self.step_toward(predicted.clamp(-1, 1) if self.bounded else predicted, z, index)

    def step_toward(self, clean: Tensor, z: Tensor, index: int) -> tuple[Tensor, float]:
        """Return the mean and the standard deviation of q(z_r | z_t, z), where z at time 0 is `clean`."""
        gamma_t, gamma_r = self._gamma(index), self._gamma(index + 1)
        alpha_t, alpha_r = (1 / math.sqrt(1 + math.exp(gamma)) for gamma in (gamma_t, gamma_r))
        variance_t, variance_r = (1 / (1 + math.exp(-gamma)) for gamma in (gamma_t, gamma_r))
        ratio = alpha_t / alpha_r
        added = variance_t - ratio**2 * variance_r  # the variance of z_t given z_r
        mean = ratio * variance_r / variance_t * z + alpha_r * added / variance_t * clean
        return mean, math.sqrt(added * variance_r / variance_t)

    def _gamma(self, index: int) -> float:
        """Return gamma before step `index`."""
        return self.schedule.gamma(torch.tensor(1 - index / self.steps, dtype=torch.float64)).item()


@dataclass(frozen=True, eq=False)
class DiffusionDistribution(Distribution):
    """The distribution of a diffusion prior. Its log density is a lower bound, in expectation over the noise."""

    prior: DiffusionPrior

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Return z from noise (B, steps + 1, *shape). temperature: a factor on the variance of z_1 and of every step.

        z_0 is the sample, as in the published program: no division by alpha_0, and no noise of L_0.
        """
        factor = math.sqrt(temperature)
        z = factor * noise[:, 0]
        for index in range(self.prior.steps):
            mean, sigma = self.prior.step(z, index)
            z = mean + factor * sigma * noise[:, index + 1]
        return z

    def log_prob(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        if noise is None:
            raise ValueError("the bound of a diffusion prior needs the noise of the posterior pass")
        return self.prior.losses(z, self.prior.split_noise(noise)).log_prob

    def noise_factor(self, temperature: float) -> float:
        return math.sqrt(temperature)

    def to_noise(self, z: Tensor) -> Tensor:
        """Return noise that gives z: of a path z_1, ..., z_0 = z drawn from q(z_1, ... | z) (Wu and De la Torre 2023).

        Many noises give the same z. The draws of the path are constants, the same for every z. Along a drawn path, the
        noise has the size of a standard normal draw, and the sampler damps errors of rounding; along the path of the
        means, alpha_t z, a trained network amplifies them. Outside of the default range of gamma, rounding can be
        visible.
        """
        prior = self.prior
        draws = torch.randn(prior.noise_shape, generator=seeded(0, "path of a diffusion")).to(z)
        gamma = prior.schedule.gamma(torch.ones((), dtype=torch.float64))
        state = gamma.neg().sigmoid().sqrt().item() * z + gamma.sigmoid().sqrt().item() * draws[0]
        noise = [state]
        for index in range(prior.steps):
            mean, sigma = prior.step(state, index)
            state = prior.step_toward(z, state, index)[0] + sigma * draws[index + 1] if index + 1 < prior.steps else z
            noise.append((state - mean) / sigma)
        return torch.stack(noise, dim=1)
