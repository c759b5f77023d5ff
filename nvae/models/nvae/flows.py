"""Volume-preserving inverse autoregressive flows on the posterior (Kingma et al. 2016; NVAE, section 3.4)."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.nvae.convolutions import masked_convolution

HIDDEN_PER_LATENT = 6
INITIAL_GAIN = 0.1  # factor on the initial norm of a normalized flow's last weight


class FlowCell(nn.Module):
    """z - m(z), (B, L, H, W): each value of m depends only on earlier values of z, so the log-determinant is 0.

    columns: the columns of the same row that count as earlier. With a normalization, hidden layers have no biases, as
    in the original NVAE.
    """

    def __init__(
        self,
        latent_size: int,
        *,
        mirrored: bool,
        columns: Literal["left", "right"] = "right",
        normalization: Literal["none", "linear", "exponential"] = "none",
    ) -> None:
        super().__init__()
        hidden = HIDDEN_PER_LATENT * latent_size
        convolution = partial(masked_convolution, columns=columns, mirrored=mirrored, normalization=normalization)
        bias = normalization == "none"
        self.expand = convolution(latent_size, hidden, 3, center="earlier", bias=bias)
        self.depthwise = convolution(hidden, hidden, 5, groups=hidden, center="earlier and own", bias=bias)
        self.project = convolution(hidden, latent_size, 1, center="earlier and own", gain=INITIAL_GAIN)

    def shift(self, z: Tensor) -> Tensor:
        """Return m(z), (B, L, H, W)."""
        h = functional.elu(self.expand(z))  # (B, 6L, H, W)
        h = functional.elu(functional.elu(self.depthwise(h)))  # two activations, as in both original programs
        return self.project(h)

    def forward(self, z: Tensor) -> Tensor:
        return z - self.shift(z)

    def inverse(self, y: Tensor) -> Tensor:
        """Return the z with forward(z) = y, (B, L, H, W), by iterating z <- y + m(z).

        Each iteration makes at least one more value of each image exact, so as many iterations as values suffice. In
        practice a few iterations reach the precision of the numbers.
        """
        z = y
        for _ in range(y[0].numel()):
            update = y + self.shift(z)
            if torch.equal(update, z):
                break
            z = update
        return z


class Flow(nn.Sequential):
    """`num_flows` pairs of flow cells, the second of each pair mirrored in space. Log-determinant 0."""

    def __init__(
        self,
        latent_size: int,
        num_flows: int,
        columns: Literal["left", "right"] = "right",
        normalization: Literal["none", "linear", "exponential"] = "none",
    ) -> None:
        cell = partial(FlowCell, latent_size, columns=columns, normalization=normalization)
        super().__init__(*(cell(mirrored=i % 2 == 1) for i in range(2 * num_flows)))

    def inverse(self, z: Tensor) -> Tensor:
        """Return the inverse of forward, (B, L, H, W) to (B, L, H, W)."""
        cells: list[Any] = list(self)
        for cell in reversed(cells):
            z = cell.inverse(z)
        return z
