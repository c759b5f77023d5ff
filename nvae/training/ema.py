"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

import torch

from nvae.models.families import clone
from nvae.models.hierarchy import HierarchicalVAE


class EMA:
    """A second model in evaluation mode: the EMA of the weights, and the buffers of the first model.

    decay: the part d of the average that stays in `update`, e <- d e + (1 - d) p for every parameter p.
    """

    def __init__(self, model: HierarchicalVAE, decay: float) -> None:
        self.decay = decay
        self.model = clone(model)

    @torch.no_grad()
    def update(self, model: HierarchicalVAE) -> None:
        """Include the weights of a model of the same config, and copy its buffers."""
        torch._foreach_lerp_(list(self.model.parameters()), list(model.parameters()), 1 - self.decay)
        self.copy_buffers(model)

    @torch.no_grad()
    def copy_buffers(self, model: HierarchicalVAE) -> None:
        """Set the buffers to those of a model of the same config."""
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
