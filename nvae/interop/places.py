"""Other projects' weights in our model: every weight finds its place and every place its weight, or none is loaded."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from nvae.errors import UserError
from nvae.model.hierarchy import HierarchicalVAE

Names = dict[str, str]  # our name of a tensor to theirs


class ImportingError(UserError):
    """A file of another project that cannot be read, or does not fit the model that it says it holds."""


def tensors_of(ours: str, theirs: str, module: nn.Module, renamed: Mapping[str, str] | None = None) -> Names:
    """The tensors of a module at `ours` that is called `theirs`; their names inside it are ours but for `renamed`."""
    renamed = renamed or {}
    return {f"{ours}.{name}": f"{theirs}.{renamed.get(name, name)}" for name in module.state_dict()}


def fill(model: HierarchicalVAE, state: Mapping[str, Tensor], names: Names, source: str) -> None:
    """Load a state dictionary with their names. Raises ImportingError, naming what does not fit, and loads nothing.

    names: their name of every tensor of the model that is not empty.
    """
    places = {name: tensor for name, tensor in model.state_dict().items() if tensor.numel()}
    if places.keys() != names.keys():
        odd = _some(sorted(places.keys() ^ names.keys()))
        raise ImportingError(f"{source}: no network of that project has {odd}; the --config describes another network.")
    missing = [theirs for theirs in names.values() if theirs not in state]
    if missing:
        raise ImportingError(f"{source} lacks {_some(missing)}, which the network of its settings has.")
    left = sorted(state.keys() - set(names.values()))
    if left:
        raise ImportingError(f"{source} holds {_some(left)}, which the network of its settings does not have.")
    for ours, theirs in names.items():
        if not isinstance(state[theirs], Tensor):
            raise ImportingError(f"{source}: '{theirs}' is not a tensor.")
        if state[theirs].shape != places[ours].shape:
            raise ImportingError(
                f"{source}: '{theirs}' is {_shape(state[theirs])}, but in the network of its settings it is "
                f"{_shape(places[ours])}."
            )
    empty = {name: tensor for name, tensor in model.state_dict().items() if name not in places}
    model.load_state_dict(empty | {ours: state[theirs].to(places[ours].dtype) for ours, theirs in names.items()})


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a single number"


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
