"""Batch-norm statistics for any temperature, predicted from a few measurements: for previews that follow a slider.

A recalibration takes seconds for every new temperature. What is saved for good should use `Sampler` without predicted
statistics, whose passes are exact.
"""

from __future__ import annotations

import torch

from nvae.inference.arguments import Factors, check_count, per_group
from nvae.inference.recalibration import Statistics
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.progress import Progress, track

LOW, MIDDLE, HIGH = 0.4, 0.7, 1.0  # temperatures that are measured
SMALLEST_VARIANCE = 0.1  # relative to the smallest one that was measured for a channel


class InterpolatedStatistics:
    """Predicts the statistics of a model with G latent groups for any temperatures, from 1 + 2 G measurements.

    Measured are all groups at MIDDLE, and every group alone at LOW and at HIGH, the others at MIDDLE. The mean and the
    variance of a channel are nearly quadratic in the temperature of each group and additive over the groups. The
    prediction is exact at the measured temperatures, good between LOW and HIGH, and poor far outside.

    iterations: passes of each measurement. cache: keeps the measurements, so that later programs, and another try after
    an interruption, measure only what is missing. progress: as in `measure`, called between all passes.
    """

    def __init__(
        self,
        model: HierarchicalVAE,
        iterations: int = 20,
        cache: StatisticsCache | None = None,
        progress: Progress = False,
    ) -> None:
        check_count("iterations", iterations)
        self.model, count = model, len(model.groups)
        temperatures = [[MIDDLE] * count]
        for node in (LOW, HIGH):
            temperatures += [[node if i == group else MIDDLE for i in range(count)] for group in range(count)]
        measured = [
            Sampler(model, temperature, iterations, cache, progress=progress).statistics
            for temperature in track(temperatures, "measuring statistics", progress)
        ]
        self._measured = [statistics for statistics in measured if statistics is not None]
        if self._measured:  # the model has batch norms
            values = [torch.cat([*s.means.values(), *s.variances.values()]) for s in self._measured]
            self._values = torch.stack(values)  # (1 + 2 G, 2 channels)
            self._least = SMALLEST_VARIANCE * self._values.chunk(2, dim=1)[1].amin(0)  # (channels,)

    def at(self, temperature: Factors) -> Statistics | None:
        """Predict the statistics at a temperature, as in `Sampler`; None for a model without batch norms.

        The result is for `Sampler(model, temperature, statistics=...)`. Raises InvalidValueError.
        """
        numbers = per_group(self.model, temperature, "temperature")
        if not self._measured:
            return None
        low = [(t - MIDDLE) * (t - HIGH) / ((LOW - MIDDLE) * (LOW - HIGH)) for t in numbers]
        high = [(t - MIDDLE) * (t - LOW) / ((HIGH - MIDDLE) * (HIGH - LOW)) for t in numbers]
        weights = self._values.new_tensor([1 - sum(low) - sum(high), *low, *high])  # of the measurements
        mean, variance = (weights @ self._values).chunk(2)
        sizes = {name: len(tensor) for name, tensor in self._measured[0].means.items()}
        means, variances = (
            dict(zip(sizes, values.split(list(sizes.values())), strict=True))
            for values in (mean, variance.maximum(self._least))
        )
        return Statistics(means, variances, max(statistics.uncertainty for statistics in self._measured))
