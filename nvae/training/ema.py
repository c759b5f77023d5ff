"""An exponential moving average (EMA) of a model's weights."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.distributions import Noise
from nvae.models.families import clone
from nvae.models.hierarchy import HierarchicalVAE


class EMA:
    """A second model in evaluation mode: the EMA of the weights, and the buffers of the first model.

    Both models keep their tensors, whose numbers change.
    decay: the part d of the average that stays in `update`, e <- d e + (1 - d) p for every parameter p.
    """

    def __init__(self, model: HierarchicalVAE, decay: float) -> None:
        self.decay = decay
        self.model = clone(model)
        # Lists that stay: to walk through the modules of two models takes longer than to copy the buffers.
        self._own_parameters: list[Tensor] = list(self.model.parameters())
        self._parameters: list[Tensor] = list(model.parameters())
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for own, buffer in zip(self.model.buffers(), model.buffers(), strict=True):
            by_dtype[own.dtype][0].append(own)
            by_dtype[own.dtype][1].append(buffer)
        self._buffers = list(by_dtype.values())  # torch's foreach functions take one dtype

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights of the first model, and copy its buffers."""
        torch._foreach_lerp_(self._own_parameters, self._parameters, 1 - self.decay)
        self.copy_buffers()

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
    def copy_buffers(self) -> None:
        """Set the buffers to those of the first model."""
        for own, buffers in self._buffers:
            torch._foreach_copy_(own, buffers)
