"""Divergence: which steps are skipped, when a training cannot go on, and what changes when it goes back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves

from nvae.schema import TrainingParameters
from nvae.system.errors import DivergenceError
from nvae.training.loggers import new_event
from nvae.training.schedules import kl_warmup

if TYPE_CHECKING:
    from nvae.training.trainer import Trainer

WINDOW = 200  # losses of accepted steps
FAR = 20  # spreads above the median
MIN_SPREAD = 0.05  # of the median
# More than a search for the loss scale of float16 takes: from 2^16 down to 2^-24 it skips 40 steps.
MAX_EXCESS_SKIPS = 100
DOUBTFUL_SKIPS = 10  # a state after so many skips may be a ruined one, so it is not saved
PROGRESS_STEPS = 1000  # beyond the last divergence, after which the tries count from 0 again
MAX_DOUBLINGS = 6  # of the regularization, which would outweigh the ELBO
VALIDATIONS = 10  # the last validations, with which a new one is compared
MIN_VALIDATIONS = 3
DIVERGED_BITS = 4  # bits per dimension above the uniform distribution
ADVICE = (
    "Set a lower training_parameters.learning_rate, a longer learning_rate_warmup_epochs, or gradient_clipping (100, "
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

    def reason_to_skip(self, numbers: StepNumbers, kl_weight: float, threshold: float | None) -> SkipReason | None:
        """Return why a step must be skipped, or None.

        threshold: gradient_skip_threshold. A loss is too high if it is far above the last 200 accepted ones, each at
        the present weight of the KL, so that the KL warm-up never makes a loss too high.
        """
        if not all(map(math.isfinite, numbers)):
            return SkipReason("finite numbers", ADVICE)
        if threshold is not None and numbers.gradient_norm > threshold:
            return SkipReason(
                f"a norm of at most gradient_skip_threshold, {threshold:g}",
                "Raise gradient_skip_threshold above the usual norm, such as "
                f"{2 * numbers.gradient_norm:.2g}, or set it to null.",
            )
        if len(self.losses) == WINDOW:
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
        self._forget_steps()

    def adapt(self, before: TrainingParameters, now: TrainingParameters) -> None:
        """Adapt to a changed config: its author may have removed the cause, and a changed key counts as it is."""
        self.tries = 0
        if now.learning_rate != before.learning_rate:
            self.halvings = 0
        if now.regularization_constant != before.regularization_constant:
            self.doublings = 0
        self._forget_steps()

    def _forget_steps(self) -> None:
        self.excess_skips, self.losses = 0, []

    # ----------------------------------------------------------------------------------------------------- on disk

    def state_dict(self) -> dict[str, Any]:
        losses = torch.tensor(self.losses, dtype=torch.float64).reshape(-1, len(RecentLoss._fields))
        return vars(self) | {"losses": losses}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        vars(self).update(state_dict, losses=[RecentLoss(*row) for row in state_dict["losses"].tolist()])

    @staticmethod
    def template(saved: Any) -> dict[str, Any]:
        """Return a state with as many losses as a saved one, for `find_mismatch`."""
        losses = saved.get("losses") if isinstance(saved, dict) else None
        count = min(len(losses), WINDOW) if isinstance(losses, torch.Tensor) and losses.dim() else 0
        shape = count, len(RecentLoss._fields)
        return Recovery().state_dict() | {"losses": torch.zeros(shape, dtype=torch.float64)}


# ------------------------------------------------------------------------------------- when a training cannot go on


def check_skips(trainer: Trainer, reason: SkipReason, numbers: StepNumbers) -> None:
    """Raise DivergenceError after a skipped step if skips have piled up, or if no further step can be finite."""
    check_finite(trainer)
    if trainer.recovery.excess_skips < MAX_EXCESS_SKIPS:
        return
    raise DivergenceError(
        f"by step {trainer.progress.step}, {MAX_EXCESS_SKIPS} more steps were skipped than taken: got a loss of "
        f"{numbers.loss:g} and a gradient norm of {numbers.gradient_norm:g}, expected {reason.expected}.",
        reason.advice,
    )


def check_finite(trainer: Trainer) -> None:
    """Raise DivergenceError if a weight, or a number of the training state, is not finite."""
    parts = {"weights": trainer.model, "averaged weights": trainer.eval_model, **trainer.evolving}
    for name, part in parts.items():
        if not all(map(_is_finite, tree_leaves(part.state_dict()))):
            raise DivergenceError(
                f"the {name.replace('_', ' ')} became not finite by step {trainer.progress.step}.", ADVICE
            )


def check_good(trainer: Trainer) -> None:
    """Raise DivergenceError if the state of the training must not replace the last checkpoint."""
    check_finite(trainer)
    if trainer.recovery.in_doubt:
        skips = trainer.recovery.excess_skips
        raise DivergenceError(
            f"by step {trainer.progress.step}, {skips} more steps were skipped than taken, so the state is in doubt.",
            ADVICE,
        )


def _is_finite(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return bool(value.isfinite().all())
    return not isinstance(value, float) or math.isfinite(value)


def check_validation(trainer: Trainer, elbo: float, bits_per_dimension: float) -> None:
    """Raise DivergenceError if the ELBO of a validation, nats per image, is not finite or far worse than the last ones.

    Far worse is far worse than a uniform distribution, and far below the last ten validations since the end of the KL
    warm-up, of which there must be three. After a recovery without progress since, the first of these is enough.
    """
    step, most_bits = trainer.progress.step, trainer.config.pixel_bits + DIVERGED_BITS
    if not math.isfinite(elbo):
        raise DivergenceError(f"the validation ELBO became {elbo} at step {step}.", ADVICE)
    warmed_up = sum(kl_warmup(trainer.schedule, trainer.steps_per_epoch))  # before, the ELBO may fall
    if trainer.epoch < warmed_up or bits_per_dimension <= most_bits:
        return
    problem = (
        f"the validation ELBO at step {step} is far too low: got {elbo:.6g} nats, {bits_per_dimension:.3g} bits/dim"
    )
    if trainer.recovery.tries:
        raise DivergenceError(f"{problem}, expected at most {most_bits} bits/dim.", ADVICE)
    recent = [-elbo for epoch, elbo in trainer.history.validations if epoch >= warmed_up][-VALIDATIONS:]
    if len(recent) >= MIN_VALIDATIONS and -elbo > (limit := highest_usual(recent)):
        raise DivergenceError(f"{problem}, expected at least {-limit:.6g} nats, given the last validations.", ADVICE)


# ------------------------------------------------------------------------------------------------------- going back


def recover(trainer: Trainer, path: Path, divergence: DivergenceError) -> dict[str, Any]:
    """Go back to the checkpoint at `path`, change what helps, save the checkpoint with the change; return the event.

    The event is also in the metadata. Raises DivergenceError if `max_recoveries` tries were made: the trainer and the
    file then stay as they are.
    """
    schedule, step, epoch = trainer.schedule, trainer.progress.step, trainer.epoch
    tries = trainer.recovery.tries
    if tries >= schedule.max_recoveries:
        times = f"Going back to a checkpoint did not help, {tries} times in a row. " if tries else ""
        raise DivergenceError(divergence.problem, times + divergence.advice) from divergence
    trainer.resume(path)
    recovery = trainer.recovery
    recovery.tries = tries  # progress since the checkpoint counts
    recovery.change(step, trainer.current_regularization_coefficient > 0)
    text = (
        f"{divergence.problem} Training went back to step {trainer.progress.step}, and continues with other random "
        f"draws and {recovery.learning_rate_factor:g} of the scheduled learning rate"
    )
    if recovery.doublings:
        text += f" and {recovery.regularization_factor:g} times the regularization"
    event = new_event("recovery", f"{text} (try {recovery.tries} of {schedule.max_recoveries}).", step, epoch)
    events = trainer.metadata.get("events")
    trainer.metadata = trainer.metadata | {"events": [*(events if isinstance(events, list) else []), event]}
    trainer.save(path)
    return event
