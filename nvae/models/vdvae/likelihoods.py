"""The likelihood of the VDVAE's program, where it differs from the ordinary likelihood of the same name."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from nvae.models.likelihoods import CoupledLogisticMixture, Likelihood, build_likelihood
from nvae.schema import ModelConfig

SPACING = (
    "with likelihood_tails original, the bins of a subpixel's values are wider than the distance between the values, "
    "and no value has the upper tail, so the probabilities do not add up to 1"
)


class PublishedLogisticMixture(CoupledLogisticMixture):
    """A CoupledLogisticMixture as the VDVAE's program computes it.

    With b bits, value v lies at v * 2^(8 - b) on the scale of 8 bits. Its bin is 2 / (2^b - 1) wide on [-1, 1]: with
    5 bits, the brightest value is not white, so no value has the upper tail, and the bins overlap. With 8 bits, the
    probabilities are those of exact tails. A sample is rounded down to 8 bits, after the coupling of the channels.
    `scale` is the brightest value on the scale of 8 bits, from 0 to 1; images here have it at 1.
    """

    def __init__(self, output: Tensor, last: int, upper_tail: float) -> None:
        super().__init__(output, last, upper_tail)
        self.scale = last * (256 // (last + 1)) / 255

    @classmethod
    def likelihood(cls, config: ModelConfig) -> Likelihood:
        exact = CoupledLogisticMixture.likelihood(config.model_copy(update={"likelihood_tails": "exact"}))
        bits = config.pixel_bits
        distribution = partial(cls, last=2**bits - 1, upper_tail=0.9995)
        return replace(exact, distribution=distribution, flaw="" if bits == 8 else SPACING)

    def log_prob(self, images: Tensor) -> Tensor:
        return super().log_prob(images * self.scale)

    def mean(self) -> Tensor:
        return super().mean() / self.scale

    def most_likely(self) -> Tensor:
        return super().most_likely() / self.scale

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return (self._coupled(*self._draw(generator)) * 255).floor() / 255 / self.scale


def build_vdvae_likelihood(config: ModelConfig) -> Likelihood:
    """Return the likelihood of a config; coupled_logistic_mixture with original tails as the VDVAE's program."""
    if config.sampling_method == "coupled_logistic_mixture" and config.likelihood_tails == "original":
        return PublishedLogisticMixture.likelihood(config)
    return build_likelihood(config)
