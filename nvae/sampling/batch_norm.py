"""Batch-norm readjustment: statistics of the decoder for a temperature (NVAE, section 4.3 and its official program).

The running statistics of training are those of z ~ q(z | x). Samples at a temperature make other activations, so
their statistics are measured anew by passes from the prior in training mode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nvae.errors import UserError
from nvae.model.hierarchy import FromPrior, HierarchicalVAE
from nvae.seeds import seeded

PASS_IMAGES = 16


def decoder_norms(model: HierarchicalVAE) -> list[nn.BatchNorm2d]:
    """The batch norms that a pass from the prior goes through."""
    return [m for part in (model.groups, model.output) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]


@contextmanager
def readjusted(
    model: HierarchicalVAE, temperature: float | Sequence[float], iterations: int = 20, progress: bool = False
) -> Iterator[None]:
    """Within it, a model in eval mode has the decoder's statistics for this temperature; then its own again.

    temperature: as `FromPrior` takes it. iterations: passes of 16 images; 0 leaves the statistics as they are.
    The passes are averaged exactly and in float32, the mean of all images by the mean of the passes' means, their
    variance by the mean of the variances plus the variance of the means. Always the same draws: a temperature has its
    statistics, whatever is sampled with them. Raises UserError when a statistic is not finite.
    """
    norms = decoder_norms(model) if iterations else []
    own = [(norm.running_mean.clone(), norm.running_var.clone(), norm.momentum) for norm in norms]
    try:
        if norms:
            _measure(model, norms, temperature, iterations, progress)
        yield
    finally:
        for norm, (mean, var, momentum) in zip(norms, own, strict=True):
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(var)
            norm.momentum = momentum


@torch.no_grad()
def _measure(
    model: HierarchicalVAE,
    norms: list[nn.BatchNorm2d],
    temperature: float | Sequence[float],
    iterations: int,
    progress: bool,
) -> None:
    generator = seeded(0, "batch-norm readjustment")
    moments = [_Moments(norm) for norm in norms]
    counted = [norm.num_batches_tracked.clone() for norm in norms]
    modes = [norm.training for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # so that a pass leaves its own statistics behind
    try:
        bar = tqdm(range(iterations), "readjusting batch norms", leave=False, disable=None if progress else True)
        for iteration in bar:
            model.top_down(FromPrior(temperature, generator), PASS_IMAGES)
            for norm, moment in zip(norms, moments, strict=True):
                moment.add(norm)
            if not all(moment.finite() for moment in moments):
                raise UserError(
                    f"the model's activations are not finite at temperature {temperature} (pass {iteration + 1} of the "
                    "batch-norm readjustment); its weights are damaged, or the temperature is too high for it."
                )
    finally:
        for norm, count, mode in zip(norms, counted, modes, strict=True):
            norm.train(mode)
            norm.num_batches_tracked.copy_(count)
    for norm, moment in zip(norms, moments, strict=True):
        norm.running_mean.copy_(moment.mean)
        norm.running_var.copy_(moment.variance())


class _Moments:
    """Mean and variance per channel over all passes, merged pass by pass (Chan et al. 1979)."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.passes = 0
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float32)
        self.mean_variance = torch.zeros_like(self.mean)
        self.squared_distances = torch.zeros_like(self.mean)  # of the passes' means from their mean

    def add(self, norm: nn.BatchNorm2d) -> None:
        self.passes += 1
        distance = norm.running_mean - self.mean
        self.mean += distance / self.passes
        self.squared_distances += distance * (norm.running_mean - self.mean)
        self.mean_variance += (norm.running_var - self.mean_variance) / self.passes

    def variance(self) -> Tensor:
        return self.mean_variance + self.squared_distances / self.passes

    def finite(self) -> bool:
        return bool((self.mean.isfinite() & self.mean_variance.isfinite()).all())
