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

from nvae.models.nvae.config import ArchInstance
from nvae.models.nvae.convolutions import DepthwiseConv2d, Normalization, SpectralNorm, normalized

RESIDUAL_WEIGHT = 0.1
BATCH_NORM_MOMENTUM = 0.05

Resample = Literal["downsample", "upsample"] | None


@dataclass(frozen=True)
class CellOptions:
    """The options in which the cells of one model are alike."""

    normalization: Normalization = "none"  # of the convolutions of residual cells and of skips
    inverted_normalization: Normalization = "none"  # of those of inverted residual cells
    squeeze_excitation: Literal["none", "half", "sixteenth"] = "half"
    downsample_skip: Literal["aligned", "shifted"] = "aligned"
    upsample_skip_bias: bool = True


def batch_norm(channels: int) -> nn.BatchNorm2d:
    """Batch normalization of (B, C, H, W)."""
    return nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)


def normalize_before_upsampling(norm: nn.Module, x: Tensor, repeats: int) -> Tensor:
    """norm(x), where x will be upsampled so that each pixel becomes `repeats` pixels.

    Normalizing before a nearest-neighbor upsampling gives the same numbers at a fraction of the cost. Only the unbiased
    variance that enters the running statistics depends on the number of pixels; it is corrected here.
    """
    if repeats == 1 or not isinstance(norm, _BatchNorm) or not norm.training or not norm.track_running_stats:
        return norm(x)
    running_var = norm.running_var
    norm.running_var = running_var.clone()  # autograd keeps what the norm updates, so the correction needs a copy
    y = norm(x)
    count = x.numel() // x.shape[1]
    correction = repeats * (count - 1) / (repeats * count - 1)
    kept = running_var * (1 - norm.momentum)
    running_var.copy_(kept + (norm.running_var - kept) * correction)
    norm.running_var = running_var
    return y


class Swish(nn.Module):
    """x * sigmoid(x), in place where no gradient needs the input."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x, inplace=not torch.is_grad_enabled())


class SqueezeExcitation(nn.Module):
    """Gates channels by what the whole image shows (Hu et al. 2018). Returns the gate, (B, C, 1, 1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(functional.relu(self.squeeze(x.mean((2, 3)))))
        return torch.sigmoid(gate)[:, :, None, None]


def squeeze_excitation(channels: int, options: CellOptions) -> SqueezeExcitation | None:
    """The squeeze-and-excitation of a cell with so many channels."""
    if options.squeeze_excitation == "none":
        return None
    return SqueezeExcitation(
        channels, channels // 2 if options.squeeze_excitation == "half" else max(channels // 16, 4)
    )


class FactorizedReduce(nn.Module):
    """Swish, then four 1x1 convolutions of every second pixel, a quarter of the channels each.

    Aligned, all four see the pixels of even rows and columns, and are computed as one. Shifted, they see the four
    pixels of each square: itself, the one down and to the right, the one to the right, the one below.
    """

    SHIFTS = {"aligned": ((0, 0), (0, 0), (0, 0), (0, 0)), "shifted": ((0, 0), (1, 1), (0, 1), (1, 0))}

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions) -> None:
        super().__init__()
        self.shifts = self.SHIFTS[options.downsample_skip]
        self.convolutions = nn.ModuleList(
            normalized(nn.Conv2d(in_channels, out_channels // 4, 1), options.normalization) for _ in range(4)
        )

    def forward(self, x: Tensor) -> Tensor:
        if len(set(self.shifts)) == 1:
            weight = torch.cat([convolution.weight for convolution in self.convolutions])
            bias = torch.cat([convolution.bias for convolution in self.convolutions])
            return functional.conv2d(functional.silu(x[:, :, ::2, ::2]), weight, bias)
        x = functional.silu(x)
        return torch.cat(
            [
                convolution(x[:, :, row::2, column::2])
                for convolution, (row, column) in zip(self.convolutions, self.shifts, strict=True)
            ],
            dim=1,
        )


class UpsampleSkip(nn.Module):
    """Doubles the resolution bilinearly (aligned corners) around a 1x1 convolution.

    The interpolation's weights sum to one, so it commutes with the convolution, which is cheaper done first.
    """

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions) -> None:
        super().__init__()
        convolution = nn.Conv2d(in_channels, out_channels, 1, bias=options.upsample_skip_bias)
        self.convolution = normalized(convolution, options.normalization)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.convolution(x), scale_factor=2, mode="bilinear", align_corners=True)


def skip(in_channels: int, out_channels: int, options: CellOptions, resample: Resample) -> nn.Module:
    """The path around a cell."""
    if resample == "downsample":
        return FactorizedReduce(in_channels, out_channels, options)
    if resample == "upsample":
        return UpsampleSkip(in_channels, out_channels, options)
    return nn.Identity()


class Cell(nn.Module):
    """skip(x) + 0.1 * SE(f(x)): what all cells have in common. `branch` is f, `se` is SE, or None."""

    se: SqueezeExcitation | None

    def __init__(self, in_channels: int, out_channels: int, options: CellOptions, resample: Resample) -> None:
        super().__init__()
        self.resample = resample
        self.skip = skip(in_channels, out_channels, options, resample)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        h = self.branch(x)
        scale = RESIDUAL_WEIGHT if self.se is None else RESIDUAL_WEIGHT * self.se(h)
        return self.skip(x) + scale * h


class ResidualCell(Cell):
    """f: twice (batch norm, activation, 3x3 convolution), resampling before or with the first convolution.

    activation: what precedes each convolution, with a batch norm ("bn...") or without one. dilations: of the two
    convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        options: CellOptions,
        resample: Resample = None,
        *,
        activation: Literal["bnswish", "bnelu", "elu"] = "bnswish",
        dilations: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__(in_channels, out_channels, options, resample)
        self.activation = activation
        has_norm, stride = activation.startswith("bn"), 2 if resample == "downsample" else 1
        first, second = dilations
        self.act = Swish() if activation.endswith("swish") else nn.ELU()
        self.norm1 = batch_norm(in_channels) if has_norm else nn.Identity()
        self.conv1 = normalized(
            nn.Conv2d(in_channels, out_channels, 3, stride, padding=first, dilation=first), options.normalization
        )
        self.norm2 = batch_norm(out_channels) if has_norm else nn.Identity()
        self.conv2 = normalized(
            nn.Conv2d(out_channels, out_channels, 3, padding=second, dilation=second), options.normalization
        )
        self.se = squeeze_excitation(out_channels, options)

    def branch(self, x: Tensor) -> Tensor:
        h = self.act(self.norm1(x))
        if self.resample == "upsample":
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        return self.conv2(self.act(self.norm2(self.conv1(h))))


class InvertedResidualCell(Cell):
    """f: 1x1 to `expansion` times the channels, 5x5 depthwise, 1x1.

    Every convolution has a batch norm before and after, those inside the expansion with swish, and no bias.
    groups: of the convolution in the middle; None for depthwise.
    """

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
        if self.resample == "upsample":  # everything before works on single pixels, so it may precede the upsampling
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = self.act(self.norm3(self.depthwise(h)))
        return self.norm4(self.project(h))  # (B, out_channels, H, W)


@dataclass(frozen=True)
class CellTypes:
    """Which cell a model has in each of its four places: functions (in, out, options, resample) -> Cell."""

    preprocess: Callable[..., Cell]
    encoder: Callable[..., Cell]
    decoder: Callable[..., Cell]
    postprocess: Callable[..., Cell]


def cell_types(arch_instance: ArchInstance) -> CellTypes:
    """The cells that the original NVAE knows by one name."""
    residual = ResidualCell
    inverted6, inverted3 = (partial(InvertedResidualCell, expansion=expansion) for expansion in (6, 3))
    if arch_instance in ("res_elu", "res_bnelu", "res_bnswish"):
        cell = partial(ResidualCell, activation=arch_instance.removeprefix("res_"))
        return CellTypes(cell, cell, cell, cell)
    if arch_instance in _DILATIONS:  # every convolution of the bottom-up network's cells, pre-processing included
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
    """Cells one after another. With `recompute`, what happens inside a cell is computed again for the gradient.

    Cells draw no random numbers, and the second computation leaves the running statistics alone, so nothing but time
    and memory depends on it.
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
    return nullcontext(), _still_statistics(cell)


@contextmanager
def _still_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms and spectral norms inside `module` change nothing that outlives the computation.

    Batch norms note the statistics of their batch in copies, which are thrown away. Giving them no statistics to update
    would do as well, but for what autograd saves, and checkpointing counts that. Spectral norms leave out the step of
    power iteration that the first computation took.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    iterating = [m for m in module.modules() if isinstance(m, SpectralNorm) and m.training]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    for norm in iterating:
        norm.eval()
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
        for norm in iterating:
            norm.train()
