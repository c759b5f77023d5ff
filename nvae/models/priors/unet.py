"""The U-Net of the diffusion prior: one resolution, residual blocks with a time embedding, attention in the middle.

The architecture is that of Nichol and Dhariwal (2021) without changes of resolution, as in Kuzina and Tomczak (2024).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.priors.config import UNET_GROUPS

LONGEST_PERIOD = 10_000


def time_embedding(t: Tensor, channels: int) -> Tensor:
    """Return cosines, then sines, of t (B,) at geometric frequencies, (B, channels) (Vaswani et al. 2017)."""
    half = channels // 2
    frequencies = torch.exp(-math.log(LONGEST_PERIOD) / half * torch.arange(half, device=t.device, dtype=t.dtype))
    angles = t[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def zeroed(module: nn.Conv2d) -> nn.Conv2d:
    """Set a convolution to zero, so that its block starts as the identity; return the convolution."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


class GroupNorm(nn.GroupNorm):
    """A group norm that also takes one value per channel; PyTorch refuses a batch of one image of 1 x 1."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class ResidualBlock(nn.Module):
    """x + f(x, embedding), (B, in, H, W) to (B, out, H, W). The embedding scales and shifts the second group norm."""

    def __init__(self, in_channels: int, out_channels: int, embedding: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = GroupNorm(UNET_GROUPS, in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.modulation = nn.Linear(embedding, 2 * out_channels)
        self.norm2 = GroupNorm(UNET_GROUPS, out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zeroed(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(functional.silu(self.norm1(x)))
        scale, shift = self.modulation(functional.silu(embedding))[:, :, None, None].chunk(2, dim=1)
        h = self.norm2(h) * (1 + scale) + shift
        return self.skip(x) + self.conv2(self.dropout(functional.silu(h)))


class Attention(nn.Module):
    """x + self-attention over the positions of x (B, C, H, W). The channels of qkv are split into heads first."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = GroupNorm(UNET_GROUPS, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.output = zeroed(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.norm(x)).flatten(2).unflatten(1, (self.heads, -1))  # (B, heads, 3 d, H W)
        q, k, v = qkv.transpose(2, 3).chunk(3, dim=3)  # (B, heads, H W, d)
        h = functional.scaled_dot_product_attention(q, k, v)
        return x + self.output(h.transpose(2, 3).reshape(x.shape))


class UNet(nn.Module):
    """From z (B, C, H, W) and times t (B,) to a tensor of z's shape; zero before training.

    blocks: residual blocks on each side; every block of the second side also sees the output of a first-side block.
    """

    def __init__(self, data_channels: int, channels: int, blocks: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.channels = channels
        self.embedding = nn.Sequential(nn.Linear(channels, channels), nn.SiLU(), nn.Linear(channels, channels))

        def block(in_channels: int) -> ResidualBlock:
            return ResidualBlock(in_channels, channels, channels, dropout)

        self.stem = nn.Conv2d(data_channels, channels, 3, padding=1)
        self.down = nn.ModuleList(block(channels) for _ in range(blocks))
        self.middle1, self.attention, self.middle2 = block(channels), Attention(channels, heads), block(channels)
        self.up = nn.ModuleList(block(2 * channels) for _ in range(blocks + 1))
        self.norm = GroupNorm(UNET_GROUPS, channels)
        self.head = zeroed(nn.Conv2d(channels, data_channels, 3, padding=1))

    def forward(self, z: Tensor, t: Tensor) -> Tensor:
        embedding = self.embedding(time_embedding(t, self.channels))
        skips = [self.stem(z)]
        for block in self.down:
            skips.append(block(skips[-1], embedding))
        h = self.middle2(self.attention(self.middle1(skips[-1], embedding)), embedding)
        for block in self.up:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return self.head(functional.silu(self.norm(h)))
