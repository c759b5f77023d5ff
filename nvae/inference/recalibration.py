"""Batch-norm recalibration: statistics of the decoder for a temperature (NVAE, section 4.3 and its official program).

The running statistics of training are those of z ~ q(z | x). Samples at a temperature make other activations, so
their statistics are measured anew by passes from the prior in training mode. They are kept in a file beside the model.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from nvae.checkpoint import CheckpointError, read_whole, weights_digest, write_whole
from nvae.errors import UserError
from nvae.inference.sampling import Temperature
from nvae.models.hierarchy import FromNoise, HierarchicalVAE
from nvae.seeds import seeded

PASS_IMAGES = 16
SETTLED = 0.3
CACHED_AT_MOST = 50


@dataclass(frozen=True)
class Statistics:
    """Of every batch norm that a pass from the prior goes through, (channels,) each, in the order of the pass."""

    means: list[Tensor]
    variances: list[Tensor]
    uncertainty: float  # relative standard error in the worst layer; after one pass NaN

    @property
    def settled(self) -> bool:
        """Whether another so many passes would have given about the same."""
        return self.uncertainty <= SETTLED

    @property
    def notice(self) -> str | None:
        """What a person should know about statistics that did not settle."""
        if self.settled:
            return None
        if math.isnan(self.uncertainty):
            found = "one pass cannot tell whether the batch-norm statistics have settled"
        else:
            found = "the batch-norm statistics have not settled: from pass to pass the activations differ so much that "
            found += f"these are uncertain by {self.uncertainty:.0%} (up to {SETTLED:.0%} is fine)"
        return f"{found}; give more ITERATIONS, or a lower temperature."

    @property
    def digest(self) -> str:
        """16 hexadecimal digits that tell these statistics from others."""
        digest = hashlib.blake2b(digest_size=8)
        for tensor in (*self.means, *self.variances):
            digest.update(tensor.cpu().numpy())
        return digest.hexdigest()


def decoder_norms(model: HierarchicalVAE) -> list[nn.BatchNorm2d]:
    """The batch norms that a pass from the prior goes through."""
    return [m for part in (model.groups, model.output) for m in part.modules() if isinstance(m, nn.BatchNorm2d)]


@contextmanager
def recalibrated(
    model: HierarchicalVAE,
    temperature: Temperature,
    iterations: int = 20,
    progress: bool = False,
    cache: StatisticsCache | None = None,
) -> Iterator[Statistics | None]:
    """Within it, a model in eval mode has the decoder's statistics for this temperature; then its own again.

    temperature: as `FromNoise` takes it. iterations: passes of 16 images; 0 leaves the statistics as they are, and
    yields None, as does a model without batch norms. cache: where statistics measured before are found, and these are
    kept. The passes are averaged exactly and in float32, the mean of all images by the mean of the passes' means, their
    variance by the mean of the variances plus the variance of the means. Always the same draws: a temperature has its
    statistics, whatever is sampled with them. Raises UserError when a statistic is not finite.
    """
    norms = decoder_norms(model)
    if iterations == 0 or not norms:
        yield None
        return
    statistics = cache.find(temperature, iterations) if cache else None
    if statistics is None:
        statistics = measure(model, temperature, iterations, progress)
        if cache:
            cache.keep(temperature, iterations, statistics)
    own = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    _set(norms, zip(statistics.means, statistics.variances, strict=True))
    try:
        yield statistics
    finally:
        _set(norms, own)


def _set(norms: list[nn.BatchNorm2d], moments: Any) -> None:
    for norm, (mean, variance) in zip(norms, moments, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)


@torch.no_grad()
def measure(
    model: HierarchicalVAE, temperature: Temperature, iterations: int = 20, progress: bool = False
) -> Statistics:
    """The decoder's statistics at a temperature, as `recalibrated` sets them; the model is as before afterwards."""
    norms = decoder_norms(model)
    generator = seeded(0, "batch-norm readjustment")
    moments = [_Moments(norm) for norm in norms]
    before = [(norm.training, norm.momentum, norm.num_batches_tracked.clone()) for norm in norms]
    own = [(norm.running_mean.clone(), norm.running_var.clone()) for norm in norms]
    for norm in norms:
        norm.train()
        norm.momentum = 1.0  # so that a pass leaves its own statistics behind
    try:
        bar = tqdm(range(iterations), "recalibrating batch norms", leave=False, disable=None if progress else True)
        for iteration in bar:
            model.top_down(FromNoise(model.draw_noise(PASS_IMAGES, generator), temperature), PASS_IMAGES)
            for norm, moment in zip(norms, moments, strict=True):
                moment.add(norm)
            if not all(moment.finite() for moment in moments):
                raise UserError(
                    f"the model's activations are not finite at temperature {temperature} (pass {iteration + 1} of the "
                    "batch-norm recalibration); its weights are damaged, or the temperature is too high for it."
                )
    finally:
        _set(norms, own)
        for norm, (mode, momentum, count) in zip(norms, before, strict=True):
            norm.train(mode)
            norm.momentum = momentum
            norm.num_batches_tracked.copy_(count)
    uncertainty = max(moment.uncertainty() for moment in moments) if iterations > 1 else math.nan
    return Statistics([moment.mean for moment in moments], [moment.variance() for moment in moments], uncertainty)


class _Moments:
    """Mean and variance per channel over all passes, merged pass by pass (Chan et al. 1979)."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        self.passes = 0
        self.eps = norm.eps
        self.mean = torch.zeros_like(norm.running_mean, dtype=torch.float32)
        self.mean_variance = torch.zeros_like(self.mean)
        self.squared_distances = torch.zeros_like(self.mean)  # of the passes' means from their mean
        self.squared_deviations = torch.zeros_like(self.mean)  # of the passes' variances from their mean

    def add(self, norm: nn.BatchNorm2d) -> None:
        self.passes += 1
        distance = norm.running_mean - self.mean
        self.mean += distance / self.passes
        self.squared_distances += distance * (norm.running_mean - self.mean)
        deviation = norm.running_var - self.mean_variance
        self.mean_variance += deviation / self.passes
        self.squared_deviations += deviation * (norm.running_var - self.mean_variance)

    def variance(self) -> Tensor:
        return self.mean_variance + self.squared_distances / self.passes

    def uncertainty(self) -> float:
        """Standard error of the variance, relative to it, and of the mean, in standard deviations, over the channels.

        It is 1 where one pass outdoes all others. Passes of 16 independent images from a Normal differ by a third in
        their variance and a quarter in their mean, so that twenty of them leave a tenth or less.
        """
        scale = self.mean_variance + self.eps
        squared_error = self.squared_deviations / scale.square() + self.squared_distances / scale
        return (squared_error / (self.passes * (self.passes - 1))).mean().sqrt().item()

    def finite(self) -> bool:
        return bool((self.mean.isfinite() & self.mean_variance.isfinite()).all())


# ------------------------------------------------------------------------------------------------- the cache


class StatisticsCache:
    """The statistics measured for a model, in `<model file>.statistics`, by temperature and iterations.

    The file knows the weights and the architecture that it belongs to: for any other, and when it is damaged, it counts
    as empty. Where it cannot be written, nothing is kept. The 50 newest statistics stay.
    """

    def __init__(self, model: HierarchicalVAE, model_path: str | Path) -> None:
        self.path = Path(f"{model_path}.statistics")
        self.model = model
        self.weights = weights_digest(model)
        about = model.config.model_dump(exclude={"training_parameters", "dataset"})
        self.owner = {"weights": self.weights, "architecture": repr(sorted(about.items()))}

    def find(self, temperature: Temperature, iterations: int) -> Statistics | None:
        """What was kept, on the model's device; None if nothing was."""
        found = self._entries().get(_key(temperature, iterations))
        try:
            means, variances, uncertainty = found["means"], found["variances"], found["uncertainty"]
            shapes = [norm.running_mean.shape for norm in decoder_norms(self.model)]
            whole = [t.shape for t in means] == shapes == [t.shape for t in variances]
            if not (whole and isinstance(uncertainty, float) and all(t.isfinite().all() for t in (*means, *variances))):
                return None
            device = self.model.device
            return Statistics([t.to(device) for t in means], [t.to(device) for t in variances], uncertainty)
        except (KeyError, TypeError, AttributeError):
            return None

    def keep(self, temperature: Temperature, iterations: int, statistics: Statistics) -> None:
        """Beside those kept before."""
        entries = self._entries()
        entries.pop(_key(temperature, iterations), None)  # the newest ones come last
        entries[_key(temperature, iterations)] = {
            "means": [tensor.cpu() for tensor in statistics.means],
            "variances": [tensor.cpu() for tensor in statistics.variances],
            "uncertainty": statistics.uncertainty,
        }
        newest = dict(list(entries.items())[-CACHED_AT_MOST:])
        with suppress(CheckpointError):
            write_whole({"owner": self.owner, "statistics": newest}, self.path, keep_previous=False)

    def _entries(self) -> dict[str, Any]:
        try:
            content = read_whole(self.path)
        except Exception:  # absent or damaged
            return {}
        right = isinstance(content, dict) and content.get("owner") == self.owner
        entries = content.get("statistics") if right else None
        return entries if isinstance(entries, dict) else {}


def _key(temperature: Temperature, iterations: int) -> str:
    one = isinstance(temperature, int | float)
    return f"{float(temperature) if one else [float(t) for t in temperature]}, {iterations} passes of {PASS_IMAGES}"
