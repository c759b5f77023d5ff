"""p(x | z): what the network's output says about the pixels.

A likelihood turns the output (B, P, H, W) into a distribution over images on [0, 1]. Log probabilities are in nats
per subpixel, (B, C, H, W): a probability of one of 256 values where the likelihood is discrete, a density on [0, 1]
where it is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nvae.config import Config
from nvae.model.latents import (
    SIGMA_FLOOR,
    DiagonalNormal,
    at_least_float32,
    soft_clamp,
    standard_normal,
    standard_uniform,
)

LEVELS = 256  # values of a subpixel
MIN_LOG_SCALE = -7.0
MAX_LOG_SCALE = 60.0  # changes no probability; beyond 85 the gradient is not finite in float32
MIN_LOG_MASS = math.log(1e-10)
LOWER_TAIL = 5e-4
DENSITY_BITS = math.log2(LEVELS - 1)  # a density on [0, 1] times the distance of two values is a probability


class PixelDistribution(Protocol):
    """A distribution over images (B, C, H, W) on [0, 1]."""

    def log_prob(self, images: Tensor) -> Tensor:
        """Log probability or density of every subpixel, (B, C, H, W), in nats."""

    def mean(self) -> Tensor:
        """The mean image, not clamped to [0, 1]."""

    def most_likely(self) -> Tensor:
        """The mean of the most likely component, not clamped to [0, 1]."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """One drawn image, not clamped to [0, 1]."""


@dataclass(frozen=True)
class Likelihood:
    """parameters: channels of the network's output. bits: what turns its -log2 p into bits per dimension."""

    parameters: int
    distribution: Callable[[Tensor], PixelDistribution]
    density_bits: float

    def __call__(self, output: Tensor) -> PixelDistribution:
        return self.distribution(at_least_float32(output))

    def bits_per_dimension(self, nats: Tensor | float, dimensions: int) -> Tensor | float:
        """Bits per subpixel from a negative log-likelihood, or bound, in nats per image of `dimensions` subpixels."""
        return nats / (dimensions * math.log(2)) + self.density_bits


def build_likelihood(config: Config) -> Likelihood:
    """The likelihood that a config names with `sampling_method`, `n_mix` and `likelihood_tails`."""
    channels = config.image_channels
    method = config.sampling_method
    components = {"gaussian": 1, "logistic": 1}.get(method, config.n_mix)
    if method == "gaussian":
        return Likelihood(2 * channels, Gaussian, DENSITY_BITS)
    if method == "gaussian_mixture":
        return Likelihood(
            3 * components * channels, lambda output: GaussianMixture(output, channels, components), DENSITY_BITS
        )
    upper_tail = {"original": 1 - 5e-3, "exact": 1 - 0.5 / (LEVELS - 1)}[config.likelihood_tails]
    return Likelihood(
        3 * components * channels, lambda output: LogisticMixture(output, channels, components, upper_tail), 0.0
    )


def _split(output: Tensor, channels: int, components: int, kinds: int) -> tuple[Tensor, ...]:
    """(B, C * K * M, H, W), the seed's order of channels, to K tensors (B, C, M, H, W)."""
    batch, _, height, width = output.shape
    return output.view(batch, channels, kinds, components, height, width).unbind(2)


class Gaussian:
    """A Normal per subpixel, with a density on [0, 1]. Output per subpixel: mu, log sigma, softly clamped."""

    def __init__(self, output: Tensor) -> None:
        self.normal = DiagonalNormal.from_raw(output)  # mu and sigma (B, C, H, W)

    def log_prob(self, images: Tensor) -> Tensor:
        return self.normal.log_prob(images)

    def mean(self) -> Tensor:
        return self.normal.mu

    def most_likely(self) -> Tensor:
        return self.normal.mu

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.normal.rsample(standard_normal(self.normal.mu, generator))


class Mixture:
    """A mixture per subpixel, each with its own selectors. Tensors are (B, C, M, H, W); means are on [0, 1]."""

    def __init__(self, logits: Tensor, means: Tensor) -> None:
        self.logits = logits
        self.means = means

    def component_log_prob(self, images: Tensor) -> Tensor:
        """(B, C, 1, H, W) to (B, C, M, H, W)."""
        raise NotImplementedError

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        """A draw of the component chosen for every subpixel, index and draw (B, C, 1, H, W)."""
        raise NotImplementedError

    def log_prob(self, images: Tensor) -> Tensor:
        joint = self.component_log_prob(images[:, :, None]) + functional.log_softmax(self.logits, dim=2)
        return torch.logsumexp(joint, dim=2)  # (B, C, H, W)

    def mean(self) -> Tensor:
        return (self.logits.softmax(2) * self.means).sum(2)

    def most_likely(self) -> Tensor:
        return self.means.gather(2, self.logits.argmax(2, keepdim=True))[:, :, 0]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        gumbel = -torch.log(-torch.log(standard_uniform(self.logits, generator)))
        index = (self.logits + gumbel).argmax(2, keepdim=True)  # a draw from the categorical: the Gumbel-max trick
        return self.sample_component(index, generator)[:, :, 0]


class GaussianMixture(Mixture):
    """M Normals per subpixel, with a density on [0, 1]. Output per component: logit, mu, log sigma, softly clamped."""

    def __init__(self, output: Tensor, channels: int, components: int) -> None:
        logits, mu, log_sigma = _split(soft_clamp(output), channels, components, 3)
        super().__init__(logits, mu)
        self.sigma = log_sigma.exp() + SIGMA_FLOOR

    def component_log_prob(self, images: Tensor) -> Tensor:
        return DiagonalNormal(self.means, self.sigma).log_prob(images)

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        mu, sigma = self.means.gather(2, index), self.sigma.gather(2, index)
        return DiagonalNormal(mu, sigma).rsample(standard_normal(mu, generator))


class LogisticMixture(Mixture):
    """M discretised logistics per subpixel over the 256 values (Salimans et al. 2017, without channel coupling).

    Output per component: logit (softly clamped), mu (clamped to [-5, 5]) and log scale (at least -7), on [-1, 1].
    A value's probability is the mass between its neighbours' midpoints, at least 1e-10; the first and the last value
    take the open tails. The originals open the upper tail from 0.995 on, which the value 254 takes too: their
    probabilities of the 256 values add up to 1 + p(255). `upper_tail` is the image value above which the tail is open.
    """

    def __init__(self, output: Tensor, channels: int, components: int, upper_tail: float) -> None:
        logits, mu, log_scale = _split(output, channels, components, 3)
        mu = mu.clamp(-5, 5)
        super().__init__(soft_clamp(logits), (mu + 1) / 2)
        self.mu = mu
        self.log_scale = log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE)
        self.upper_tail = upper_tail

    def component_log_prob(self, images: Tensor) -> Tensor:
        inverse_scale = torch.exp(-self.log_scale)
        centred = (2 * images - 1 - self.mu) * inverse_scale
        half_bin = inverse_scale / (LEVELS - 1)
        below_upper = functional.logsigmoid(centred + half_bin)  # log of the mass below the bin's upper edge
        above_lower = functional.logsigmoid(half_bin - centred)
        # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), which loses no digits far from the mean.
        log_mass = below_upper + above_lower + torch.log(-torch.expm1(-2 * half_bin))
        # The floor bounds the value, not the gradient: a component that lost its pixel can still find it.
        log_mass = log_mass + (MIN_LOG_MASS - log_mass).clamp(min=0).detach()
        return torch.where(
            images < LOWER_TAIL, below_upper, torch.where(images > self.upper_tail, above_lower, log_mass)
        )

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        mu, scale = self.mu.gather(2, index), self.log_scale.gather(2, index).exp()
        uniform = standard_uniform(mu, generator)
        drawn = mu + scale * (torch.log(uniform) - torch.log1p(-uniform))
        return ((drawn + 1) / 2 * (LEVELS - 1)).round() / (LEVELS - 1)
