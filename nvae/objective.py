"""The training objective: the terms of the ELBO, KL warm-up, KL balancing, and the regularization.

Formulas: Vahdat and Kautz 2020, section 3.3 and appendix A.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nvae.models.distributions import sum_per_image
from nvae.models.hierarchy import Level, TopDownOutput
from nvae.schema import TrainingParameters


class ElboTerms(NamedTuple):
    """The terms of the evidence lower bound, nats per image."""

    log_likelihood: Tensor  # (B,)
    kl: Tensor  # (B, G), top group first

    @property
    def elbo(self) -> Tensor:
        """The evidence lower bound on log p(x), (B,)."""
        return self.log_likelihood - self.kl.sum(1)


def elbo_terms(output: TopDownOutput, images: Tensor, beta: Tensor | None = None) -> ElboTerms:
    """Return the terms of the ELBO of images (B, C, H, W) in [0, 1]. output: of a posterior pass over the images.

    beta: weight the gradient of every pixel's log-likelihood by its scale to this power, relative to the mean over the
    image (beta-NLL, Seitzer et al. 2022). The values are the same. Otherwise the gradient of a pixel is as large as its
    scale is small, and few pixels that are predicted precisely outweigh all others.
    """
    log_prob = output.px_z.log_prob(images)
    if beta is not None:
        weights = (beta * output.px_z.log_scale().detach()).exp()
        weights = weights / weights.mean(dim=(1, 2, 3), keepdim=True)
        log_prob = log_prob.detach() + weights * (log_prob - log_prob.detach())
    return ElboTerms(sum_per_image(log_prob), output.kl)


def kl_coefficient(epoch: float, warmup_epochs: float, delay_epochs: float = 0.0, minimum: float = 1e-4) -> float:
    """Return the weight of the KL: `minimum` until `delay_epochs`, then rising linearly to 1 within `warmup_epochs`.

    epoch: the position in epochs, with fractions. While the rise is below `minimum`, the weight stays there.
    """
    if epoch < delay_epochs:
        return minimum
    epoch -= delay_epochs
    return 1.0 if epoch >= warmup_epochs else max(epoch / warmup_epochs, minimum)


def balance_alphas(levels: Sequence[Level]) -> list[float]:
    """Return one alpha per group, top first: 4^i / (groups of scale i), divided by the smallest alpha.

    Scale i = 0 is the coarsest scale.
    """
    alphas = [4.0**i / level.groups for i, level in enumerate(levels) for _ in range(level.groups)]
    return [alpha / min(alphas) for alpha in alphas]


def balancing_weights(mean_kl: Tensor, levels: Sequence[Level]) -> Tensor:
    """Return the weight of every group's KL, (G,), from the mean over images of its magnitude, (G,).

    The mean weight is 1. A weight is proportional to (mean |KL| + 0.01) / alpha, so a group with a small KL is
    penalized less and stays in use during the warm-up.
    """
    # Filled on the device: a copy from the CPU would wait for the device, and cannot be part of a CUDA graph.
    alphas = torch.stack([mean_kl.new_full((), alpha) for alpha in balance_alphas(levels)])
    weights = (mean_kl.detach() + 0.01) / alphas
    return weights / weights.mean()


def balanced_kl(
    kl: Tensor, levels: Sequence[Level], coefficient: Tensor | float, mean_kl: Tensor | None = None
) -> Tensor:
    """Return the KL term of the loss during the KL warm-up, (B,), from the KL (B, G): balanced across groups.

    mean_kl: the mean of |KL| over the images of the whole batch, (G,), where `kl` is of a share of them.
    """
    mean_kl = kl.abs().mean(0) if mean_kl is None else mean_kl
    return coefficient * (kl * balancing_weights(mean_kl, levels)).sum(1)


def loss_unit(schedule: TrainingParameters, dimensions: int) -> float:
    """Return the unit of `loss_scale` in nats per image. dimensions: subpixels of an image."""
    units = {"nats": 1.0, "nats_per_dimension": float(dimensions), "bits_per_dimension": math.log(2) * dimensions}
    return units[schedule.loss_scale]


class Loss(NamedTuple):
    """Means over images, scalars in the unit of `loss_scale`."""

    negative_elbo: Tensor
    weighted_kl: Tensor  # the part of the negative ELBO that is proportional to the weight of the KL


def weighted_negative_elbo(
    terms: ElboTerms,
    levels: Sequence[Level],
    schedule: TrainingParameters,
    coefficient: Tensor | float,
    dimensions: int,
    mean_kl: Tensor | None = None,
) -> Loss:
    """Return the loss without regularization. coefficient: of the KL. dimensions: subpixels of an image.

    mean_kl: the mean of |KL| over the images of the whole batch, (G,), of which `terms` may hold a share: balances the
    KL across groups. None for no balancing.
    """
    unit = loss_unit(schedule, dimensions)
    is_balanced = mean_kl is not None
    kl = balanced_kl(terms.kl, levels, coefficient, mean_kl) if is_balanced else coefficient * terms.kl.sum(1)
    weighted_kl = schedule.kl_constant * kl
    return Loss((weighted_kl - terms.log_likelihood).mean() / unit, weighted_kl.mean() / unit)


def regularization(terms: nn.ModuleDict, coefficient: Tensor | float, own: slice = slice(None)) -> Tensor | float:
    """Return the weighted sum of a model's regularization terms. Each call advances the power iterations.

    own: which parts of each term.
    """
    return coefficient * sum(term(own) for term in terms.values())


def regularization_coefficient(constant: float, initial: float | None, kl_coefficient: float) -> float:
    """Return the weight of the regularization: constant, or from `initial` to `constant` during the KL warm-up.

    The change is geometric, as in the official program: the logarithm is linear in the KL coefficient.
    """
    if initial is None or constant == 0:
        return constant
    return math.exp((1 - kl_coefficient) * math.log(initial) + kl_coefficient * math.log(constant))
