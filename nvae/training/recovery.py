"""Divergence: which steps are skipped, when skips are too many, and what changes when a training goes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any, NamedTuple

import torch

from nvae.schema import TrainingParameters
from nvae.system.errors import DivergenceError
from nvae.training.position import whole_number

WINDOW = 200  # losses of accepted steps
FAR = 20  # spreads above the median
MIN_SPREAD = 0.05  # of the median
# More than a search for the loss scale of float16 takes: from 2^16 down to 2^-24 it skips 40 steps.
MAX_EXCESS_SKIPS = 100
DOUBTFUL_SKIPS = 10  # a state after so many skips may be a ruined one, so it is not saved
PROGRESS_STEPS = 1000  # beyond the last divergence, after which the tries count from 0 again
MAX_DOUBLINGS = 6  # of the regularization, which would outweigh the ELBO
ADVICE = (
    "Set a lower training_parameters.learning_rate, a longer warm-up of the learning rate, or gradient_clipping (100, "
    "for example), and continue from the last checkpoint, which is intact."
)


class StepNumbers(NamedTuple):
    """The numbers that decide about a step, each of the whole batch.

    Processes that share a batch may replace every number by its mean over the processes: the loss and the KL are means,
    the gradient is the same for all, and the largest buffer is only compared with infinity.
    """

    loss: float
    weighted_kl: float  # the part of the loss that is proportional to the weight of the KL
    gradient_norm: float
    largest_buffer: float


class SkipReason(NamedTuple):
    """Why a step is skipped: what was expected, as a noun phrase, and what to do if this happens again and again."""

    expected: str
    advice: str


class RecentLoss(NamedTuple):
    """The loss of an accepted step, and what it takes to know this loss at another weight of the KL."""

    loss: float
    kl: float  # without its weight
    kl_weight: float


def highest_usual(values: Sequence[float]) -> float:
    """Return a limit far above some values: 20 times the distance from the median to the highest, above the median.

    The distance counts as at least 5 % of the median.
    """
    middle = median(values)
    return middle + FAR * max(max(values) - middle, MIN_SPREAD * abs(middle))


class Recovery:
    """The recent steps of a training, and what recoveries have changed: a part of the training state.

    count: recoveries so far; it enters the seed of all draws. tries: recoveries since the last long progress.
    halvings, doublings: of the learning rate and of the regularization. divergence_step: the highest step at which the
    training diverged. excess_skips: how many more steps were skipped than accepted, never below 0.
    Decisions depend on `StepNumbers` and this state alone.
    """

    def __init__(self) -> None:
        self.count = self.tries = self.halvings = self.doublings = self.divergence_step = self.excess_skips = 0
        self.losses: list[RecentLoss] = []

    @property
    def learning_rate_factor(self) -> float:
        return 0.5**self.halvings

    @property
    def regularization_factor(self) -> float:
        return 2.0 ** min(self.doublings, MAX_DOUBLINGS)

    @property
    def in_doubt(self) -> bool:
        """Whether so many steps were skipped lately that the state must not replace the last checkpoint."""
        return self.excess_skips >= DOUBTFUL_SKIPS

    # --------------------------------------------------------------------------------------------------- the steps

    def reason_to_skip(self, numbers: StepNumbers, kl_weight: float, schedule: TrainingParameters) -> SkipReason | None:
        """Return why a step must be skipped, or None.

        With skip_high_losses, a loss is too high if it is far above the last 200 accepted ones, each at the present
        weight of the KL, so that the KL warm-up never makes a loss too high.
        """
        threshold = schedule.gradient_skip_threshold
        if not all(map(math.isfinite, numbers)):
            return SkipReason("finite numbers", ADVICE)
        if threshold is not None and numbers.gradient_norm > threshold:
            return SkipReason(
                f"a norm of at most gradient_skip_threshold, {threshold:g}",
                "Raise gradient_skip_threshold above the usual norm, such as "
                f"{2 * numbers.gradient_norm:.2g}, or set it to null.",
            )
        if schedule.skip_high_losses and len(self.losses) == WINDOW:
            limit = highest_usual([loss + (kl_weight - weight) * kl for loss, kl, weight in self.losses])
            if numbers.loss > limit:
                return SkipReason(f"a loss of at most {limit:.6g}, which is far above the last ones", ADVICE)
        return None

    def record(self, numbers: StepNumbers, kl_weight: float, skipped: bool, step: int) -> None:
        """Record a step. step: the number of steps so far, this one included."""
        if skipped:
            self.excess_skips += 1
        else:
            self.excess_skips = max(self.excess_skips - 1, 0)
            self.losses = [*self.losses, RecentLoss(numbers.loss, numbers.weighted_kl / kl_weight, kl_weight)][-WINDOW:]
        if step >= self.divergence_step + PROGRESS_STEPS:
            self.tries = 0

    def refuse_too_many_skips(self, step: int, reason: SkipReason, numbers: StepNumbers) -> None:
        """Raise DivergenceError if skips have piled up. step: the number of steps so far."""
        if self.excess_skips >= MAX_EXCESS_SKIPS:
            raise DivergenceError(
                f"by step {step}, {MAX_EXCESS_SKIPS} more steps were skipped than taken: got a loss of "
                f"{numbers.loss:g} and a gradient norm of {numbers.gradient_norm:g}, expected {reason.expected}.",
                reason.advice,
            )

    def refuse_doubt(self, step: int) -> None:
        """Raise DivergenceError if the state of the training must not replace the last checkpoint."""
        if self.in_doubt:
            raise DivergenceError(
                f"by step {step}, {self.excess_skips} more steps were skipped than taken, so the state is in doubt.",
                ADVICE,
            )

    # --------------------------------------------------------------------------------------------------- changes

    def change(self, diverged_at: int, regularized: bool) -> None:
        """Change what helps, more with every try: the n-th try divides the learning rate by 2^n.

        diverged_at: the step of the divergence. regularized: whether the training has a regularization, which doubles.
        """
        self.count += 1
        self.tries += 1
        self.halvings += self.tries
        self.doublings = min(self.doublings + regularized, MAX_DOUBLINGS)
        self.divergence_step = max(self.divergence_step, diverged_at)
        self.forget_steps()

    def adapt(self, before: TrainingParameters, now: TrainingParameters) -> None:
        """Adapt to a changed config: its author may have removed the cause, and a changed key counts as it is."""
        self.tries = 0
        if now.learning_rate != before.learning_rate:
            self.halvings = 0
        if now.regularization_constant != before.regularization_constant:
            self.doublings = 0
        self.forget_steps()

    def forget_steps(self) -> None:
        """Forget the last losses and skips, which say nothing about the steps to come."""
        self.excess_skips, self.losses = 0, []

    # ----------------------------------------------------------------------------------------------------- on disk

    def state_dict(self) -> dict[str, Any]:
        losses = torch.tensor(self.losses, dtype=torch.float64).reshape(-1, len(RecentLoss._fields))
        return vars(self) | {"losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Raises ValueError or another error for anything but counts and a table of losses."""
        counts = {name: whole_number(state_dict, name) for name in vars(self) if name != "losses"}
        losses = [RecentLoss(*row) for row in state_dict["losses"].double().tolist()]
        vars(self).update(counts, losses=losses[-WINDOW:])
