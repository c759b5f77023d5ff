"""Batch-norm recalibration: statistics of the decoder for a temperature (NVAE, section 4.3 and its official program).

The running statistics of training belong to z ~ q(z | x). Samples from the prior at a temperature cause other
activations, so passes from the prior in training mode measure new statistics. `Sampler` does this.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.batch_norms import copy_statistics
from nvae.models.folding import unfolded_copy
from nvae.models.hierarchy import FromNoise, HierarchicalVAE
from nvae.system.errors import UserError
from nvae.system.progress import Progress, track
from nvae.system.seeds import seeded

PASS_IMAGES = 16
MAX_UNCERTAINTY = 0.3  # statistics with at most this uncertainty count as converged


@dataclass(frozen=True)
class Statistics:
    """Mean and variance (channels,) of every batch norm in a pass from the prior, by the name of its module."""

    means: dict[str, Tensor]
    variances: dict[str, Tensor]
    uncertainty: float  # relative standard error over the channels of the worst batch norm; NaN after one pass

    @property
    def warning(self) -> str | None:
        """A sentence for the user if the same number of other passes may give other statistics."""
        if self.uncertainty <= MAX_UNCERTAINTY:
            return None
        shown = "unknown after one pass" if math.isnan(self.uncertainty) else f"{self.uncertainty:.0%}"
        return (
            f"the batch-norm statistics have not converged: their relative standard error is {shown}, expected "
            f"{MAX_UNCERTAINTY:.0%} or less. Use more iterations, or a lower temperature."
        )

    @property
    def buffers(self) -> dict[str, Tensor]:
        """The buffers of the model that these statistics take the place of, by name."""
        means = {f"{name}.running_mean": mean for name, mean in self.means.items()}
        return means | {f"{name}.running_var": variance for name, variance in self.variances.items()}

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that differ between different statistics."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (*self.means.values(), *self.variances.values()):
            digest.update(tensor.cpu().numpy().data)
        return digest.hexdigest()


@torch.no_grad()
def prior_batch_norms(model: HierarchicalVAE) -> dict[str, Any]:
    """Find the batch norms in a pass from the prior by running one pass; ordered as the modules.

    model: in evaluation mode.
    """
    used: set[nn.Module] = set()
    norms = {name: module for name, module in model.named_modules() if isinstance(module, _BatchNorm)}
    hooks = [norm.register_forward_hook(lambda norm, inputs, output: used.add(norm)) for norm in norms.values()]
    try:
        model.top_down(FromNoise(model.no_noise(1)), 1)
    finally:
        for hook in hooks:
            hook.remove()
    return {name: norm for name, norm in norms.items() if norm in used}


@torch.no_grad()
def measure(
    model: HierarchicalVAE,
    temperature: float | Sequence[float],
    iterations: int = 20,
    progress: Progress = False,
) -> Statistics | None:
    """Measure the batch-norm statistics of passes from the prior; None for a model without batch norms.

    temperature: one number, or one per latent group. iterations: passes of 16 images each. The passes are averaged
    exactly, in float32: the mean over all images is the mean of the passes' means, the variance is the mean of their
    variances plus the variance of their means. The noise is always the same, so a temperature has one result.
    The passes run in a copy of the model, so that other threads can use the model in the meantime. progress: a function
    is called between the passes, and may raise an error to end the measurement. Raises UserError for statistics that
    are not finite.
    """
    network = unfolded_copy(model)
    norms = prior_batch_norms(network)
    if not norms:
        return None
    generator = seeded(0, "batch-norm readjustment")
    moments = {name: Moments(norm.running_mean, norm.eps) for name, norm in norms.items()}
    for norm in norms.values():
        norm.train()
        norm.momentum = 1.0  # the running statistics become the statistics of the pass
        copy_statistics(norm)
    for _ in track(range(iterations), "recalibrating batch norms", progress):
        noise = FromNoise(network.draw_noise(PASS_IMAGES, generator), temperature)
        network.top_down(noise, PASS_IMAGES, mean_only=True)
        for name, norm in norms.items():
            moments[name].add(norm.running_mean, norm.running_var)
    statistics = Statistics(
        means={name: moment.mean for name, moment in moments.items()},
        variances={name: moment.variance() for name, moment in moments.items()},
        uncertainty=max(moment.uncertainty() for moment in moments.values()),
    )
    if not all(x.isfinite().all() for x in (*statistics.means.values(), *statistics.variances.values())):
        raise UserError(
            "the activations are not finite in the batch-norm recalibration. Use a lower temperature. If that does not "
            "help, the weights are damaged."
        )
    return statistics


class Moments:
    """Mean and variance per channel over all passes, merged pass by pass (Chan et al. 1979).

    like: a tensor (channels,). eps: of the batch norm.
    """

    def __init__(self, like: Tensor, eps: float) -> None:
        self.passes, self.eps = 0, eps
        self.mean = torch.zeros_like(like, dtype=torch.float32)
        self.mean_variance = torch.zeros_like(self.mean)
        self.squared_distances = torch.zeros_like(self.mean)  # between the means of the passes and their mean
        self.squared_deviations = torch.zeros_like(self.mean)  # between the variances of the passes and their mean

    def add(self, mean: Tensor, variance: Tensor) -> None:
        """Add the statistics of a pass, (channels,) each."""
        self.passes += 1
        distance = mean - self.mean
        self.mean += distance / self.passes
        self.squared_distances += distance * (mean - self.mean)
        deviation = variance - self.mean_variance
        self.mean_variance += deviation / self.passes
        self.squared_deviations += deviation * (variance - self.mean_variance)

    def variance(self) -> Tensor:
        """Return the variance over all passes, (channels,)."""
        return self.mean_variance + self.squared_distances / self.passes

    def uncertainty(self) -> float:
        """Return the relative standard error of the variance, and of the mean in standard deviations, over channels.

        Close to 1 if a single pass dominates. Passes of 16 independent images from a Normal differ by a third in their
        variance and a quarter in their mean, so 20 passes have an uncertainty of at most a tenth. NaN after one pass.
        """
        if self.passes < 2:
            return math.nan
        scale = self.mean_variance + self.eps
        squared_error = self.squared_deviations / scale.square() + self.squared_distances / scale
        return (squared_error / (self.passes * (self.passes - 1))).mean().sqrt().item()
