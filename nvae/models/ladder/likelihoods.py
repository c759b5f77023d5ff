"""The likelihoods of the Ladder VAE's program that differ from the ordinary likelihoods of the same name."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from nvae.models.likelihoods import (
    Bernoulli,
    CoupledLogisticMixture,
    Likelihood,
    LogMasses,
    build_likelihood,
)
from nvae.schema import ModelConfig

MIN_PROBABILITY = 1e-7
MIN_LOG_MASS = -23.025850929940457  # log 1e-10


class ClampedBernoulli(Bernoulli):
    """Binary subpixels whose probabilities stay within [1e-7, 1 - 1e-7]."""

    def mean(self) -> Tensor:
        return self.logits.sigmoid().clamp(MIN_PROBABILITY, 1 - MIN_PROBABILITY)

    def log_prob(self, images: Tensor) -> Tensor:
        return -functional.binary_cross_entropy(self.mean(), images.to(self.logits), reduction="none")


class FlooredLogisticMixture(CoupledLogisticMixture):
    """A CoupledLogisticMixture with log scales in [-8, 1] and a mass of at least 1e-10 in every bin."""

    log_scale_range = (-8.0, 1.0)

    def bin_log_mass(self, masses: LogMasses) -> Tensor:
        return masses.bin.clamp(min=MIN_LOG_MASS)


def build_ladder_likelihood(config: ModelConfig) -> Likelihood:
    """Return the likelihood of a config; bernoulli and coupled_logistic_mixture in the variants of this module."""
    if config.sampling_method == "bernoulli":
        return ClampedBernoulli.likelihood(config)
    if config.sampling_method == "coupled_logistic_mixture":  # always with exact tails
        return FlooredLogisticMixture.likelihood(config.model_copy(update={"likelihood_tails": "exact"}))
    return build_likelihood(config)
