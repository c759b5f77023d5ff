"""The parts of a training state that are not PyTorch's own, and loading all parts or none."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.errors import DivergenceError, UserError
from nvae.training.position import whole_number
from nvae.training.recovery import ADVICE
from nvae.training.schedules import Validation

MAXIMA = ("gradient_norm",)  # metrics whose maximum is kept beside their mean


class Stateful(Protocol):
    """Anything that a checkpoint saves and restores."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


def first_not_finite(parts: Mapping[str, Stateful]) -> str | None:
    """Return the name of the first part with a number that is not finite."""

    def is_finite(value: Any) -> bool:
        if isinstance(value, Tensor):
            return bool(value.isfinite().all())
        return not isinstance(value, float) or math.isfinite(value)

    return next((name for name, part in parts.items() if not all(map(is_finite, tree_leaves(part.state_dict())))), None)


def refuse_not_finite(parts: Mapping[str, Stateful], step: int) -> None:
    """Raise DivergenceError if a number of a part is not finite. step: the number of steps so far."""
    if name := first_not_finite(parts):
        raise DivergenceError(f"the {name.replace('_', ' ')} became not finite by step {step}.", ADVICE)


def load_all_or_none(parts: Mapping[str, Stateful], loads: Mapping[str, Callable[[], object]]) -> None:
    """Call all `loads`, which change the parts. If one fails, or leaves numbers that are not finite, undo all changes.

    Raises ValueError with the name of the load and the reason, or the UserError of a load.
    """

    def copied(value: Any) -> Any:
        return value.detach().to("cpu", copy=True) if isinstance(value, Tensor) else value

    before = {name: tree_map(copied, part.state_dict()) for name, part in parts.items()}
    loading = ""
    try:
        for loading in loads:
            loads[loading]()
        loading = first_not_finite(parts) or ""
        if loading:
            raise ValueError("got numbers that are not finite, expected finite ones")
    except Exception as error:  # a state of other code makes PyTorch raise almost anything
        for name, part in parts.items():
            part.load_state_dict(before[name])
        if isinstance(error, UserError):
            raise
        own = str(error) if type(error) is ValueError else f"got a state of another kind ({type(error).__name__})"
        raise ValueError(f"{loading}: {own}") from error


@dataclass
class RunningMean:
    """Means over images, and some maxima over steps, of the metrics since the last `clear`; kept on the device."""

    images: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Any], images: int) -> None:
        """Include the metrics of a step on `images` images that are tensors; numbers need no mean."""
        measured = {key: value.detach().float() for key, value in metrics.items() if isinstance(value, Tensor)}
        if {key: mean.shape for key, mean in self.means.items()} != {key: x.shape for key, x in measured.items()}:
            self.clear()  # empty, or restored from a file with other metrics
        self.images += images
        for key, value in measured.items():
            mean = self.means[key].to(value.device) if key in self.means else torch.zeros_like(value)
            # A step towards the new value instead of a sum: sums would grow too large for float32.
            self.means[key] = mean + (value - mean) * (images / self.images)
        for key in MAXIMA:
            largest = self.maxima.get(key, measured[key]).to(measured[key].device)
            self.maxima[key] = torch.maximum(largest, measured[key])

    def values(self) -> dict[str, Any]:
        """Return means as numbers and lists, and maxima under the name <metric>_max; empty if no step was added."""
        maxima = {f"{key}_max": value for key, value in self.maxima.items()}
        return {key: value.tolist() for key, value in (self.means | maxima).items()}

    def clear(self) -> None:
        """Remove all metrics."""
        self.images, self.means, self.maxima = 0, {}, {}

    def state_dict(self) -> dict[str, Any]:
        return {"images": self.images, "means": dict(self.means), "maxima": dict(self.maxima)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.images = whole_number(state_dict, "images")
        self.means, self.maxima = dict(state_dict["means"]), dict(state_dict["maxima"])
        if not all(isinstance(value, Tensor) for value in (self.means | self.maxima).values()):
            raise ValueError("got values that are no tensors, expected means as tensors")


class ValidationHistory:
    """The position and the ELBO of every validation of a run."""

    def __init__(self) -> None:
        self.validations: list[Validation] = []

    def state_dict(self) -> dict[str, Any]:
        return {"validations": [tuple(validation) for validation in self.validations]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.validations = [Validation(*map(float, validation)) for validation in state_dict["validations"]]


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
            kl = [float(value) for value in state_dict["kl_per_group"]]
            self.best = Best(Validation(*map(float, state_dict["validation"])), kl, dict(state_dict["weights"]))


class Snapshot:
    """Copies of tensors that a forward pass changes in place, so that a skipped step can be undone."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        by_dtype: dict[torch.dtype, list[Tensor]] = defaultdict(list)  # torch's foreach functions take one dtype
        for tensor in tensors:
            by_dtype[tensor.dtype].append(tensor)
        self._tensors = by_dtype
        self._copies = {dtype: [tensor.clone() for tensor in group] for dtype, group in by_dtype.items()}

    @torch.no_grad()
    def take(self) -> None:
        """Copy the tensors."""
        for dtype, tensors in self._tensors.items():
            torch._foreach_copy_(self._copies[dtype], tensors)

    @torch.no_grad()
    def restore(self) -> None:
        """Set the tensors to what `take` copied."""
        for dtype, tensors in self._tensors.items():
            torch._foreach_copy_(tensors, self._copies[dtype])

    def largest(self, device: torch.device) -> Tensor:
        """Return the largest magnitude in the floating-point tensors, a scalar; not finite if a number is not.

        device: of the result where there are no such tensors, 0.
        """
        groups = [tensors for dtype, tensors in self._tensors.items() if dtype.is_floating_point]
        norms = [norm.float() for group in groups for norm in torch._foreach_norm(group, math.inf)]
        return torch.stack(norms).max() if norms else torch.zeros((), device=device)
