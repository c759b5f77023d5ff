"""The parts of a training state that are not PyTorch's own, and the check of a state that comes from a file."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

MAXIMA = ("gradient_norm",)  # metrics whose maximum is kept beside their mean


class Stateful(Protocol):
    """Anything that a checkpoint saves and restores."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> Any: ...


@dataclass
class Progress:
    """The position in the training: the next image is number `image` of the order of `epoch`. All counts start at 0."""

    epoch: int = 0
    image: int = 0
    step: int = 0
    images_seen: int = 0
    skipped_steps: int = 0

    def state_dict(self) -> dict[str, int]:
        return vars(self).copy()

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        vars(self).update(state_dict)


@dataclass
class RunningMean:
    """Means over images, and some maxima over steps, of the metrics since the last `clear`; kept on the device."""

    images: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Any], images: int) -> None:
        """Include the metrics of a step on `images` images that are tensors; numbers need no mean."""
        measured = {key: value.detach().float() for key, value in metrics.items() if isinstance(value, Tensor)}
        if self.means.keys() != measured.keys():  # empty, or restored from a file with other metrics
            self.clear()
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
        self.images = state_dict["images"]
        self.means, self.maxima = dict(state_dict["means"]), dict(state_dict["maxima"])

    @staticmethod
    def template(saved: Any, num_groups: int) -> dict[str, Any]:
        """Return a state with the keys of a saved one and the right shapes, for `find_mismatch`."""

        def shaped(part: str) -> dict[Any, Tensor]:
            values = saved.get(part) if isinstance(saved, dict) else None
            keys = [key for key in values if isinstance(key, str)] if isinstance(values, dict) else []
            return {key: torch.zeros(num_groups if key == "kl_per_group" else ()) for key in keys}

        return {"images": 0, "means": shaped("means"), "maxima": shaped("maxima")}


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

    def largest(self) -> Tensor:
        """Return the largest magnitude in the floating-point tensors, a scalar; not finite if a number is not."""
        groups = [tensors for dtype, tensors in self._tensors.items() if dtype.is_floating_point]
        norms = [norm.float() for group in groups for norm in torch._foreach_norm(group, math.inf)]
        return torch.stack(norms).max() if norms else torch.zeros(())


# -------------------------------------------------------------------------------------------- checking a saved state


def find_mismatch(value: Any, template: Any, key: str) -> str | None:
    """Return the first difference in type or shape between a saved value and a template, as "key: got X, expected Y".

    Dictionaries must have the same keys, lists the same length, tensors the same shape and finite numbers. Whole
    numbers are counts, from 0 on; other numbers must be finite.
    """
    if isinstance(template, dict):
        if not isinstance(value, dict) or value.keys() != template.keys():
            return f"{key}: got {_kind(value)}, expected the keys {_names(template)}"
        parts = [(value[name], template[name], f"{key}.{name}") for name in template]
    elif isinstance(template, list | tuple):
        if not isinstance(value, list | tuple) or len(value) != len(template):
            return f"{key}: got {_kind(value)}, expected {len(template)} values"
        parts = [(*pair, f"{key}.{i}") for i, pair in enumerate(zip(value, template, strict=True))]
    else:
        allowed = _allowed(value, template)
        return None if allowed is None else f"{key}: got {_kind(value)}, expected {allowed}"
    return next((mismatch for part in parts if (mismatch := find_mismatch(*part))), None)


def _allowed(value: Any, template: Any) -> str | None:
    """Return None for a value that fits the template, else a description of allowed values."""
    if isinstance(template, Tensor):
        fits = isinstance(value, Tensor) and value.shape == template.shape and value.dtype == template.dtype
        if fits and value.isfinite().all():
            return None
        return f"a tensor of shape {tuple(template.shape)} and {template.dtype} with finite numbers"
    if isinstance(template, bool | str | None):
        return None if type(value) is type(template) else f"a value such as {template!r}"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(template, int):
        return None if is_number and isinstance(value, int) and 0 <= value < 2**63 else "a whole number from 0 on"
    is_finite = is_number and (isinstance(value, int) or math.isfinite(value)) and abs(value) <= 1e300
    return None if is_finite else "a finite number"


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        finite = "" if value.isfinite().all() else ", not finite"
        return f"a tensor of shape {tuple(value.shape)} and {value.dtype}{finite}"
    if isinstance(value, dict):
        return f"the keys {_names(value)}"
    return repr(value)[:100]


def _names(value: dict[Any, Any]) -> str:
    names = [str(name) for name in value]
    return ", ".join(names[:6]) + (", ..." if len(names) > 6 else "") if names else "of an empty dictionary"
