"""Contexts: what the first latent u of a DVP-VAE is of an image, and the pseudo-input that u stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from nvae.models.distributions import at_least_float32, full_precision
from nvae.models.dvp.config import DVPConfig
from nvae.models.ladder.network import resize
from nvae.system.memory_maps import chunks

CHUNK = 256  # images transformed at once in the calibration


def dct_matrix(size: int, rows: int) -> Tensor:
    """Return the first rows of the orthonormal DCT-II matrix of vectors of `size` numbers, (rows, size), float64."""
    k, n = torch.arange(rows, dtype=torch.float64)[:, None], torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi * (n + 0.5) * k / size)
    matrix[0] /= math.sqrt(2)
    return matrix


class DCTContext(nn.Module):
    """u: the lowest k x k DCT coefficients of an image in [0, 1], divided by `scale` and clamped to [-1, 1].

    scale: (1, C, k, k), the largest magnitude of every coefficient in the training images, a whole number; 1 until
    `calibrate`.
    """

    is_spatial, is_bounded = False, True
    scale: Tensor
    matrix: Tensor

    def __init__(self, config: DVPConfig) -> None:
        super().__init__()
        size, channels = config.context_size, config.image_channels
        self.max_value, self.shift = 2**config.input_bits - 1, 8 - config.input_bits
        self.register_buffer("scale", torch.ones(1, channels, size, size))
        self.register_buffer("matrix", dct_matrix(config.input_dimension, size).float(), persistent=False)

    def coefficients(self, images: Tensor) -> Tensor:
        """Return the DCT coefficients (B, C, k, k) of images (B, C, S, S) in [0, 1]."""
        with full_precision(images):
            return self.matrix @ at_least_float32(images) @ self.matrix.T

    def forward(self, images: Tensor) -> Tensor:
        return (self.coefficients(images) / self.scale).clamp(-1, 1)

    def inverse(self, u: Tensor) -> Tensor:
        """Return the pseudo-input (B, C, S, S) in [-1, 1] of u."""
        with full_precision(u):
            images = self.matrix.T @ (at_least_float32(u) * self.scale) @ self.matrix
        return 2 * images.clamp(0, 1) - 1

    @torch.no_grad()
    def calibrate(self, images_u8: Tensor) -> None:
        """Set `scale` from images, uint8 (N, C, S, S); a coefficient below 1 in all images gets the scale 1."""
        largest = torch.zeros_like(self.scale[0])
        for chunk in chunks(images_u8, CHUNK):
            images = (chunk.to(self.scale.device) >> self.shift).float() / self.max_value
            largest = torch.maximum(largest, self.coefficients(images).floor().abs().amax(0))
        self.scale.copy_(torch.where(largest > 0, largest, 1.0))


class DownsampleContext(nn.Module):
    """u: an image on [-1, 1], resized bilinearly to k x k without antialiasing."""

    is_spatial, is_bounded = True, True

    def __init__(self, config: DVPConfig) -> None:
        super().__init__()
        self.size, self.side = config.context_size, config.input_dimension

    def forward(self, images: Tensor) -> Tensor:
        return resize(2 * at_least_float32(images) - 1, self.size)

    def inverse(self, u: Tensor) -> Tensor:
        """Return the pseudo-input (B, C, S, S) of u, about in [-1, 1]."""
        return resize(u, self.side)

    def calibrate(self, images_u8: Tensor) -> None:
        """Do nothing: there is nothing to calibrate."""


class LinearContext(DownsampleContext):
    """u: a learned linear map of all pixels on [-1, 1] to C x k x k numbers. Its pseudo-input is u, resized."""

    is_bounded = False

    def __init__(self, config: DVPConfig) -> None:
        super().__init__(config)
        self.linear = nn.Linear(config.image_channels * self.side**2, config.image_channels * self.size**2)

    def forward(self, images: Tensor) -> Tensor:
        with full_precision(images):
            u = self.linear(2 * at_least_float32(images).flatten(1) - 1)
        return u.unflatten(1, (-1, self.size, self.size))


CONTEXTS: dict[str, type[DCTContext | DownsampleContext]] = {
    "dct": DCTContext,
    "downsample": DownsampleContext,
    "linear": LinearContext,
}
