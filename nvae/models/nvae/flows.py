"""Volume-preserving inverse autoregressive flows on the posterior (Kingma et al. 2016; NVAE, section 3.4)."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.nvae.convolutions import masked_convolution

HIDDEN_PER_LATENT = 6
INITIAL_GAIN = 0.1  # factor on the initial norm of a normalized flow's last weight


class FlowCell(nn.Module):
    """z - m(z), where m of a value sees only values before it: the Jacobian is triangular with ones on the diagonal.

    columns: which columns of its own row a value sees. Normalized weights, as in the original NVAE, come with hidden
    layers without biases.
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
        """m(z), (B, L, H, W)."""
        h = functional.elu(self.expand(z))  # (B, 6L, H, W)
        h = functional.elu(functional.elu(self.depthwise(h)))  # twice, as both original programs do
        return self.project(h)

    def forward(self, z: Tensor) -> Tensor:
        return z - self.shift(z)

    def inverse(self, y: Tensor) -> Tensor:
        """The z with forward(z) = y, by z <- y + m(z).

        Each iteration makes at least one more value of each image exact, so the number of values is enough; in practice
        a few iterations reach the precision of the numbers.
        """
        z = y
        for _ in range(y[0].numel()):
            update = y + self.shift(z)
            if torch.equal(update, z):
                break
            z = update
        return z


class Flow(nn.Sequential):
    """`num_flows` pairs of cells, the second of each pair mirrored in space. z to z, log-determinant 0."""

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
        """The map backward, (B, L, H, W) to (B, L, H, W)."""
        for cell in reversed(self):
            z = cell.inverse(z)
        return z
