"""Schedules of the learning rate and the KL warm-up: pure functions of the position, in epochs with fractions."""

from __future__ import annotations

import math
from typing import NamedTuple

from nvae.schema import TrainingParameters


class KLWarmup(NamedTuple):
    """The KL warm-up in epochs: how long the weight stays at its minimum, then how long it rises to 1."""

    delay: float
    rise: float


def kl_warmup(schedule: TrainingParameters, steps_per_epoch: int) -> KLWarmup:
    """Return the KL warm-up of a schedule, which gives it in epochs, in steps, or as a portion of the training."""
    delay = schedule.warmup_delay_portion * schedule.epochs
    if schedule.warmup_portion is not None:
        return KLWarmup(delay, schedule.warmup_portion * schedule.epochs)
    if schedule.warmup_steps is not None:
        return KLWarmup(delay, schedule.warmup_steps / steps_per_epoch)
    return KLWarmup(delay, schedule.warmup_epochs)


def learning_rate(epoch: float, schedule: TrainingParameters, steps_per_epoch: int) -> float:
    """Return the learning rate: 1. a linear rise, 2. constant until the KL warm-up ends, 3. a cosine.

    The cosine reaches `learning_rate_min` at the end of the last epoch. With learning_rate_decay "after_its_warmup",
    there is no second part.
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
