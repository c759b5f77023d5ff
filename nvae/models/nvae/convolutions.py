"""Normalized and masked convolutions.

All are parametrizations of an ordinary `nn.Conv2d`, so `convolution.weight` is always the effective weight: for the
forward pass, for a regularizer and for an importer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.utils import parametrize

from nvae.models.distributions import full_precision

Normalization = Literal["none", "linear", "exponential", "spectral"]
FIRST_POWER_ITERATIONS = 40  # as in the original NVAE: ten times those of a training step


def normalized(convolution: nn.Conv2d, normalization: Normalization) -> nn.Conv2d:
    """Normalize a convolution's weight by the norm of each output channel, or by the largest singular value.

    Returns the same convolution.
    """
    if normalization != "none":
        norm = SpectralNorm() if normalization == "spectral" else WeightNorm(normalization == "exponential")
        parametrize.register_parametrization(convolution, "weight", norm)
    return convolution


def is_spectrally_normalized(convolution: nn.Conv2d) -> bool:
    """Return whether a convolution's weight is divided by its largest singular value."""
    return any(isinstance(module, SpectralNorm) for module in convolution.modules())


class WeightNorm(nn.Module):
    """Parametrization (g, v) -> g * v / ||v||: g is `original0`, v is `original1` (Salimans and Kingma 2016).

    The same formula as `torch.nn.utils.parametrizations.weight_norm`, but the weight stays channels last. Torch's
    version converts the weight to another memory format and back, eight copies per training step.

    exponential: (n, v) -> exp(n) * v / (||v|| + 1e-5) instead; n starts at log(||v|| + 1e-2), as in NVAE's program.
    mask: the mask of a causal convolution, applied to v before the norm is computed.
    gain: a factor on the initial norm of the weight.
    computed: the weight, within `weights_computed_once`.
    """

    mask: Tensor | None
    computed: Tensor | None = None

    def __init__(self, exponential: bool, mask: Tensor | None = None, gain: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)
        self.exponential, self.gain = exponential, gain

    def forward(self, g: Tensor, v: Tensor) -> Tensor:
        return self.normalized(g, v, self.mask) if self.computed is None else self.computed

    def normalized(self, g: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        """Return the weights (..., C_out, C_in, k, k) of g (..., C_out, 1, 1, 1), v and masks."""
        v = v if mask is None else v * mask
        norm = _channel_norm(v)
        return v * (g.exp() / (norm + 1e-5) if self.exponential else g / norm)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        norm = self.gain * _channel_norm(weight if self.mask is None else weight * self.mask)
        return (norm + 1e-2).log() if self.exponential else norm, weight


def _channel_norm(weight: Tensor) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=(-3, -2, -1), keepdim=True)  # (..., C_out, 1, 1, 1)


def weight_norms(model: nn.Module) -> list[list[Any]]:
    """Return the weight norms of a model, as lists of those whose weights are computed by one formula in one batch.

    Each is the `parametrize.ParametrizationList` of its parameters.
    """
    batches: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for module in model.modules():
        if isinstance(module, parametrize.ParametrizationList) and isinstance(norm := module[0], WeightNorm):
            batches[norm.exponential, norm.mask is None, module.original1.shape].append(module)
    return list(batches.values())


@contextmanager
def weights_computed_once(batches: Sequence[Sequence[Any]]) -> Iterator[None]:
    """Compute the normalized weights of `weight_norms` now, for all uses within the context, their gradients included.

    The parameters must not change within the context.
    """
    try:
        for batch in batches:
            g = torch.stack([parameters.original0 for parameters in batch])
            # As the weights lie in memory, channels last: (n, C_out, k, k, C_in).
            v = torch.stack([parameters.original1.permute(0, 2, 3, 1) for parameters in batch])
            masks = None if batch[0][0].mask is None else torch.stack([p[0].mask.permute(0, 2, 3, 1) for p in batch])
            for parameters, weight in zip(batch, batch[0][0].normalized(g, v, masks).unbind(), strict=True):
                parameters[0].computed = weight.permute(0, 3, 1, 2)
        yield
    finally:
        for batch in batches:
            for parameters in batch:
                parameters[0].computed = None


def weight_matrix(weight: Tensor) -> Tensor:
    """Return a weight (C_out, C_in, k, k) as the matrix (C_out, the rest); a view if the weight is channels last.

    The order of the columns changes no singular value.
    """
    return weight.permute(0, 2, 3, 1).flatten(1)


@torch.no_grad()
def power_iteration(matrix: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Take one step of power iteration for matrices (..., m, n), from right vectors (..., n, 1).

    Returns left (..., m, 1) and right (..., n, 1), of length 1, and left^T matrix right, (..., 1, 1): the largest
    singular value, once the vectors have converged.
    """
    # A row times a matrix: on a CPU up to 20 times as fast as a batch of matrices times columns.
    left = functional.normalize((right.mT @ matrix.mT).mT, dim=-2)
    image = (left.mT @ matrix).mT
    value = image.norm(dim=-2, keepdim=True)
    return left, image / value.clamp(min=1e-12), value


class SpectralNorm(nn.Module):
    """Parametrization w -> w / sigma, sigma the largest singular value of w as (C_out, the rest) (Miyato et al. 2018).

    Every use in training takes one step of power iteration; its vectors are buffers, saved with the model. Unlike
    `torch.nn.utils.parametrizations.spectral_norm`, this one computes in float32 under autocast, and the weight stays
    channels last.
    """

    left: Tensor
    right: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("left", None)
        self.register_buffer("right", None)

    def forward(self, weight: Tensor) -> Tensor:
        matrix = weight_matrix(weight)
        with full_precision(weight):
            if self.training:
                self._iterate(matrix.detach())
            # Copies: a later use iterates in the buffers before the gradient has used these values.
            left, right = self.left.clone(), self.right.clone()
            return weight / (left @ matrix @ right)

    def _iterate(self, matrix: Tensor) -> None:
        left, right, _ = power_iteration(matrix, self.right[:, None])
        self.left.copy_(left[:, 0])
        self.right.copy_(right[:, 0])

    def right_inverse(self, weight: Tensor) -> Tensor:
        matrix = weight_matrix(weight.detach())
        self.left = matrix.new_zeros(len(matrix))
        self.right = functional.normalize(torch.randn_like(matrix[0]), dim=0)
        for _ in range(0 if matrix.is_meta else FIRST_POWER_ITERATIONS):  # slow on the meta device, without a result
            self._iterate(matrix)
        return weight


class Masked(nn.Module):
    """Parametrization that multiplies a weight by a mask of zeros and ones."""

    mask: Tensor

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask


def causal_mask(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    groups: int,
    center: Literal["earlier", "earlier and own"],
    columns: Literal["left", "right"],
) -> Tensor:
    """Return the mask of an autoregressive convolution over (row, column, channel).

    An output sees all channels of the rows above and, in its own row, of the columns on the side `columns`. At the
    center tap, the channels form as many groups as the smaller of in_channels and out_channels. An output channel sees
    the groups before its own ("earlier"), or also its own ("earlier and own"). A depthwise convolution sees at most its
    own channel there. (Kingma et al. 2016; NVAE, section 3.4.)

    Shape (out_channels, in_channels / groups, kernel_size, kernel_size), zeros and ones.
    """
    middle = kernel_size // 2
    mask = torch.zeros(out_channels, in_channels // groups, kernel_size, kernel_size)
    mask[:, :, :middle, :] = 1
    mask[:, :, middle, :middle] = columns == "left"
    mask[:, :, middle, middle + 1 :] = columns == "right"
    own_visible = center == "earlier and own"
    if groups > 1:
        mask[:, :, middle, middle] = own_visible
    else:
        latents = min(in_channels, out_channels)
        input_group = torch.arange(in_channels) // (in_channels // latents)
        output_group = (torch.arange(out_channels) // (out_channels // latents))[:, None]
        visible = input_group <= output_group if own_visible else input_group < output_group
        mask[:, :, middle, middle] = visible.float()
    return mask


def masked_convolution(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    *,
    groups: int = 1,
    center: Literal["earlier", "earlier and own"],
    columns: Literal["left", "right"],
    mirrored: bool,
    bias: bool = True,
    normalization: Literal["none", "linear", "exponential"] = "none",
    gain: float = 1.0,
) -> nn.Conv2d:
    """Return a causal convolution that keeps the resolution.

    mirrored: reverse the order of the pixels, but not of the channels. gain: factor on the initial norm of a normalized
    weight.
    """
    mask = causal_mask(in_channels, out_channels, kernel_size, groups, center, columns)
    mask = mask.flip(2, 3) if mirrored else mask
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias)
    masked = Masked(mask) if normalization == "none" else WeightNorm(normalization == "exponential", mask, gain)
    parametrize.register_parametrization(convolution, "weight", masked)
    return convolution


class DepthwiseConv2d(nn.Conv2d):
    """A depthwise convolution without bias: keeps the resolution, or downsamples with stride 2."""

    def __init__(self, channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(channels, channels, kernel_size, stride, padding=kernel_size // 2, groups=channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight
        custom = x.device.type == "cpu" and self.stride == (1, 1) and weight.requires_grad and torch.is_grad_enabled()
        if not custom:
            return self._conv_forward(x, weight, None)
        if torch.is_autocast_enabled("cpu"):
            dtype = torch.get_autocast_dtype("cpu")
            x, weight = x.to(dtype), weight.to(dtype)
        return _DepthwiseConvolution.apply(x, weight)


class _DepthwiseConvolution(torch.autograd.Function):
    """A depthwise convolution whose backward pass consists of depthwise convolutions, which are faster on a CPU.

    The gradient of the input is the gradient of the output, convolved with the mirrored kernel. The gradient of the
    weight is each image's input, correlated with the gradient of the image's output as a kernel. Both run on oneDNN's
    forward kernels, two to five times as fast as its backward kernels (measured by benchmarks/depthwise.py).
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
