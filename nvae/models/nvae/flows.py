"""Volume-preserving inverse autoregressive flows on the posterior (Kingma et al. 2016; NVAE, section 3.4)."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional

from nvae.models.nvae.convolutions import masked_convolution

HIDDEN_PER_LATENT = 6
FIRST_STEP = 0.1  # how much smaller than usual a normalized flow's last weight starts


class FlowCell(nn.Module):
    """z - m(z), where m of a value sees only values before it: the Jacobian is triangular with ones on the diagonal.

    columns: which ones of its own row a value sees. Normalized weights, as the original NVAE has them, leave the
    hidden layers without biases.
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
        self.project = convolution(hidden, latent_size, 1, center="earlier and own", gain=FIRST_STEP)

    def forward(self, z: Tensor) -> Tensor:
        h = functional.elu(self.expand(z))  # (B, 6L, H, W)
        h = functional.elu(functional.elu(self.depthwise(h)))  # twice, as the originals do
        return z - self.project(h)


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
