"""What changes as training goes, as pure functions of the position in it, counted in epochs and fractions of them."""

from __future__ import annotations

import math
from typing import NamedTuple

from nvae.schema import TrainingParameters


class KLWarmup(NamedTuple):
    """In epochs: how long the KL's weight stays at its smallest, and how long it takes from there to one."""

    delay: float
    rise: float


def kl_warmup(schedule: TrainingParameters, steps_per_epoch: int) -> KLWarmup:
    """The KL's warm-up, which a schedule gives in epochs, in steps, or as a portion of the training."""
    delay = schedule.warmup_delay_portion * schedule.epochs
    if schedule.warmup_portion is not None:
        return KLWarmup(delay, schedule.warmup_portion * schedule.epochs)
    if schedule.warmup_steps is not None:
        return KLWarmup(delay, schedule.warmup_steps / steps_per_epoch)
    return KLWarmup(delay, schedule.warmup_epochs)


def learning_rate(epoch: float, schedule: TrainingParameters, steps_per_epoch: int) -> float:
    """A linear rise, `learning_rate` as long as the KL warms up, if the schedule says so, then a cosine.

    The cosine ends at `learning_rate_min` with the last epoch.
    """
    highest, lowest = schedule.learning_rate, schedule.learning_rate_min
    rising = schedule.learning_rate_warmup_epochs
    if epoch < rising:
        return highest * max(epoch / rising, 1e-3)
    flat_until = rising
    if schedule.learning_rate_decay == "after_kl_warmup":
        flat_until = max(sum(kl_warmup(schedule, steps_per_epoch)), rising)
    if epoch <= flat_until:
        return highest
    progress = min((epoch - flat_until) / (schedule.epochs - flat_until), 1.0) if epoch < schedule.epochs else 1.0
    return lowest + (highest - lowest) * (1 + math.cos(math.pi * progress)) / 2
