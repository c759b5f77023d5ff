"""The validations of a run, and the weights of the best one: parts of the training state."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from nvae.models.hierarchy import HierarchicalVAE
from nvae.training.schedules import Validation


class ValidationHistory:
    """The position and the ELBO of every validation of a run."""

    def __init__(self) -> None:
        self.validations: list[Validation] = []

    def state_dict(self) -> dict[str, Any]:
        return {"validations": [tuple(validation) for validation in self.validations]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = [Validation(*validation) for validation in state_dict["validations"]]

    @staticmethod
    def template(saved: Any, steps: int) -> dict[str, Any]:
        """Return a state with as many validations as a saved one, at most one per step, for `find_mismatch`."""
        validations = saved.get("validations") if isinstance(saved, dict) else None
        count = min(len(validations), steps) if isinstance(validations, list) else 0
        return {"validations": [(0.0, 0.0)] * count}


class Best(NamedTuple):
    """The best validation since early stopping was turned on, and the model at that time."""

    validation: Validation
    kl_per_group: list[float]
    weights: dict[str, Tensor]


class BestWeights:
    """Keeps the weights of the best validation; `best` is None before the first one."""

    def __init__(self) -> None:
        self.best: Best | None = None

    def add(self, validation: Validation, kl_per_group: list[float], model: HierarchicalVAE) -> None:
        """Copy the weights of a model, in the memory of the CPU, if its validation is the best so far."""
        if self.best is None or validation.elbo > self.best.validation.elbo:
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.best = Best(validation, kl_per_group, weights)

    def state_dict(self) -> dict[str, Any]:
        if self.best is None:
            return {}
        state = self.best._asdict()
        return state | {"validation": tuple(self.best.validation)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = None
        if state_dict:
            kl = [float(value) for value in state_dict["kl_per_group"]]  # a damaged file may have integers
            self.best = Best(Validation(*state_dict["validation"]), kl, state_dict["weights"])

    @staticmethod
    def template(saved: Any, model: HierarchicalVAE) -> dict[str, Any]:
        """Return a state with the shapes of a model, empty if the saved one is, for `find_mismatch`."""
        if saved == {}:
            return {}
        weights = model.state_dict()
        return {"validation": (0.0, 0.0), "kl_per_group": [0.0] * len(model.groups), "weights": weights}
