"""The learning rate as a pure function of the position in training."""

from __future__ import annotations

import math

from nvae.config import TrainingParameters


def learning_rate(epoch: float, schedule: TrainingParameters) -> float:
    """At `epoch`, fractions counted: a linear rise, `learning_rate` as long as the KL warms up, then a cosine.

    The cosine ends at `learning_rate_min` with the last epoch.
    """
    highest, lowest = schedule.learning_rate, schedule.learning_rate_min
    rising = schedule.learning_rate_warmup_epochs
    if epoch < rising:
        return highest * max(epoch / rising, 1e-3)
    flat_until = max(schedule.warmup_epochs, rising)
    if epoch <= flat_until:
        return highest
    progress = min((epoch - flat_until) / (schedule.epochs - flat_until), 1.0) if epoch < schedule.epochs else 1.0
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2
