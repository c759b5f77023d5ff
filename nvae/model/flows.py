"""Volume-preserving inverse autoregressive flows on the posterior (Kingma et al. 2016; NVAE, section 3.4)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from nvae.model.convolutions import masked_convolution

HIDDEN_PER_LATENT = 6


class FlowCell(nn.Module):
    """z - m(z), where m of a value sees only values before it: the Jacobian is triangular with ones on the diagonal."""

    def __init__(self, latent_size: int, *, mirrored: bool) -> None:
        super().__init__()
        hidden = HIDDEN_PER_LATENT * latent_size
        self.expand = masked_convolution(latent_size, hidden, 3, centre="earlier", mirrored=mirrored)
        self.spread = masked_convolution(hidden, hidden, 5, groups=hidden, centre="earlier and own", mirrored=mirrored)
        self.project = masked_convolution(hidden, latent_size, 1, centre="earlier and own", mirrored=mirrored)

    def forward(self, z: Tensor) -> Tensor:
        h = functional.elu(self.expand(z))  # (B, 6L, H, W)
        h = functional.elu(functional.elu(self.spread(h)))  # twice, as the originals do
        return z - self.project(h)


class Flow(nn.Sequential):
    """`num_flows` pairs of cells, the second of each pair mirrored in space. z to z, log-determinant 0."""

    def __init__(self, latent_size: int, num_flows: int) -> None:
        super().__init__(*(FlowCell(latent_size, mirrored=i % 2 == 1) for i in range(2 * num_flows)))
