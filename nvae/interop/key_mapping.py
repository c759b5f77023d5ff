"""Strict loading of other projects' weights through a key map: every source key and every target key must match."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.config import NVAEConfig
from nvae.system.errors import Remedy, UserError

KeyMap = dict[str, str]  # our name of a tensor to the other project's name

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64)
_LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm)


class InteropError(UserError):
    """A file of another project that cannot be read or does not fit its config.

    The remedy MODEL_CONFIG is given if the import may succeed with a config from the caller.
    """


# ---------------------------------------------------------------------------------------------------- key maps


class Place(NamedTuple):
    """The position of a cell, a convolution or a flow cell in our network. All counts but `number` start at 0."""

    part: str  # stem, top, head, preprocess, postprocess, tower, cells, encoder_combiner, ..., flow
    position: int = 0  # among the modules of this part; among cells and combiners together in the two towers
    number: int = 0  # of a cell in its group: 0 resamples, ordinary cells count from 1
    group: int = 0  # top group first
    scale: int = 0  # finest scale first
    split: int = 0  # group within its scale, bottom-up


class Layout(NamedTuple):
    """The names of one project."""

    constant: str  # the learned constant at the top
    module_name: Callable[[Place], str]
    layer_names: Callable[[nn.Module], Mapping[str, str]]  # layers inside a cell or a flow cell: our name to theirs
    weights: Mapping[str, str]  # parameters of a normalized or masked weight: our name to theirs


def places(model: HierarchicalVAE) -> Iterator[tuple[str, Place]]:
    """Yield our name and the place of every module of an NVAE that holds weights."""
    encoder, groups = model.encoder, model.groups
    yield "encoder.stem", Place("stem")
    yield "encoder.top.1", Place("top")
    yield "output.head", Place("head")
    for part, owner, stack in (
        ("preprocess", "encoder", encoder.preprocess),
        ("postprocess", "output", model.output.postprocess),
    ):
        for i in range(len(stack)):
            yield f"{owner}.{part}.{i}", Place(part, i)

    bottom_up = itertools.count()
    splits = [(scale, split) for scale, level in enumerate(reversed(model.levels)) for split in range(level.groups)]
    for i, (stack, (scale, split)) in enumerate(zip(encoder.tower, splits, strict=True)):
        g = len(groups) - 1 - i
        for c, number in _numbered(stack):
            yield f"encoder.tower.{i}.{c}", Place("tower", next(bottom_up), number, g, scale, split)
        if g > 0:
            yield f"groups.{g}.encoder_combiner", Place("encoder_combiner", next(bottom_up), group=g)

    top_down = itertools.count()
    for g, group in enumerate(groups):
        for c, number in _numbered(group.cells):
            yield f"groups.{g}.cells.{c}", Place("cells", next(top_down), number, g)
        combiner = "plain_combiner" if model.config.plain_vae else "decoder_combiner"
        yield f"groups.{g}.decoder_combiner", Place(combiner, next(top_down), group=g)
        yield f"groups.{g}.posterior_head", Place("posterior_head", group=g)
        if g > 0:
            yield f"groups.{g}.prior_head", Place("prior_head", group=g)
        for i in range(len(group.flow)):
            yield f"groups.{g}.flow.{i}", Place("flow", g * len(group.flow) + i, i, g)


def _numbered(stack: nn.Sequential) -> Iterator[tuple[int, int]]:
    """Yield the index of every cell and its number: 0 for a resampling cell, which is the first."""
    resamples = len(stack) > 0 and stack[0].resample is not None
    return ((c, c if resamples else c + 1) for c in range(len(stack)))


def build_key_map(model: HierarchicalVAE, layout: Layout) -> KeyMap:
    """Return a project's name of every tensor of an NVAE."""
    names: KeyMap = {} if model.config.plain_vae else {"constant": layout.constant}
    for ours, place in places(model):
        module, theirs = model.get_submodule(ours), layout.module_name(place)
        inside = {"": ""} if isinstance(module, nn.Conv2d) else layout.layer_names(module)
        for path, layer in module.named_modules():
            if isinstance(layer, _LAYERS):
                names |= tensor_keys(f"{ours}.{path}", f"{theirs}.{inside[path]}", layer, layout.weights)
    return names


def tensor_keys(ours: str, theirs: str, module: nn.Module, renamed: Mapping[str, str]) -> KeyMap:
    """Map the tensors of a module from our prefix to the project's prefix. renamed: tensors with another name."""
    ours, theirs = ours.rstrip("."), theirs.rstrip(".")
    return {f"{ours}.{name}": f"{theirs}.{renamed.get(name, name)}" for name in module.state_dict()}


# ----------------------------------------------------------------------------------------------------- loading


def check_state_dict(state: object, source: str) -> dict[str, Tensor]:
    """Return `state` if it is a dictionary of named, dense, real and finite tensors. Raises InteropError."""
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise InteropError(f"{source}: 'state_dict' is missing or is no dictionary of named tensors.")
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor):
            raise InteropError(f"{source}: {_quoted(name)}: got {type(tensor).__name__}, expected a tensor.")
        if tensor.dtype not in _DTYPES:
            raise InteropError(f"{source}: {_quoted(name)}: got dtype {tensor.dtype}, expected floating point.")
        if tensor.layout is not torch.strided or tensor.device.type != "cpu":
            raise InteropError(f"{source}: {_quoted(name)} is not a dense tensor.")
        # Zero strides declare more elements than the file holds: refuse these before computing with them.
        held = tensor.untyped_storage().nbytes()
        if tensor.numel() * tensor.element_size() > held:
            raise InteropError(
                f"{source}: {_quoted(name)} declares {tensor.numel()} elements of {tensor.element_size()} bytes, "
                f"but its storage has {held} bytes."
            )
        if not tensor.isfinite().all():
            raise InteropError(f"{source}: {_quoted(name)} has values that are not finite.")
    return state


def load_with_key_map(
    config: NVAEConfig, state: Mapping[str, Tensor], key_map: Callable[[HierarchicalVAE], KeyMap], source: str
) -> HierarchicalVAE:
    """Return the model of a config, in eval mode, with the weights of a state dictionary.

    key_map: a function from our model to the project's name of each of its tensors that has elements.
    Raises InteropError, naming the first tensor that does not fit.
    """
    with torch.device("meta"):  # compare shapes before allocating memory
        blank = build_model(config)
        targets = {name: tensor for name, tensor in blank.state_dict().items() if tensor.numel()}
        names = key_map(blank)

    def refuse(what: str) -> InteropError:
        return InteropError(f"{source} does not fit its config: {what}.", Remedy.MODEL_CONFIG)

    if targets.keys() != names.keys():
        raise refuse(f"networks of this project have no {_some(targets.keys() ^ names.keys())}")
    if missing := set(names.values()) - state.keys():
        raise refuse(f"the file lacks {_some(missing)}")
    if extra := state.keys() - set(names.values()):
        raise refuse(f"the config has no {_some(extra)}")
    weights: dict[str, Tensor] = {}
    for ours, theirs in names.items():
        tensor, target = state[theirs], targets[ours]
        if tensor.shape != target.shape:
            raise refuse(f"{_quoted(theirs)}: got shape {_shape(tensor)}, expected {_shape(target)}")
        if tensor.is_floating_point() != target.is_floating_point():
            raise refuse(f"{_quoted(theirs)}: got dtype {tensor.dtype}, expected {target.dtype}")
        weights[ours] = tensor.to(target.dtype)
        if not weights[ours].isfinite().all():
            raise InteropError(f"{source}: {_quoted(theirs)} has values beyond the range of {target.dtype}.")
    model = build_model(config)
    empty = {name: tensor for name, tensor in model.state_dict().items() if name not in targets}
    model.load_state_dict(empty | weights)
    return model.eval().requires_grad_(False)


def _quoted(name: str) -> str:
    return repr(name if len(name) <= 200 else name[:200] + "...")


def _shape(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "()"


def _some(names: set[str]) -> str:
    first, more = min(names), len(names) - 1
    return _quoted(first) + (f" and {more} more tensors" if more else "")
