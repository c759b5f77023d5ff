"""The names of an NVAE's tensors in another project, made of the places of cells and convolutions in the network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.interop.key_mapping import KeyMap
from nvae.models.nvae.network import NVAE

_LAYERS = (nn.Conv2d, nn.Linear, _BatchNorm)


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
    modules: Mapping[str, Callable[[Place], str]]  # the name of a module, by the part of its place
    layer_names: Callable[[nn.Module], Mapping[str, str]]  # layers inside a cell or a flow cell: our name to theirs
    weights: Mapping[str, str]  # parameters of a normalized or masked weight: our name to theirs


def places(model: NVAE) -> Iterator[tuple[str, Place]]:
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
    for i, (cells, (scale, split)) in enumerate(zip(encoder.tower, splits, strict=True)):
        g = len(groups) - 1 - i
        for c, number in _numbered(cells):
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


def _numbered(stack: Any) -> Iterator[tuple[int, int]]:
    """Yield the index of every cell and its number: 0 for a resampling cell, which is the first."""
    resamples = len(stack) > 0 and stack[0].resample is not None
    return ((c, c if resamples else c + 1) for c in range(len(stack)))


def build_key_map(model: NVAE, layout: Layout) -> KeyMap:
    """Return a project's name of every tensor of an NVAE."""
    names: KeyMap = {} if model.config.plain_vae else {"constant": layout.constant}
    for ours, place in places(model):
        module, theirs = model.get_submodule(ours), layout.modules[place.part](place)
        inside = {"": ""} if isinstance(module, nn.Conv2d) else layout.layer_names(module)
        for path, layer in module.named_modules():
            if isinstance(layer, _LAYERS):
                for name in layer.state_dict():
                    there = f"{theirs}.{inside[path]}".rstrip(".")
                    names[f"{ours}.{path}".rstrip(".") + f".{name}"] = f"{there}.{layout.weights.get(name, name)}"
    return names
