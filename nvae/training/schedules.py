"""Schedules: pure functions of the position and of the validations so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from nvae.objective import kl_coefficient, regularization_coefficient
from nvae.schema import TrainingParameters
from nvae.training.position import Position
from nvae.training.recovery import Recovery


class Validation(NamedTuple):
    """The result of a validation: the position in epochs, and the ELBO in nats per image."""

    epoch: float
    elbo: float


class KLWarmup(NamedTuple):
    """The KL warm-up in epochs: how long the weight stays at its minimum, then how long it rises to 1."""

    delay: float
    rise: float


class Rates(NamedTuple):
    """What the schedules say about one step."""

    learning_rate: float
    kl_coefficient: float
    regularization_coefficient: float


def rates(position: Position, validations: Sequence[Validation], recovery: Recovery, is_regularized: bool) -> Rates:
    """Return what the schedule and the recoveries so far say about the step at a position."""
    schedule, warmup = position.schedule, kl_warmup(position)
    rate = learning_rate(position, validations) * recovery.learning_rate_factor
    kl = kl_coefficient(position.in_epochs, warmup.rise, warmup.delay, schedule.kl_const_coeff)
    weight = 0.0
    if is_regularized:
        constant, initial = schedule.regularization_constant, schedule.regularization_constant_initial
        weight = recovery.regularization_factor * regularization_coefficient(constant, initial, kl)
    return Rates(rate, kl, weight)


def beta_nll(position: Position) -> float:
    """Return the power of the pixels' scales in the weights of the log-likelihood: to 0 at the end of the training."""
    return position.schedule.beta_nll * max(0.0, 1 - position.in_epochs / position.schedule.epochs)


def kl_warmup(position: Position) -> KLWarmup:
    """Return the KL warm-up of a schedule, which gives it in epochs, in steps, or as a portion of the training."""
    schedule = position.schedule
    delay = schedule.warmup_delay_portion * schedule.epochs
    if schedule.warmup_portion is not None:
        return KLWarmup(delay, schedule.warmup_portion * schedule.epochs)
    if schedule.warmup_steps is not None:
        return KLWarmup(delay, schedule.warmup_steps / position.steps_per_epoch)
    return KLWarmup(delay, schedule.warmup_epochs)


def rate_warmup(position: Position) -> float:
    """Return the length of the learning rate's warm-up in epochs. The schedule gives it in epochs or in steps."""
    steps = position.schedule.learning_rate_warmup_steps
    return position.schedule.learning_rate_warmup_epochs if steps is None else steps / position.steps_per_epoch


def learning_rate(position: Position, validations: Sequence[Validation] = ()) -> float:
    """Return the learning rate: 1. a linear rise, 2. constant until the cosine starts, 3. the cosine.

    The cosine reaches `learning_rate_min` at the end of the last epoch. The learning_rate_schedule "constant" stays at
    the second part; "plateau" multiplies the rate after every plateau of the validations; "cosine_restarts" and
    "cyclic" repeat. learning_rate_decay "nvlabs" is the original NVAE's cosine. With
    learning_rate_update "epoch", the rate of a whole epoch is that of its beginning, and the rise reaches
    `learning_rate` in its last epoch.
    """
    schedule, epoch = position.schedule, position.in_epochs
    highest, lowest = schedule.learning_rate, schedule.learning_rate_min
    warmup = rise_ends = rate_warmup(position)
    if schedule.learning_rate_warmup_steps is not None and epoch < warmup:
        return highest * epoch / warmup
    if schedule.learning_rate_decay == "nvlabs":
        return _rate_of_nvlabs(position)
    rising = max(epoch / warmup, 1e-3) if epoch < warmup else 1.0
    if schedule.learning_rate_update == "epoch":
        epoch, rise_ends = math.floor(epoch), max(warmup - 1, 0.0)
        rising = min((epoch + 1) / warmup, 1.0) if epoch < warmup else 1.0
    if epoch < warmup:
        return highest * rising
    if schedule.learning_rate_schedule == "constant":
        return highest
    if schedule.learning_rate_schedule == "plateau":
        reductions = plateau_reductions(
            [validation for validation in validations if validation.epoch <= epoch], schedule, warmup
        )
        return max(lowest, highest * schedule.plateau_factor**reductions)
    start = rise_ends
    if schedule.learning_rate_decay == "after_kl_warmup":
        start = max(sum(kl_warmup(position)), rise_ends)
    if epoch <= start:
        return highest
    if schedule.learning_rate_schedule != "cosine":
        passed = epoch if schedule.learning_rate_decay == "from_start" else epoch - start
        return lowest + (highest - lowest) * _wave(passed, schedule)
    if epoch >= schedule.epochs:
        return lowest
    if schedule.learning_rate_decay == "from_start":
        return lowest + (highest - lowest) * _cosine(epoch / schedule.epochs) / _cosine(start / schedule.epochs)
    return lowest + (highest - lowest) * _cosine((epoch - start) / (schedule.epochs - start)) / 2


def _rate_of_nvlabs(position: Position) -> float:
    """Return the learning rate of the original NVAE: PyTorch's CosineAnnealingLR of T = epochs - warm-up - 1 steps.

    The warm-up rises at every step, from 0. The scheduler makes its first step after the first epoch beyond the
    warm-up, starts from the rate of the warm-up's last step, and reaches the minimum in the last epoch.
    """
    schedule, warmup = position.schedule, rate_warmup(position)
    if position.in_epochs < warmup:
        return schedule.learning_rate * position.in_epochs / warmup
    warmup_steps, lowest = warmup * position.steps_per_epoch, schedule.learning_rate_min
    highest = schedule.learning_rate * (1 - 1 / max(warmup_steps, 1) if warmup else 1)
    length = schedule.epochs - warmup - 1
    passed = min(max(position.epoch - warmup, 0), length)
    return lowest + (highest - lowest) * _cosine(passed / length) / 2 if length > 0 else highest


def _wave(passed: float, schedule: TrainingParameters) -> float:
    """Return the part of the way from the lowest to the highest rate, `passed` epochs after the highest rate.

    cosine_restarts: Loshchilov and Hutter 2017, a cosine from 1 to 0 per period, each `learning_rate_period_factor`
    times as long as the one before. cyclic: Smith 2017, the triangle from 1 to 0 and back to 1 within a period.
    """
    period, factor = schedule.learning_rate_period, schedule.learning_rate_period_factor
    if schedule.learning_rate_schedule == "cyclic":
        return abs(1 - 2 * (passed / period % 1))
    while factor > 1 and passed >= period:
        passed, period = passed - period, period * factor
    return _cosine(passed / period % 1) / 2


def _cosine(position: float) -> float:
    """Return 1 + cos: from 2 at position 0 to 0 at position 1."""
    return 1 + math.cos(math.pi * position)


# ----------------------------------------------------------------------------------- functions of the validations


def plateau_reductions(history: Sequence[Validation], schedule: TrainingParameters, warmup: float) -> int:
    """Return how often the ELBO had no new maximum for `plateau_patience` epochs.

    The epochs count from the last maximum, from the last such plateau, or from the end of the learning rate's warm-up,
    after `warmup` epochs.
    """
    best, since, reductions = -math.inf, 0.0, 0
    for epoch, elbo in history:
        if elbo > best:
            best, since = elbo, epoch
        elif epoch - max(since, warmup) >= schedule.plateau_patience:
            since, reductions = epoch, reductions + 1
    return reductions


def stops_early(best: Validation, last: Validation, schedule: TrainingParameters) -> bool:
    """Return whether the last validation is `early_stopping_patience` epochs or more after the best one."""
    patience = schedule.early_stopping_patience
    return patience is not None and last.epoch - best.epoch >= patience
