"""The diagonal Normal of a latent group: soft clamp, temperature, KL."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SOFT_CLAMP = 5.0
SIGMA_FLOOR = 0.01


def at_least_float32(x: Tensor) -> Tensor:
    """Half-precision tensors as float32, others as they are: densities are never computed in half precision."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def standard_normal(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Noise of a tensor's shape, drawn on the generator's device: a CPU generator gives one image on any device."""
    device = generator.device if generator is not None else like.device
    return torch.randn(like.shape, generator=generator, device=device, dtype=torch.float32).to(like.device, like.dtype)


def standard_uniform(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Uniform noise strictly inside (0, 1), drawn like `standard_normal`."""
    device = generator.device if generator is not None else like.device
    noise = torch.rand(like.shape, generator=generator, device=device, dtype=torch.float32)
    return noise.clamp(1e-7, 1 - 1e-7).to(like.device, like.dtype)


def soft_clamp(x: Tensor) -> Tensor:
    """5 tanh(x / 5): the identity near zero, never beyond 5 (NVAE's official implementation)."""
    return SOFT_CLAMP * torch.tanh(x / SOFT_CLAMP)


class DiagonalNormal(NamedTuple):
    """Independent Normals, mu and sigma of one shape, here (B, L, H, W)."""

    mu: Tensor
    sigma: Tensor

    @classmethod
    def from_raw(cls, raw: Tensor, temperature: float = 1.0, *, on_floor: bool = False) -> DiagonalNormal:
        """From the network's (B, 2L, H, W): both halves softly clamped, sigma = exp(log_sigma) * temperature + 0.01.

        on_floor: the temperature scales the 0.01 too.
        """
        mu, log_sigma = soft_clamp(at_least_float32(raw)).chunk(2, dim=1)
        if on_floor:
            return cls(mu, (log_sigma.exp() + SIGMA_FLOOR) * temperature)
        return cls(mu, log_sigma.exp() * temperature + SIGMA_FLOOR)

    def rsample(self, eps: Tensor) -> Tensor:
        """mu + sigma * eps."""
        return torch.addcmul(self.mu, self.sigma, eps)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density in nats, elementwise."""
        return -0.5 * ((z - self.mu) / self.sigma).square() - self.sigma.log() - 0.5 * math.log(2 * math.pi)

    def kl(self, other: DiagonalNormal) -> Tensor:
        """KL(self || other) in nats, elementwise, in closed form."""
        ratio = self.sigma / other.sigma
        distance = (self.mu - other.mu) / other.sigma
        return 0.5 * (ratio.square() + distance.square() - 1) - ratio.log()
