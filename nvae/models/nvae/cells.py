"""Residual cells, skips and squeeze-and-excitation (NVAE, section 3.1 and figure 3)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from nvae.models.batch_norms import copy_statistics, num_values, restored_batch_norms
from nvae.models.folding import Foldable, FoldedConvolution
from nvae.models.nvae.config import ArchInstance
from nvae.models.nvae.convolutions import DepthwiseConv2d, Normalization, SpectralNorm, normalized

RESIDUAL_WEIGHT = 0.1
BATCH_NORM_MOMENTUM = 0.05

Resample = Literal["downsample", "upsample"] | None


@dataclass(frozen=True)
class CellOptions:
    """The options that all cells of a model share."""

    normalization: Normalization = "none"  # of the convolutions in residual cells and in skips
    inverted_normalization: Normalization = "none"  # of the convolutions in inverted residual cells
    squeeze_excitation: Literal["none", "half", "sixteenth"] = "half"
    downsample_skip: Literal["aligned", "shifted"] = "aligned"
    upsample_skip_bias: bool = True


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Return a batch norm for (B, C, H, W)."""
    return nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)


def normalize_before_upsampling(norm: nn.Module, x: Tensor, repeats: int) -> Tensor:
    """Return norm(x) of an x that will be upsampled: each pixel becomes `repeats` pixels.

    Normalizing before a nearest-neighbor upsampling gives the same numbers at a fraction of the cost. Only the unbiased
    variance in the running statistics depends on the number of pixels; this function corrects that variance.
    """
    if repeats == 1 or not isinstance(norm, _BatchNorm) or not norm.training:
        return norm(x)
    running_var, momentum = norm.running_var, norm.momentum
    assert running_var is not None and momentum is not None  # of every batch norm of a cell
    norm.running_var = running_var.clone()  # autograd saves the buffer that the norm updates: correct a copy of it
    y = norm(x)
    count = num_values(norm, x)
    correction = repeats * (count - 1) / (repeats * count - 1)
    kept = running_var * (1 - momentum)
    running_var.copy_(kept + (norm.running_var - kept) * correction)
    norm.running_var = running_var
    return y


class Swish(nn.Module):
    """x * sigmoid(x), in place when gradients are off."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x, inplace=not torch.is_grad_enabled())


class SqueezeExcitation(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018): a factor in (0, 1) per channel, (B, C, H, W) to (B, C, 1, 1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.excite(functional.relu(self.squeeze(x.mean((2, 3)))))  # (B, C)
        return torch.sigmoid(logits)[:, :, None, None]


def squeeze_excitation(channels: int, options: CellOptions) -> SqueezeExcitation | None:
    """Return the squeeze-and-excitation of a cell with this number of channels; None if the options have none."""
    widths = {"none": None, "half": channels // 2, "sixteenth": max(channels // 16, 4)}
    hidden = widths[options.squeeze_excitation]
    return None if hidden is None else SqueezeExcitation(channels, hidden)


class FactorizedReduce(nn.Module):
    """Swish, then four 1x1 convolutions with stride 2, each for a quarter of the output channels.

    (B, C_in, H, W) to (B, C_out, H / 2, W / 2). Aligned: all four see the pixels of even rows and columns, and are
    computed as one convolution. Shifted: each sees another pixel of every 2x2 square, in the order top left, bottom
    right, top right, bottom left.
    """

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions) -> None:
        super().__init__()
        self.shifted = options.downsample_skip == "shifted"
        self.convolutions = nn.ModuleList(
            normalized(nn.Conv2d(in_channels, out_channels // 4, 1), options.normalization) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        if not self.shifted:
            weight, bias = (
                torch.cat([getattr(conv, name) for conv in self.convolutions]) for name in ("weight", "bias")
            )
            return functional.conv2d(functional.silu(x[:, :, ::2, ::2]), weight, bias)
        x = functional.silu(x)
        squares = (x[:, :, row::2, column::2] for row, column in ((0, 0), (1, 1), (0, 1), (1, 0)))
        return torch.cat([conv(square) for conv, square in zip(self.convolutions, squares, strict=True)], dim=1)


class UpsampleSkip(nn.Module):
    """A 1x1 convolution, then bilinear upsampling by 2 with aligned corners.

    (B, C_in, H, W) to (B, C_out, 2 H, 2 W). The interpolation's weights sum to one, so the two operations commute; the
    convolution is cheaper at the lower resolution.
    """

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=options.upsample_skip_bias)
        self.convolution = normalized(convolution, options.normalization)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.convolution(x), scale_factor=2, mode="bilinear", align_corners=True)


class Cell(Foldable):
    """The base class of all cells: skip(x) + 0.1 * se(f(x)) * f(x). `branch` computes f; `se` may be None."""

    se: SqueezeExcitation | None

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.skip: nn.Module = nn.Identity()
        if resample is not None:
            kind = FactorizedReduce if resample == "downsample" else UpsampleSkip
            self.skip = kind(in_channels, out_channels, options)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        scale = RESIDUAL_WEIGHT if self.se is None else RESIDUAL_WEIGHT * self.se(h)
        return self.skip(x) + scale * h


class ResidualCell(Cell):
    """A cell with f = twice (batch norm, activation, 3x3 convolution); the first convolution resamples.

    activation: the function before each convolution, "swish" or "elu"; the prefix "bn" adds a batch norm before it.
    dilations: one number for each of the two convolutions.
    """

    conv1: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: CellOptions,
        resample: Resample = None,
        *,
        activation: str = "bnswish",
        dilations: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(in_channels, out_channels, options, resample)
        self.activation = activation
        has_norm, stride = activation.startswith("bn"), 2 if resample == "downsample" else 1
        first, second = dilations
        self.act = Swish() if activation.endswith("swish") else nn.ELU()
        self.norm1 = batch_norm(in_channels) if has_norm else nn.Identity()
        conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=first, dilation=first)
        self.conv1 = normalized(conv1, options.normalization)
        self.norm2 = batch_norm(out_channels) if has_norm else nn.Identity()
        conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=second, dilation=second)
        self.conv2 = normalized(conv2, options.normalization)
        self.se = squeeze_excitation(out_channels, options)

    def branch(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(x))
        if self.resample == "upsample":
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        return self.conv2(self.act(self.norm2(self.conv1(h))))

    def fold_batch_norms(self) -> None:
        self.conv1, self.norm2 = FoldedConvolution(self.conv1, after=self.norm2), nn.Identity()


class InvertedResidualCell(Cell):
    """A cell with f = 1x1 convolution to `expansion` times the channels, 5x5 depthwise convolution, 1x1 convolution.

    A batch norm precedes and follows every convolution; swish follows the two batch norms of the expanded channels.
    Convolutions have no bias. groups: groups of the middle convolution; None for a depthwise convolution.
    """

    expand: nn.Module
    depthwise: nn.Module
    project: nn.Module
    norm1: nn.Module
    norm2: nn.Module
    norm3: nn.Module
    norm4: nn.Module

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: CellOptions,
        resample: Resample = None,
        *,
        expansion: int,
        kernel_size: int = 5,
        groups: int | None = None,
    ) -> None:
        super().__init__(in_channels, out_channels, options, resample)
        expanded, stride = expansion * in_channels, 2 if resample == "downsample" else 1
        middle: nn.Conv2d
        if groups is None:
            middle = DepthwiseConv2d(expanded, kernel_size, stride)
        else:
            middle = nn.Conv2d(expanded, expanded, kernel_size, stride, kernel_size // 2, groups=groups, bias=False)
        self.act = Swish()
        self.norm1 = batch_norm(in_channels)
        self.expand = normalized(nn.Conv2d(in_channels, expanded, 1, bias=False), options.inverted_normalization)
        self.norm2 = batch_norm(expanded)
        self.depthwise = normalized(middle, options.inverted_normalization)
        self.norm3 = batch_norm(expanded)
        self.project = normalized(nn.Conv2d(expanded, out_channels, 1, bias=False), options.inverted_normalization)
        self.norm4 = batch_norm(out_channels)
        self.se = squeeze_excitation(out_channels, options)

    def branch(self, x: Tensor) -> Tensor:
        repeats = 4 if self.resample == "upsample" else 1
        h = self.expand(normalize_before_upsampling(self.norm1, x, repeats))  # (B, expanded, H, W)
        h = self.act(normalize_before_upsampling(self.norm2, h, repeats))
        if self.resample == "upsample":  # all layers before work on single pixels: upsampling after them is cheaper
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = self.act(self.norm3(self.depthwise(h)))
        return self.norm4(self.project(h))  # (B, out_channels, H, W)

    def fold_batch_norms(self) -> None:
        self.expand = FoldedConvolution(self.expand, before=self.norm1, after=self.norm2)
        self.depthwise = FoldedConvolution(self.depthwise, after=self.norm3)
        self.project = FoldedConvolution(self.project, after=self.norm4)
        self.norm1 = self.norm2 = self.norm3 = self.norm4 = nn.Identity()


@dataclass(frozen=True)
class CellTypes:
    """The cells of a model's four parts, as functions (in_channels, out_channels, options, resample) -> Cell."""

    preprocess: Callable[..., Cell]
    encoder: Callable[..., Cell]
    decoder: Callable[..., Cell]
    postprocess: Callable[..., Cell]


def cell_types(arch_instance: ArchInstance) -> CellTypes:
    """Return the cells behind one of the original NVAE's names."""
    residual = ResidualCell
    inverted6, inverted3 = (partial(InvertedResidualCell, expansion=expansion) for expansion in (6, 3))
    if arch_instance in ("res_elu", "res_bnelu", "res_bnswish"):
        cell = partial(ResidualCell, activation=arch_instance.removeprefix("res_"))
        return CellTypes(cell, cell, cell, cell)
    if arch_instance in _DILATIONS:  # for all cells of the bottom-up network, pre-processing included
        dilated = partial(residual, dilations=_DILATIONS[arch_instance])
        return CellTypes(dilated, dilated, inverted6, inverted3)
    large, grouped = partial(inverted6, kernel_size=11), partial(inverted3, groups=8)
    return {
        "res_mbconv": CellTypes(residual, residual, inverted6, inverted3),
        "mbconv_res": CellTypes(inverted3, inverted6, residual, residual),
        "mbconv_sep": CellTypes(inverted3, inverted6, inverted6, inverted3),
        "mbconv_sep11": CellTypes(inverted3, large, large, inverted3),
        "mbconv_den": CellTypes(grouped, inverted6, inverted6, grouped),
    }[arch_instance]


_DILATIONS = {"res53_mbconv": (2, 1), "res35_mbconv": (1, 2), "res55_mbconv": (2, 2)}


class CellStack(nn.Sequential):
    """Cells one after another. With `recompute`, the backward pass computes the activations inside cells again.

    Cells draw no random numbers, and the second computation does not change the running statistics, so `recompute`
    changes time and memory only.
    """

    recompute = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.recompute and torch.is_grad_enabled()):
            return super().forward(x)
        for cell in self:
            contexts = partial(_recomputation_contexts, cell)
            x = checkpoint(cell, x, use_reentrant=False, preserve_rng_state=False, context_fn=contexts)
        return x


def _recomputation_contexts(cell: nn.Module) -> tuple[AbstractContextManager, AbstractContextManager]:
    return nullcontext(), _frozen_statistics(cell)


@contextmanager
def _frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Keep the buffers of the batch norms and spectral norms inside `module` unchanged by a forward pass.

    Batch norms update copies of their running statistics, and the copies are dropped. Switching off the update would
    change which tensors autograd saves, and activation checkpointing requires the same tensors both times. Spectral
    norms take no step of power iteration, because the first computation took one.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    iterating = nn.ModuleList(m for m in module.modules() if isinstance(m, SpectralNorm) and m.training)
    with restored_batch_norms(norms):
        for norm in norms:
            copy_statistics(norm)
        iterating.eval()
        try:
            yield
        finally:
            iterating.train()
