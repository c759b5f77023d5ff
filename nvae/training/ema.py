"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.distributions import Noise
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
    def estimate_statistics(self, passes: Iterable[tuple[Tensor, Noise]]) -> None:
        """Set the statistics of the batch norms to the means over passes of images (B, C, S, S) and noise.

        Those of the first model belong to its last weights, and are wrong for their average. `copy_buffers` and
        `update` bring them back.
        """
        norms = [module for module in self.model.modules() if isinstance(module, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        try:
            for count, (images, noise) in enumerate(passes, 1):
                for norm in norms:
                    norm.train()
                    norm.momentum = 1 / count  # the mean of all passes so far; the first one replaces what was there
                self.model(images, noise)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.eval()
                norm.momentum = momentum

    @torch.no_grad()
    def copy_buffers(self, model: HierarchicalVAE) -> None:
        """Set the buffers to those of a model of the same config."""
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            own.copy_(buffer)
