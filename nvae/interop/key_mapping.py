"""Strict loading of other projects' weights through a key map: every source key and every target key must match."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nvae.models.families import build_model, build_with_weights
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy, UserError

KeyMap = dict[str, str]  # our name of a tensor to the other project's name


class InteropError(UserError):
    """A file of another project that does not fit its config, or does not say enough for one.

    The remedy MODEL_CONFIG is given if the import may succeed with a config from the caller.
    """


def load_with_key_map(
    config: ModelConfig, state: Mapping[str, Tensor], key_map: Callable[[HierarchicalVAE], KeyMap], source: str
) -> HierarchicalVAE:
    """Return the model of a config, in eval mode, with the weights of a state dictionary.

    key_map: a function from our model to the project's name of each of its tensors that has elements.
    Raises InteropError, naming the first tensor that does not fit.
    """
    with torch.device("meta"):  # compare shapes before allocating memory
        blank = build_model(config)
        names = key_map(blank)
    ours = blank.state_dict()
    targets = {name: tensor for name, tensor in ours.items() if tensor.numel()}

    def refuse(what: str) -> InteropError:
        return InteropError(f"{source} does not fit its config: {what}.", Remedy.MODEL_CONFIG)

    if targets.keys() != names.keys():
        raise refuse(f"networks of this project have no {_some(targets.keys() ^ names.keys())}")
    if missing := set(names.values()) - state.keys():
        raise refuse(f"the file lacks {_some(missing)}")
    if extra := state.keys() - set(names.values()):
        raise refuse(f"the config has no {_some(extra)}")
    weights = {name: torch.empty_like(tensor, device="cpu") for name, tensor in ours.items() if not tensor.numel()}
    for name, theirs in names.items():
        tensor, target = state[theirs], targets[name]
        if tensor.shape != target.shape:
            raise refuse(f"{_quoted(theirs)}: got shape {tuple(tensor.shape)}, expected {tuple(target.shape)}")
        if tensor.is_floating_point() != target.is_floating_point():
            raise refuse(f"{_quoted(theirs)}: got dtype {tensor.dtype}, expected {target.dtype}")
        weights[name] = tensor.to(target.dtype)
        if not weights[name].isfinite().all():
            raise InteropError(f"{source}: {_quoted(theirs)} has values that are not finite as {target.dtype}.")
    return build_with_weights(config, weights)


def count_numbers(state: Mapping[str, Tensor], pattern: str) -> int:
    """Count the different numbers that the group of a pattern matches at the start of names."""
    return len({match[1] for name in state if (match := re.match(pattern, name))})


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "...")


def _some(names: set[str]) -> str:
    first, more = min(names), len(names) - 1
    return _quoted(first) + (f" and {more} more tensors" if more else "")
