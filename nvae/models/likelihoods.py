"""The likelihoods p(x | z).

A likelihood turns the network's output (B, P, H, W) into a distribution over images on [0, 1]. Its log_prob is in nats
per subpixel, (B, C, H, W), or per pixel, (B, 1, H, W), if the channels are coupled. A discrete likelihood gives
probabilities of the 2^bits values, a continuous one gives densities.

All likelihoods are in this one file, long as the file is, because they share its helpers and are read side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from nvae.models.distributions import (
    MIN_SIGMA,
    DiagonalNormal,
    SoftClampedNormal,
    at_least_float32,
    log_normal_cdf,
    log_normal_mass,
    soft_clamp,
    standard_normal,
    standard_uniform,
)
from nvae.schema import ModelConfig

MIN_LOG_SCALE = -7.0
MAX_LOG_SCALE = 60.0  # changes no probability; beyond 85 the gradient is not finite in float32
MIN_LOG_MASS = math.log(1e-10)
SMALL_LOG_MASS = math.log(1e-5)  # below this value, the coupled mixture computes the mass from the density
LOWER_TAIL = 5e-4
UPPER_TAIL = 1 - 5e-3

# Flaws of a likelihood.
TAILS = (
    "with likelihood_tails original, the value 254 gets the upper tail of 255 too, and the probabilities of a "
    "subpixel's values add up to more than 1"
)
DENSITY = "the likelihood is a density, and the pixels have no noise (dataset.dequantize)"
GRAY = "gray values are taken as probabilities (dataset.binarize)"


class PixelDistribution(Protocol):
    """A distribution over images (B, C, H, W) on [0, 1]."""

    def log_prob(self, images: Tensor) -> Tensor:
        """Return log probabilities or densities in nats: per subpixel, (B, C, H, W), or per pixel, (B, 1, H, W)."""

    def log_scale(self) -> Tensor:
        """Return the log of the expected deviation from the mean, up to a constant, in the shape of `log_prob`.

        Of a mixture, the weighted mean over the components. Zeros where there is no scale.
        """

    def mean(self) -> Tensor:
        """Return the mean image, not clamped to [0, 1]."""

    def most_likely(self) -> Tensor:
        """Return the mean of the most likely component, not clamped to [0, 1]."""

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw one image per element of the batch, not clamped to [0, 1]."""


@dataclass(frozen=True)
class Likelihood:
    """A likelihood, as a function from the decoder's output (B, P, H, W) to a distribution.

    num_parameters: P. distribution: from the output to p(x | z). density_bits: added to -log2 of a density per subpixel
    to get bits per dimension. mean_channels: the output channels on which the mean and the most likely image depend.
    flaw: why the probabilities of all images do not add up to 1, so that no number from them bounds log p(x); empty if
    they do.
    """

    num_parameters: int
    distribution: Callable[[Tensor], PixelDistribution]
    density_bits: float
    mean_channels: Sequence[int]
    flaw: str = ""

    @property
    def is_normalized(self) -> bool:
        """Whether the probabilities of all images add up to 1."""
        return not self.flaw

    def __call__(self, output: Tensor) -> PixelDistribution:
        return self.distribution(at_least_float32(output))

    def bits_per_dimension(self, nats: Tensor | float, dimensions: int) -> Tensor | float:
        """Convert a negative log-likelihood, or a bound, in nats per image of `dimensions` subpixels to bits/dim."""
        return nats / (dimensions * math.log(2)) + self.density_bits


def build_likelihood(config: ModelConfig) -> Likelihood:
    """Return the likelihood of a config: sampling_method, n_mix, likelihood_tails, pixel_bits, pixel_range."""
    return LIKELIHOODS[config.sampling_method](config)


def last_value(config: ModelConfig) -> int:
    """Return the number of the brightest value of a subpixel: 255 for 8 bits."""
    return 2**config.pixel_bits - 1


def _density_bits(config: ModelConfig) -> float:
    # The probability of a value is about its density times the distance to the next value, or with dequantization at
    # least the mean density in its bin times the bin's width.
    steps = last_value(config) + config.dataset.dequantize  # from 0 to 1
    return math.log2(steps / (2 if config.pixel_range == "centered" else 1))


def _flaw_of_density(config: ModelConfig) -> str:
    return "" if config.dataset.dequantize else DENSITY


def _upper_tail(config: ModelConfig) -> tuple[float, str]:
    """Return the image value above which a bin includes the upper tail, and the flaw if this is not the last alone."""
    exact = 1 - 0.5 / last_value(config)
    tail = UPPER_TAIL if config.likelihood_tails == "original" else exact
    return tail, "" if tail >= 1 - 1 / last_value(config) else TAILS


def _split(output: Tensor, channels: int) -> tuple[Tensor, ...]:
    """Split (B, C * 3 * M, H, W) into the three parameters of M components, (B, C, M, H, W) each."""
    return output.unflatten(1, (channels, 3, -1)).unbind(2)


def _to_centered(images: Tensor) -> Tensor:
    """Map [0, 1] to [-1, 1]."""
    return 2 * images - 1


def _to_unit(images: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]."""
    return (images + 1) / 2


class Bernoulli:
    """Binary subpixels. Output per subpixel: the logit."""

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        channels = config.image_channels
        return Likelihood(channels, cls, 0.0, range(channels), "" if config.dataset.binarize else GRAY)

    def __init__(self, output: Tensor) -> None:
        self.logits = output  # (B, C, H, W)

    def log_prob(self, images: Tensor) -> Tensor:
        return -functional.binary_cross_entropy_with_logits(self.logits, images.to(self.logits), reduction="none")

    def log_scale(self) -> Tensor:
        return torch.zeros_like(self.logits)

    def mean(self) -> Tensor:
        return self.logits.sigmoid()

    def most_likely(self) -> Tensor:
        return (self.logits > 0).to(self.logits)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return (standard_uniform(self.logits, generator) < self.mean()).to(self.logits)


class Gaussian:
    """A Normal per subpixel, with a density on [0, 1], or `centered` on [-1, 1].

    Output per subpixel: mu, log sigma, softly clamped.
    """

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        channels = config.image_channels
        distribution = partial(cls, centered=config.pixel_range == "centered")
        return Likelihood(2 * channels, distribution, _density_bits(config), range(channels), _flaw_of_density(config))

    def __init__(self, output: Tensor, centered: bool = False) -> None:
        self.normal = SoftClampedNormal.from_raw(output)  # mu and sigma (B, C, H, W)
        self.centered = centered

    def log_prob(self, images: Tensor) -> Tensor:
        return self.normal.log_density(_to_centered(images) if self.centered else images)

    def log_scale(self) -> Tensor:
        return self.normal.sigma.log()

    def mean(self) -> Tensor:
        return _to_unit(self.normal.mu) if self.centered else self.normal.mu

    def most_likely(self) -> Tensor:
        return self.mean()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        drawn = self.normal.sample(standard_normal(self.normal.mu, generator))
        return _to_unit(drawn) if self.centered else drawn


class DiscretizedGaussian:
    """A Normal per subpixel, integrated over the bins of the 2^bits values (Ho et al. 2020, equation 13).

    Output per subpixel: mu (clamped to [-5, 5]) and log sigma (at least -7), on [-1, 1]. The bins are those of
    `LogisticMixture` with exact tails, without a smallest mass: the probabilities of all values add up to 1. `last` is
    the number of the last value.
    """

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        channels = config.image_channels
        return Likelihood(2 * channels, partial(cls, last=last_value(config)), 0.0, range(channels))

    def __init__(self, output: Tensor, last: int) -> None:
        mu, log_sigma = output.chunk(2, dim=1)
        self.normal = DiagonalNormal(mu.clamp(-5, 5), log_sigma.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE).exp())
        self.last = last

    def log_prob(self, images: Tensor) -> Tensor:
        center, half_bin = self.normal.to_noise(_to_centered(images)), 1 / (self.last * self.normal.sigma)
        inner, above_lower = log_normal_mass(center, half_bin), log_normal_cdf(half_bin - center)
        inner = torch.where(images > 1 - 0.5 / self.last, above_lower, inner)
        return torch.where(images < 0.5 / self.last, log_normal_cdf(center + half_bin), inner)

    def log_scale(self) -> Tensor:
        return self.normal.sigma.log()

    def mean(self) -> Tensor:
        return _to_unit(self.normal.mu)

    def most_likely(self) -> Tensor:
        return self.mean()

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        drawn = self.normal.sample(standard_normal(self.normal.mu, generator))
        return _nearest_value(_to_unit(drawn), self.last)


class Mixture:
    """A mixture for every subpixel, with logits, means and log scales (B, C, M, H, W); means are on [0, 1]."""

    @staticmethod
    def channels_by_parameter(config: ModelConfig) -> Tensor:
        """Return the indices of the output channels by image channel, parameter and component, (C, 3, M)."""
        components = 1 if config.sampling_method == "logistic" else config.n_mix
        return torch.arange(3 * components * config.image_channels, device="cpu").view(-1, 3, components)

    def __init__(self, logits: Tensor, means: Tensor, log_scales: Tensor) -> None:
        self.logits = logits
        self.means = means
        self.log_scales = log_scales

    def component_log_prob(self, images: Tensor) -> Tensor:
        """Return the log probability of images (B, C, 1, H, W) under every component, (B, C, M, H, W)."""
        raise NotImplementedError

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        """Draw from component `index` (B, C, 1, H, W) of every subpixel; returns (B, C, 1, H, W)."""
        raise NotImplementedError

    def log_prob(self, images: Tensor) -> Tensor:
        joint = self.component_log_prob(images[:, :, None]) + functional.log_softmax(self.logits, dim=2)
        return torch.logsumexp(joint, dim=2)  # (B, C, H, W)

    def log_scale(self) -> Tensor:
        return (self.logits.softmax(2) * self.log_scales).sum(2)

    def mean(self) -> Tensor:
        return (self.logits.softmax(2) * self.means).sum(2)

    def most_likely(self) -> Tensor:
        return self.means.gather(2, self.logits.argmax(2, keepdim=True))[:, :, 0]

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        index = _draw_component(self.logits, 2, generator)
        return self.sample_component(index, generator)[:, :, 0]


class GaussianMixture(Mixture):
    """M Normals per subpixel, with a density on [0, 1], or `centered` on [-1, 1].

    Output per component: logit, mu, log sigma, softly clamped.
    """

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        channels = cls.channels_by_parameter(config)
        distribution = partial(cls, channels=config.image_channels, centered=config.pixel_range == "centered")
        means = channels[:, :2].flatten().tolist()
        return Likelihood(channels.numel(), distribution, _density_bits(config), means, _flaw_of_density(config))

    def __init__(self, output: Tensor, channels: int, centered: bool = False) -> None:
        logits, mu, log_sigma = _split(soft_clamp(output), channels)
        self.normal = DiagonalNormal(mu, log_sigma.exp() + MIN_SIGMA)
        super().__init__(logits, _to_unit(mu) if centered else mu, self.normal.sigma.log())
        self.centered = centered

    def component_log_prob(self, images: Tensor) -> Tensor:
        return self.normal.log_density(_to_centered(images) if self.centered else images)

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        mu, sigma = self.normal.mu.gather(2, index), self.normal.sigma.gather(2, index)
        drawn = DiagonalNormal(mu, sigma).sample(standard_normal(mu, generator))
        return _to_unit(drawn) if self.centered else drawn


@dataclass(frozen=True)
class LogMasses:
    """Log masses of a logistic distribution around a value: in the value's bin, and beyond the bin's edges."""

    centered: Tensor  # (value - mean) / scale
    bin: Tensor
    below_upper: Tensor  # of all values below the bin's upper edge
    above_lower: Tensor  # of all values above the bin's lower edge


def discretized_logistic(distance: Tensor, log_scale: Tensor, last: int) -> LogMasses:
    """Return log masses for bins of width 2 / last. distance: from the logistic's mean to the center of the bin."""
    inverse_scale = torch.exp(-log_scale)
    centered, half_bin = distance * inverse_scale, inverse_scale / last
    below_upper = functional.logsigmoid(centered + half_bin)
    above_lower = functional.logsigmoid(half_bin - centered)
    # sigmoid(u) - sigmoid(l) = sigmoid(u) sigmoid(-l) (1 - exp(l - u)), which loses no digits far from the mean.
    log_mass = below_upper + above_lower + torch.log(-torch.expm1(-2 * half_bin))
    return LogMasses(centered, log_mass, below_upper, above_lower)


class LogisticMixture(Mixture):
    """M discretized logistics per subpixel over the 2^bits values (Salimans et al. 2017, without channel coupling).

    Output per component: logit (softly clamped), mu (clamped to [-5, 5]) and log scale (at least -7), on [-1, 1].
    A value's probability is the mass of its bin, which ends halfway to the two neighboring values, at least 1e-10. The
    bins of the first and the last value include the open tails. `upper_tail` is the image value above which the bin
    includes the upper tail; the original programs use 0.995, which applies to the value 254 too, so their probabilities
    of the 256 values add up to 1 + p(255). `last` is the number of the last value.
    """

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        channels = cls.channels_by_parameter(config)
        tail, flaw = _upper_tail(config)
        distribution = partial(cls, channels=config.image_channels, last=last_value(config), upper_tail=tail)
        return Likelihood(channels.numel(), distribution, 0.0, channels[:, :2].flatten().tolist(), flaw)

    def __init__(self, output: Tensor, channels: int, last: int, upper_tail: float) -> None:
        logits, mu, log_scale = _split(output, channels)
        mu = mu.clamp(-5, 5)
        super().__init__(soft_clamp(logits), _to_unit(mu), log_scale.clamp(MIN_LOG_SCALE, MAX_LOG_SCALE))
        self.mu = mu
        self.last = last
        self.upper_tail = upper_tail

    def component_log_prob(self, images: Tensor) -> Tensor:
        masses = discretized_logistic(_to_centered(images) - self.mu, self.log_scales, self.last)
        # The minimum bounds the value, not the gradient, so a component with a tiny mass still gets a gradient.
        log_mass = masses.bin + (MIN_LOG_MASS - masses.bin).clamp(min=0).detach()
        inner = torch.where(images > self.upper_tail, masses.above_lower, log_mass)
        return torch.where(images < LOWER_TAIL, masses.below_upper, inner)

    def sample_component(self, index: Tensor, generator: torch.Generator | None) -> Tensor:
        mu, scale = self.mu.gather(2, index), self.log_scales.gather(2, index).exp()
        return _nearest_value(_to_unit(mu + scale * standard_logistic(mu, generator)), self.last)


class CoupledLogisticMixture:
    """M discretized logistics over RGB pixels with shared mixture weights (Salimans et al. 2017; NVAE's program).

    Output: M logits, then per channel M means, M log scales (at least -7) and M coefficients (through tanh), on
    [-1, 1]. The mean of green depends linearly on red, the mean of blue on red and green. For a bin with a mass below
    1e-5, the mass is the density at the bin's center times the width. The tails are the same as in `LogisticMixture`.
    """

    log_scale_range = (MIN_LOG_SCALE, MAX_LOG_SCALE)

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        components = config.n_mix
        tail, flaw = _upper_tail(config)
        distribution = partial(cls, last=last_value(config), upper_tail=tail)
        channels = cls.channels_by_parameter(components)
        mean_channels = [*range(components), *channels[:, [0, 2]].flatten().tolist()]  # all but the scales
        return Likelihood(10 * components, distribution, 0.0, mean_channels, flaw)

    @staticmethod
    def channels_by_parameter(components: int) -> Tensor:
        """Return the indices of the output channels by image channel, parameter and component, (3, 3, M)."""
        return components + torch.arange(9 * components, device="cpu").view(3, 3, components)

    def __init__(self, output: Tensor, last: int, upper_tail: float) -> None:
        components = output.shape[1] // 10
        self.logits = output[:, :components]  # (B, M, H, W)
        self.means, log_scales, coefficients = _split(output[:, components:], 3)  # (B, 3, M, H, W) each
        self.log_scales = log_scales.clamp(*self.log_scale_range)
        self.coefficients = coefficients.tanh()
        self.last = last
        self.upper_tail = upper_tail

    def log_prob(self, images: Tensor) -> Tensor:
        value = _to_centered(images)[:, :, None]  # (B, 3, 1, H, W)
        red, green = value[:, 0], value[:, 1]
        c = self.coefficients
        shift = torch.stack([torch.zeros_like(c[:, 0]), c[:, 0] * red, c[:, 1] * red + c[:, 2] * green], dim=1)
        masses = discretized_logistic(value - self.means - shift, self.log_scales, self.last)
        inner = self.bin_log_mass(masses)
        inner = torch.where(images[:, :, None] > self.upper_tail, masses.above_lower, inner)
        log_mass = torch.where(images[:, :, None] < LOWER_TAIL, masses.below_upper, inner)
        return torch.logsumexp(log_mass.sum(1) + functional.log_softmax(self.logits, dim=1), dim=1, keepdim=True)

    def log_scale(self) -> Tensor:
        return (self.logits.softmax(1)[:, None] * self.log_scales).sum(2).mean(1, keepdim=True)  # (B, 1, H, W)

    def bin_log_mass(self, masses: LogMasses) -> Tensor:
        """Return the log mass of bins without tails; if the mass is small, from the density at the center."""
        # log sigmoid(c) + log sigmoid(-c) with one function of c instead of two
        log_density = 2 * functional.logsigmoid(masses.centered) - masses.centered - self.log_scales
        return torch.where(masses.bin > SMALL_LOG_MASS, masses.bin, log_density + math.log(2 / self.last))

    def mean(self) -> Tensor:
        weights = self.logits.softmax(1)[:, None]  # (B, 1, M, H, W)
        return self._coupled((weights * self.means).sum(2), (weights * self.coefficients).sum(2))

    def most_likely(self) -> Tensor:
        index = self.logits.argmax(1, keepdim=True)
        return self._coupled(_of_component(self.means, index), _of_component(self.coefficients, index))

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        # Rounded one after the other, because a channel's mean depends on the rounded values of the channels before.
        return self._coupled(*self._draw(generator), partial(_nearest_value, last=self.last))

    def _draw(self, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw values before the coupling, and return them with their coefficients, (B, 3, H, W) both."""
        index = _draw_component(self.logits, 1, generator)
        scales = _of_component(self.log_scales, index).exp()
        drawn = _of_component(self.means, index) + scales * standard_logistic(scales, generator)
        return drawn, _of_component(self.coefficients, index)

    @staticmethod
    def _coupled(values: Tensor, coefficients: Tensor, quantize: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        """Return (B, 3, H, W) on [0, 1] from values before the coupling, each channel quantized before the next."""

        def finished(x: Tensor) -> Tensor:
            return _to_centered(quantize(_to_unit(x.clamp(-1, 1))))

        c = coefficients
        red = finished(values[:, 0])
        green = finished(values[:, 1] + c[:, 0] * red)
        blue = finished(values[:, 2] + c[:, 1] * red + c[:, 2] * green)
        return _to_unit(torch.stack([red, green, blue], dim=1))


def _draw_component(logits: Tensor, dim: int, generator: torch.Generator | None) -> Tensor:
    """Draw from the categorical distributions along `dim`, which is kept with size 1 (the Gumbel-max trick)."""
    gumbel = -torch.log(-torch.log(standard_uniform(logits, generator)))
    return (logits + gumbel).argmax(dim, keepdim=True)


def _of_component(x: Tensor, index: Tensor) -> Tensor:
    """Select from x (B, 3, M, H, W) the component `index` (B, 1, H, W) of every pixel; returns (B, 3, H, W)."""
    return x.gather(2, index[:, None].expand(-1, x.shape[1], -1, -1, -1))[:, :, 0]


def standard_logistic(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard logistic noise with the shape, dtype and device of `like`, on the generator's device."""
    uniform = standard_uniform(like, generator)
    return torch.log(uniform) - torch.log1p(-uniform)


def _nearest_value(images: Tensor, last: int) -> Tensor:
    return (images * last).round() / last


# To add a likelihood, write a class with `likelihood`, add a line here, and add the name to schema.SamplingMethod.
LIKELIHOODS: dict[str, Callable[[ModelConfig], Likelihood]] = {
    "bernoulli": Bernoulli.likelihood,
    "gaussian": Gaussian.likelihood,
    "gaussian_mixture": GaussianMixture.likelihood,
    "discretized_gaussian": DiscretizedGaussian.likelihood,
    "logistic": LogisticMixture.likelihood,
    "logistic_mixture": LogisticMixture.likelihood,
    "coupled_logistic_mixture": CoupledLogisticMixture.likelihood,
}
