"""Other projects' weights in our model: every weight finds its place and every place its weight, or none is loaded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from nvae.errors import UserError
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.config import NVAEConfig

Names = dict[str, str]  # our name of a tensor to theirs
# Both projects call the layers of squeeze-and-excitation by their number.
SE_KEYS = {
    f"{ours}.{part}": f"{n}.{part}" for ours, n in (("squeeze", 0), ("excite", 2)) for part in ("weight", "bias")
}


class InteropError(UserError):
    """A file of another project that cannot be read, or does not fit the model that it says it holds."""


def tensors_of(ours: str, theirs: str, module: nn.Module, renamed: Mapping[str, str] | None = None) -> Names:
    """The tensors of a module at `ours` that is called `theirs`; their names inside it are ours but for `renamed`."""
    renamed = renamed or {}
    return {f"{ours}.{name}": f"{theirs}.{renamed.get(name, name)}" for name in module.state_dict()}


def check_state_dict(state: object, source: str) -> dict[str, Tensor]:
    """A state dictionary of which nothing but plain tensors of finite numbers is expected. Raises InteropError."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InteropError(f"{source} holds no 'state_dict' of named weights.")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InteropError(f"{source}: '{name}' is not a tensor.")
        plain = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not plain or tensor.is_complex():
            raise InteropError(f"{source}: '{name}' is not a tensor of plain numbers.")
        if not tensor.isfinite().all():
            raise InteropError(f"{source}: '{name}' holds numbers that are not finite; its training had failed.")
    return state


def load_with_key_map(
    config: NVAEConfig, state: Mapping[str, Tensor], key_map: Callable, source: str
) -> HierarchicalVAE:
    """The model of a config with the weights of a state dictionary. Raises InteropError, naming what does not fit.

    key_map: a function from our model to their name of each of its tensors that is not empty.
    """
    with torch.device("meta"):  # before memory is asked for, whatever the config says
        blank = build_model(config)
        places = {name: tensor for name, tensor in blank.state_dict().items() if tensor.numel()}
        names: Names = key_map(blank)
    if places.keys() != names.keys():
        odd = _some(sorted(places.keys() ^ names.keys()))
        raise InteropError(f"{source}: no network of that project has {odd}; the --config describes another network.")
    missing = [theirs for theirs in names.values() if theirs not in state]
    if missing:
        raise InteropError(f"{source} lacks {_some(missing)}, which {_NETWORK} has.")
    left = sorted(state.keys() - set(names.values()))
    if left:
        raise InteropError(f"{source} holds {_some(left)}, which {_NETWORK} does not have.")
    for ours, theirs in names.items():
        found, place = state[theirs], places[ours]
        if found.shape != place.shape:
            raise InteropError(
                f"{source}: '{theirs}' is of shape {_shape(found)}, but in {_NETWORK} of shape {_shape(place)}."
            )
        if found.is_floating_point() != place.is_floating_point():
            raise InteropError(f"{source}: '{theirs}' is of {found.dtype}, but in {_NETWORK} of {place.dtype}.")
    model = build_model(config)
    empty = {name: tensor for name, tensor in model.state_dict().items() if name not in places}
    model.load_state_dict(empty | {ours: state[theirs].to(places[ours].dtype) for ours, theirs in names.items()})
    return model.eval().requires_grad_(False)


_NETWORK = "the network of its settings, or of --config,"


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "()"


def _some(names: list[str]) -> str:
    return f"'{names[0]}'" + (f" and {len(names) - 1} more tensors" if len(names) > 1 else "")
