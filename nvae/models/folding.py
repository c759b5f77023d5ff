"""Copies of a model for inference, whose convolutions are computed once and contain the batch norms beside them.

In evaluation mode a batch norm is a factor and a summand per channel, so it can become a part of the weight and the
bias of a convolution that directly precedes or follows it. A copy shares its tensors with the model, and the model
stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import parametrize

Model = TypeVar("Model", bound=nn.Module)


class Foldable(nn.Module):
    """The base class of modules with batch norms that can be folded."""

    def fold_batch_norms(self) -> None:
        """Replace convolutions by `FoldedConvolution`, and the batch norms in these by nn.Identity."""
        raise NotImplementedError


def for_inference(model: Model, buffers: Mapping[str, Tensor] | None = None) -> Model:
    """Return a copy of a model for passes in evaluation mode without gradients, with folded batch norms.

    buffers: other values of some of the model's buffers, by name, such as statistics of batch norms. Make a new copy
    when the weights have changed.
    """
    network = unfolded_copy(model)
    for path, value in (buffers or {}).items():
        owner, _, name = path.rpartition(".")
        setattr(network.get_submodule(owner), name, value)
    for module in list(network.modules()):
        if isinstance(module, Foldable):
            module.fold_batch_norms()
    return network


def unfolded_copy(model: Model) -> Model:
    """Return a copy of a model as `for_inference` does, with batch norms, which may be changed."""
    return _copy(model, {})


def _copy(module: Any, copies: dict[nn.Module, nn.Module]) -> Any:
    """Copy a module and its submodules, in evaluation mode, but no tensors. copies: those made so far, by module."""
    if module not in copies:
        copied = module.__new__(type(module))
        children = {name: None if m is None else _copy(m, copies) for name, m in module._modules.items()}
        hooks = {name: value.copy() for name, value in module.__dict__.items() if name.endswith("_hooks")}
        own = {"_modules": children, "_buffers": dict(module._buffers), "training": False}
        copied.__dict__.update(module.__dict__ | hooks | own)
        is_computed = isinstance(module, nn.Conv2d) and parametrize.is_parametrized(module)
        copies[module] = FoldedConvolution(copied) if is_computed else copied
    return copies[module]


class FoldedConvolution(nn.Module):
    """A convolution with the batch norms that directly precede and follow it; its weight is computed at the first use.

    before: only for a convolution of 1x1 without groups. (A batch norm would change the zeros of a padding.)
    """

    def __init__(self, convolution: Any, before: nn.Module | None = None, after: nn.Module | None = None) -> None:
        super().__init__()
        if isinstance(convolution, FoldedConvolution):  # of a parametrized convolution alone
            convolution = convolution.convolution
        self._parts = convolution, before, after  # not submodules: folded batch norms are none of the copy's

    def forward(self, x: Tensor) -> Tensor:
        return self.convolution._conv_forward(x, *self._folded)

    @property
    def convolution(self) -> nn.Conv2d:
        return self._parts[0]

    @property
    def out_channels(self) -> int:
        return self.convolution.out_channels

    @property
    def weight(self) -> Tensor:
        return self._folded[0]

    @property
    def bias(self) -> Tensor | None:
        return self._folded[1]

    @cached_property
    @torch.no_grad()
    def _folded(self) -> tuple[Tensor, Tensor | None]:
        convolution, before, after = self._parts
        weight, bias = convolution.weight, convolution.bias
        if isinstance(before, _BatchNorm):
            factor, summand = _affine(before)
            shift = weight[:, :, 0, 0] @ summand
            weight, bias = weight * factor[:, None, None], shift if bias is None else bias + shift
        if isinstance(after, _BatchNorm):
            factor, summand = _affine(after)
            weight = weight * factor[:, None, None, None]
            bias = summand if bias is None else torch.addcmul(summand, bias, factor)
        return weight, bias


def _affine(norm: Any) -> tuple[Tensor, Tensor]:
    """Return the factor and the summand per channel of a batch norm in evaluation mode, (C,) each."""
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    return factor, norm.bias - norm.running_mean * factor
