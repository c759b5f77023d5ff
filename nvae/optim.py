"""The optimizers that `training_parameters.optimizer` can name; docs/extending.md says how to add one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn

from nvae.schema import TrainingParameters


class OptimizerKind(NamedTuple):
    """A torch optimizer with the options lr, betas, eps and weight_decay, and the names of its moments."""

    build: Callable[..., torch.optim.Optimizer]
    moments: tuple[str, ...]  # tensors of the parameter's shape in the optimizer's state


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamax": OptimizerKind(torch.optim.Adamax, ("exp_avg", "exp_inf")),
    "adam": OptimizerKind(torch.optim.Adam, ("exp_avg", "exp_avg_sq")),
    "adamw": OptimizerKind(torch.optim.AdamW, ("exp_avg", "exp_avg_sq")),
}


def hyperparameters(schedule: TrainingParameters, learning_rate: float) -> dict[str, Any]:
    """Return the options of a parameter group: a learning rate, and the other options from the schedule."""
    return {
        "lr": learning_rate,
        "betas": schedule.optimizer_betas,
        "eps": schedule.optimizer_epsilon,
        "weight_decay": schedule.weight_decay,
    }


def build_optimizer(model: nn.Module, schedule: TrainingParameters) -> torch.optim.Optimizer:
    """Build the optimizer of a training schedule for all parameters of a model."""
    build = OPTIMIZERS[schedule.optimizer].build
    optimizer = build(model.parameters(), **hyperparameters(schedule, schedule.learning_rate), foreach=True)
    grouped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters())), "every parameter must be in exactly one group"
    return optimizer
