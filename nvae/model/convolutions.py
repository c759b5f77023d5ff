"""Weight-normalised and masked convolutions.

Both are parametrizations of an ordinary `nn.Conv2d`, so `convolution.weight` is always the effective weight, whoever
asks: the forward pass, a regulariser, or an importer.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parametrize


def weight_normalised(convolution: nn.Conv2d) -> nn.Conv2d:
    """Effective weight g * v / ||v||, the norm taken per output channel (Salimans and Kingma 2016)."""
    parametrize.register_parametrization(convolution, "weight", WeightNorm())
    return convolution


class WeightNorm(nn.Module):
    """Parametrization (g, v) -> g * v / ||v||: g is `original0`, v is `original1`.

    As `torch.nn.utils.parametrizations.weight_norm`, but the weight stays channels last; that one copies it eight times
    in a training step to turn it round and back.
    """

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return v * (g / self._norm(v))

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        return self._norm(weight), weight

    @staticmethod
    def _norm(v: Tensor) -> Tensor:
        return v.square().sum((1, 2, 3), keepdim=True).sqrt()  # (C_out, 1, 1, 1)


class Masked(nn.Module):
    """Parametrization that keeps the entries of a weight where the mask is one."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def causal_mask(
    in_channels: int, out_channels: int, kernel_size: int, groups: int, centre: Literal["earlier", "earlier and own"]
) -> Tensor:
    """Mask of an autoregressive convolution over (row, column, channel): rows from above, columns from the right.

    Rows above, and columns to the right in the same row, are seen whole (that side is what the recorded networks do).
    At the centre tap the channels come in as many groups as the smaller side has channels, and a channel sees the
    groups before its own ("earlier"), or its own too; a depthwise convolution's centre sees only its own channel.
    (Kingma et al. 2016; NVAE, section 3.4.)

    Returns (out_channels, in_channels / groups, kernel_size, kernel_size) of zeros and ones.
    """
    middle = kernel_size // 2
    mask = torch.zeros(out_channels, in_channels // groups, kernel_size, kernel_size)
    mask[:, :, :middle, :] = 1
    mask[:, :, middle, middle + 1 :] = 1
    own_visible = centre == "earlier and own"
    if groups > 1:
        mask[:, :, middle, middle] = float(own_visible)
    else:
        latents = min(in_channels, out_channels)
        of_input = torch.arange(in_channels) // (in_channels // latents)
        of_output = (torch.arange(out_channels) // (out_channels // latents))[:, None]
        mask[:, :, middle, middle] = (of_input <= of_output if own_visible else of_input < of_output).float()
    return mask


def masked_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    centre: Literal["earlier", "earlier and own"],
    mirrored: bool,
) -> nn.Conv2d:
    """A causal convolution that keeps the resolution; `mirrored` turns the order of the pixels (not channels) round."""
    mask = causal_mask(in_channels, out_channels, kernel_size, groups, centre)
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups)
    parametrize.register_parametrization(convolution, "weight", Masked(mask.flip(2, 3) if mirrored else mask))
    return convolution


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution that keeps the resolution, without bias."""

    def __init__(self, channels: int, kernel_size: int) -> None:
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not (x.device.type == "cpu" and self.weight.requires_grad and torch.is_grad_enabled()):
            return super().forward(x)
        weight = self.weight
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _DepthwiseConvolution.apply(x, weight)


class _DepthwiseConvolution(torch.autograd.Function):
    """Depthwise convolution whose gradients are computed fast on a CPU, as depthwise convolutions themselves.

    The gradient of the input is that of the output convolved with the mirrored kernel. The gradient of the weight is
    the input of every image correlated with its gradient of the output, as if that were the kernel. oneDNN's forward
    kernels do both two to five times as fast as its backward ones (measured by benchmarks/depthwise.py).
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return functional.conv2d(x, weight, padding=weight.shape[-1] // 2, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = ctx.saved_tensors
        batch, channels, height, width = x.shape
        padding = weight.shape[-1] // 2
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = functional.conv2d(grad, weight.flip(2, 3), padding=padding, groups=channels)
        # All images side by side, as one image of B * C channels.
        images = x.contiguous().view(1, batch * channels, height, width)
        kernels = grad.contiguous().view(batch * channels, 1, height, width)
        grad_weight = functional.conv2d(images, kernels, padding=padding, groups=batch * channels)
        return grad_x, grad_weight.view(batch, *weight.shape).sum(0)
