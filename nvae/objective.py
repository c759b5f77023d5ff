"""What training minimizes: the negative ELBO with KL warm-up and KL balancing, and the weight of regularization.

Formulas: Vahdat and Kautz 2020, section 3.3 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from nvae.models.distributions import sum_per_image
from nvae.models.hierarchy import Level, TopDownOutput

MIN_KL_COEFFICIENT = 1e-4


class ElboTerms(NamedTuple):
    """The terms of the evidence lower bound, nats per image."""

    log_likelihood: Tensor  # (B,)
    kl: Tensor  # (B, G), top group first

    @property
    def elbo(self) -> Tensor:
        """(B,): log p(x) is at least this."""
        return self.log_likelihood - self.kl.sum(1)


def elbo_terms(output: TopDownOutput, images: Tensor) -> ElboTerms:
    """The terms of the ELBO of images (B, C, H, W) in [0, 1], from a posterior pass."""
    return ElboTerms(sum_per_image(output.px_z.log_prob(images)), output.kl)


def kl_coefficient(epoch: float, warmup_epochs: float, delay_epochs: float = 0.0) -> float:
    """The weight of the KL: 1e-4 until `delay_epochs`, then rising linearly to 1 within `warmup_epochs`.

    `epoch` counts fractions too.
    """
    if epoch < delay_epochs:
        return MIN_KL_COEFFICIENT
    epoch -= delay_epochs
    return 1.0 if epoch >= warmup_epochs else max(epoch / warmup_epochs, MIN_KL_COEFFICIENT)


def balance_alphas(levels: Sequence[Level]) -> list[float]:
    """Per group, top first: 4^i / (groups in its scale), i = 0 at the coarsest scale, divided by the smallest."""
    alphas = [4.0**i / level.groups for i, level in enumerate(levels) for _ in range(level.groups)]
    return [alpha / min(alphas) for alpha in alphas]


def balancing_weights(kl: Tensor, levels: Sequence[Level]) -> Tensor:
    """How much every group counts, (G,), from the KL of images and groups (B, G); mean one, and no gradient.

    In proportion to (mean |KL| + 0.01) / alpha, so that no group is switched off before it had its chance.
    """
    weights = (kl.detach().abs().mean(0) + 0.01) / kl.new_tensor(balance_alphas(levels))
    return weights / weights.mean()


def balanced_kl(kl: Tensor, levels: Sequence[Level], coefficient: float) -> Tensor:
    """The KL of each image as it enters the loss, (B,), from the KL per group (B, G): balanced during the warm-up."""
    if coefficient >= 1:
        return kl.sum(1)
    return coefficient * (kl * balancing_weights(kl, levels)).sum(1)


def regularization_coefficient(constant: float, initial: float | None, kl_coefficient: float) -> float:
    """The weight of the regularization: constant, or from `initial` to `constant` along the KL's warm-up.

    Geometrically, as the official program does: its logarithm moves as the KL coefficient does.
    """
    if initial is None or constant == 0:
        return constant
    return math.exp((1 - kl_coefficient) * math.log(initial) + kl_coefficient * math.log(constant))
