"""Residual cells, skips and squeeze-and-excitation (NVAE, section 3.1 and figure 3)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nvae.model.convolutions import DepthwiseConv2d

RESIDUAL_WEIGHT = 0.1
BATCH_NORM_MOMENTUM = 0.05

Resample = Literal["halve", "double"] | None


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation of (B, C, H, W).

    repeats: how often each value of the input stands for. A cell that doubles the resolution normalises before it
    doubles, which gives the same numbers at a quarter of the cost; only the unbiased variance that goes into the
    running statistics depends on the count, and is corrected here.
    """

    def __init__(self, channels: int, repeats: int = 1) -> None:
        super().__init__(channels, momentum=BATCH_NORM_MOMENTUM)
        self.repeats = repeats

    def forward(self, x: Tensor) -> Tensor:
        if self.repeats == 1 or not (self.training and self.track_running_stats):
            return super().forward(x)
        running_var = self.running_var.clone()
        y = functional.batch_norm(
            x, self.running_mean, running_var, self.weight, self.bias, True, self.momentum, self.eps
        )
        count = x.numel() // x.shape[1]
        correction = self.repeats * (count - 1) / (self.repeats * count - 1)
        kept = self.running_var * (1 - self.momentum)
        self.running_var.copy_(kept + (running_var - kept) * correction)
        return y


class BatchNormSwish(BatchNorm):
    """Batch normalisation followed by swish, x * sigmoid(x)."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(super().forward(x))


class SqueezeExcitation(nn.Module):
    """Gates channels by what the whole image shows (Hu et al. 2018). Returns the gate, (B, C, 1, 1)."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.squeeze = nn.Linear(channels, hidden)
        self.excite = nn.Linear(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.excite(functional.relu(self.squeeze(x.mean((2, 3)))))
        return torch.sigmoid(gate)[:, :, None, None]


class HalvingSkip(nn.Module):
    """Halves the resolution with four strided 1x1 convolutions, a quarter of the channels each."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(in_channels, out_channels // 4, 1, stride=2) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        # All four see the same positions, so they are one convolution.
        weight = torch.cat([convolution.weight for convolution in self.convolutions])
        bias = torch.cat([convolution.bias for convolution in self.convolutions])
        return functional.conv2d(functional.silu(x[:, :, ::2, ::2]), weight, bias)


class DoublingSkip(nn.Module):
    """Doubles the resolution bilinearly (aligned corners) around a 1x1 convolution.

    The interpolation's weights sum to one, so it commutes with the convolution, which is cheaper done first.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(self.convolution(x), scale_factor=2, mode="bilinear", align_corners=True)


def skip(in_channels: int, out_channels: int, resample: Resample) -> nn.Module:
    """The path around a cell."""
    if resample == "halve":
        return HalvingSkip(in_channels, out_channels)
    if resample == "double":
        return DoublingSkip(in_channels, out_channels)
    return nn.Identity()


class ResidualCell(nn.Module):
    """skip(x) + 0.1 * SE(f(x)), f: twice (batch norm, swish, 3x3 convolution). Of the encoder."""

    def __init__(self, in_channels: int, out_channels: int, resample: Resample = None) -> None:
        super().__init__()
        self.skip = skip(in_channels, out_channels, resample)
        self.norm1 = BatchNormSwish(in_channels)
        stride = 2 if resample == "halve" else 1
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.norm2 = BatchNormSwish(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.gate = SqueezeExcitation(out_channels, out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(self.norm1(x))
        h = self.conv2(self.norm2(h))
        return self.skip(x) + RESIDUAL_WEIGHT * self.gate(h) * h


class InvertedResidualCell(nn.Module):
    """skip(x) + 0.1 * SE(f(x)), f: 1x1 to `expansion` times the channels, 5x5 depthwise, 1x1. Of the decoder.

    Every convolution has a batch norm before and after, those inside the wide part with swish, and no bias.
    """

    def __init__(self, in_channels: int, out_channels: int, expansion: int, resample: Resample = None) -> None:
        super().__init__()
        wide = expansion * in_channels
        self.skip = skip(in_channels, out_channels, resample)
        self.doubles = resample == "double"
        repeats = 4 if self.doubles else 1
        self.norm1 = BatchNorm(in_channels, repeats)
        self.expand = nn.Conv2d(in_channels, wide, 1, bias=False)
        self.norm2 = BatchNormSwish(wide, repeats)
        self.spread = DepthwiseConv2d(wide, 5)
        self.norm3 = BatchNormSwish(wide)
        self.project = nn.Conv2d(wide, out_channels, 1, bias=False)
        self.norm4 = BatchNorm(out_channels)
        self.gate = SqueezeExcitation(out_channels, out_channels // 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm2(self.expand(self.norm1(x)))  # (B, wide, H, W)
        if self.doubles:  # everything up to here works on single pixels, so it may come before the doubling
            h = functional.interpolate(h, scale_factor=2, mode="nearest")
        h = self.norm3(self.spread(h))
        h = self.norm4(self.project(h))  # (B, out_channels, H, W)
        return self.skip(x) + RESIDUAL_WEIGHT * self.gate(h) * h


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
    """Batch norms inside `module` note the statistics of their batch in copies, which are thrown away.

    Giving them no statistics to update would do as well, but for what autograd saves, and checkpointing counts that.
    """
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    kept = [(norm, name, buffer) for norm in norms for name, buffer in norm.named_buffers(recurse=False)]
    for norm, name, buffer in kept:
        setattr(norm, name, buffer.clone())
    try:
        yield
    finally:
        for norm, name, buffer in kept:
            setattr(norm, name, buffer)
