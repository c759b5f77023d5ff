"""Distributions over the z of a latent group: sampling from noise, log densities, KL divergences.

A distribution turns noise into z and z back into noise. The effect of a temperature and a flow belong to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

SOFT_CLAMP = 5.0
MIN_SIGMA = 0.01
SQRT_HALF = math.sqrt(0.5)
NARROW = 5e-3  # of an interval of a standard Normal: half its width times (1 + the distance of its center)
MIN_WEIGHT = 1e-5  # of a component of a mixture that an inversion uses

Noise = list[Tensor]  # one (B, ...) per latent group, top group first


def at_least_float32(x: Tensor) -> Tensor:
    """Convert half precision to float32, because densities need it; return other tensors unchanged."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def full_precision(x: Tensor) -> AbstractContextManager:
    """Return a context that turns autocast off on the device of x; the meta device has none."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard normal noise with the shape, dtype and device of `like`, on the generator's device."""
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)


def standard_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw uniform noise inside (0, 1) with the shape, dtype and device of `like`, on the generator's device."""
    device = generator.device if generator is not None else like.device
    noise = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.clamp(1e-7, 1 - 1e-7).to(like.device, like.dtype)


def soft_clamp(x: Tensor) -> Tensor:
    """Return 5 tanh(x / 5): nearly x around zero, and always inside (-5, 5) (NVAE's official implementation)."""
    return SOFT_CLAMP * torch.tanh(x / SOFT_CLAMP)


def sum_per_image(x: Tensor) -> Tensor:
    """Sum over all dimensions but the first: (B, ...) to (B,)."""
    return x.flatten(1).sum(1)


def log_normal_cdf(x: Tensor) -> Tensor:
    """Return the log of the standard Normal's mass below x, elementwise, without loss of digits in either tail.

    With erfcx(x) = exp(x^2) erfc(x). Not `torch.special.log_ndtr`, which Apple's devices do not have.
    """
    lower, upper = x.clamp(max=0), x.clamp(min=0)
    log_lower = torch.special.erfcx(-lower * SQRT_HALF).log() - math.log(2) - lower.square() / 2
    return torch.where(x < 0, log_lower, torch.log1p(-torch.special.erfc(upper * SQRT_HALF) / 2))


def log_normal_mass(center: Tensor, half: Tensor) -> Tensor:
    """Return the log of the standard Normal's mass in [center - half, center + half], elementwise.

    Every formula is finite, with a finite gradient, where another one is used.
    """
    center = -center.abs()
    # An interval around 0: a sum of two masses, so nothing cancels.
    masses = torch.erf((center + half).clamp(min=0) * SQRT_HALF) + torch.erf((half - center) * SQRT_HALF)
    # An interval below 0: log cdf(upper) + log(1 - cdf(lower) / cdf(upper)). The ratio is that of the densities times
    # that of the functions erfcx.
    c = torch.minimum(center, -half)
    ratio = torch.special.erfcx((half - c) * SQRT_HALF) / torch.special.erfcx((-half - c) * SQRT_HALF)
    log_ratio = (2 * half * c + ratio.log()).clamp(max=-NARROW / 100)
    below = log_normal_cdf(c + half) + torch.log(-torch.expm1(log_ratio))
    # A narrow interval below 0: the density at the center times the width, and the next term of the Taylor series.
    narrow = (2 * half).log() - center.square() / 2 - 0.5 * math.log(2 * math.pi)
    narrow = narrow + half.square() * (center.square() - 1) / 6
    below = torch.where(half * (1 - center) < NARROW, narrow, below)
    return torch.where(center > -half, masses.log() - math.log(2), below)


class Flow(Protocol):
    """An invertible map of z (B, ...) to the same shape, whose log-determinant is 0."""

    def __call__(self, z: Tensor) -> Tensor: ...

    def inverse(self, z: Tensor) -> Tensor: ...


class Distribution:
    """A distribution over z (B, ...) of one latent group. Noise is standard normal, (B, *noise_shape) of the group."""

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        """Return z from noise. A temperature below 1 makes samples more typical; 0 gives the center."""
        raise NotImplementedError

    def log_prob(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        """Return the log density at z, (B,), in nats.

        noise: the noise of the posterior's sample z; used by a prior whose log density is a Monte Carlo bound.
        """
        raise NotImplementedError

    def to_noise(self, z: Tensor) -> Tensor:
        """Return the noise from which `sample` makes z at temperature 1."""
        raise NotImplementedError

    def noise_factor(self, temperature: float) -> float:
        """Return the factor on noise that acts as a temperature of `sample`."""
        return temperature

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Return z and its log density (B,), without the inverse of a flow."""
        z = self.sample(noise)
        return z, self.log_prob(z)


class PriorBound(Protocol):
    """A prior whose log_prob is a lower bound of the log density, in expectation over the noise of a posterior pass."""

    evaluation_terms: int  # of the bound, in evaluation mode; may be set

    def published_log_prob(self, z: Tensor, noise: Tensor) -> Tensor:
        """Return log p(z), (B,), in nats, as the published program estimates it. No bound."""


TemperatureRule = Literal["sigma", "sigma_above_minimum", "variance"]


@dataclass(frozen=True, eq=False)
class DiagonalNormal(Distribution):
    """Independent Normals, mu and sigma of one shape (B, ...).

    temperature_rule: what a temperature multiplies: sigma, the part of sigma above MIN_SIGMA, or the variance.
    """

    mu: Tensor
    sigma: Tensor
    temperature_rule: TemperatureRule = "sigma"

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        sigma = self.sigma
        if temperature != 1.0 and self.temperature_rule == "sigma_above_minimum":
            sigma = (sigma - MIN_SIGMA) * temperature + MIN_SIGMA
        elif temperature != 1.0:
            sigma = sigma * self.noise_factor(temperature)
        return torch.addcmul(self.mu, sigma, noise.to(self.mu.dtype))

    def log_density(self, z: Tensor) -> Tensor:
        """Return the log density in nats, elementwise."""
        return -0.5 * ((z - self.mu) / self.sigma).square() - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def log_prob(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return sum_per_image(self.log_density(z))

    def to_noise(self, z: Tensor) -> Tensor:
        return (z - self.mu) / self.sigma

    def noise_factor(self, temperature: float) -> float:
        return math.sqrt(temperature) if self.temperature_rule == "variance" else temperature

    def kl(self, other: DiagonalNormal) -> Tensor:
        """Return KL(self || other) in nats, elementwise, in closed form: (r^2 + d^2 - 1) / 2 - log r, r = 1 + excess.

        Written with r - 1 and log1p, because with sigmas close to each other r^2 - 1 - 2 log r loses its digits. For a
        small r, r - 1 loses those of r.
        """
        excess = (self.sigma - other.sigma) / other.sigma
        distance = (self.mu - other.mu) / other.sigma
        log_ratio = torch.where(excess > -0.5, excess.clamp(min=-0.5).log1p(), self.sigma.log() - other.sigma.log())
        return 0.5 * (excess.square() + distance.square()) + (excess - log_ratio)


@dataclass(frozen=True, eq=False)
class SoftClampedNormal(DiagonalNormal):
    """The Normal of NVAE: mu and log sigma through the soft clamp, sigma = exp(log sigma) + 0.01."""

    raw: Tensor = field(kw_only=True)  # (B, 2L, H, W), before the clamp: residual posteriors add to the prior's raw

    @classmethod
    def from_raw(cls, raw: Tensor, temperature_rule: TemperatureRule = "sigma_above_minimum") -> SoftClampedNormal:
        """Build from the network's output (B, 2L, H, W): L channels of mu, then L channels of log sigma."""
        mu, log_sigma = soft_clamp(at_least_float32(raw)).chunk(2, dim=1)
        return cls(mu, log_sigma.exp() + MIN_SIGMA, temperature_rule, raw=raw)


@dataclass(frozen=True, eq=False)
class FlowDistribution(Distribution):
    """A distribution followed by an invertible map whose log-determinant is 0 (Kingma et al. 2016)."""

    base: Distribution
    flow: Flow

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        return self.flow(self.base.sample(noise, temperature))

    def log_prob(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return self.base.log_prob(self.flow.inverse(z), noise)

    def to_noise(self, z: Tensor) -> Tensor:
        return self.base.to_noise(self.flow.inverse(z))

    def noise_factor(self, temperature: float) -> float:
        return self.base.noise_factor(temperature)

    def sample_and_log_prob(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        base_sample, log_prob = self.base.sample_and_log_prob(noise)
        return self.flow(base_sample), log_prob


@dataclass(frozen=True, eq=False)
class NormalMixture(Distribution):
    """A mixture of M diagonal Normals.

    Noise (B, 3, ...): the first draw makes z. The angle of a point of the plane, the first numbers of the other two
    draws, chooses the component: the angle is uniform, and a factor on the noise does not change it.
    log_weights: (B, M), normalized. mu, sigma: (B, M, ...). A temperature multiplies the variances of the components:
    at 0, a sample is the mean of its component.
    """

    log_weights: Tensor
    mu: Tensor
    sigma: Tensor

    def _of_component(self, index: Tensor) -> DiagonalNormal:
        """Return the Normals of one component per image. index: (B,)."""
        rows = torch.arange(len(index), device=index.device)
        return DiagonalNormal(self.mu[rows, index], self.sigma[rows, index], "variance")

    def _weights(self) -> Tensor:
        """Return the weights (B, M) in float64 on the CPU, because some devices have no float64."""
        return self.log_weights.cpu().double().softmax(1)

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        x, y = (noise[:, draw].flatten(1)[:, :1].cpu().double() for draw in (1, 2))
        uniform = torch.atan2(y, x) / (2 * math.pi) + 0.5
        below = (self._weights().cumsum(1) < uniform).sum(1)
        index = below.clamp(max=self.log_weights.shape[1] - 1)  # the sum of the weights is rounded
        return self._of_component(index.to(noise.device)).sample(noise[:, 0], temperature)

    def _log_joint(self, z: Tensor) -> Tensor:
        """Return log weight + log density of every component, (B, M)."""
        log_density = DiagonalNormal(self.mu, self.sigma).log_density(z.unsqueeze(1))
        return self.log_weights + log_density.flatten(2).sum(2)

    def log_prob(self, z: Tensor, noise: Tensor | None = None) -> Tensor:
        return self._log_joint(z).logsumexp(1)

    def noise_factor(self, temperature: float) -> float:
        return math.sqrt(temperature)

    def to_noise(self, z: Tensor) -> Tensor:
        """Return noise that gives z: of the most probable component, chosen by the middle of its angles.

        Components of weights below MIN_WEIGHT, whose angles float32 cannot tell apart, are left out: another
        component's noise gives the same z.
        """
        weights = self._weights()
        large = weights.to(z.device) >= MIN_WEIGHT
        index = self._log_joint(z).masked_fill(~large, -math.inf).argmax(1)
        middle = (weights.cumsum(1) - weights / 2).gather(1, index.cpu()[:, None])
        angle = (2 * math.pi * (middle - 0.5)).to(z)
        own = self._of_component(index).to_noise(z)
        point = (x.view(-1, *(1,) * (z.dim() - 1)).expand_as(own) for x in (angle.cos(), angle.sin()))
        return torch.stack([own, *point], dim=1)


def kl_divergence(posterior: Distribution, prior: Distribution, log_q: Tensor, log_p: Tensor) -> Tensor:
    """Return KL(posterior || prior), (B,), in nats.

    Two diagonal Normals have a closed form. Otherwise the result is log q(z) - log p(z) of the sample: its expectation
    is the KL, or more if log p is a lower bound.
    """
    if isinstance(posterior, DiagonalNormal) and isinstance(prior, DiagonalNormal):
        return sum_per_image(posterior.kl(prior))
    return log_q - log_p


def map_tensors(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """Apply a function to every tensor inside a state, a distribution or a tuple; other objects stay the same."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, tuple):
        parts = [map_tensors(part, function) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)  # a named tuple stays one
    if isinstance(value, Distribution):
        return type(value)(**{name: map_tensors(part, function) for name, part in vars(value).items()})
    return value
