"""Spectral and batch-norm regularization of an NVAE (Vahdat and Kautz 2020, appendix A; Yoshida and Miyato 2017)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.hierarchy import LatentGroup
from nvae.models.nvae.cells import Cell
from nvae.models.nvae.convolutions import FIRST_POWER_ITERATIONS, is_spectrally_normalized


def regularized_convolutions(model: nn.Module, scope: Literal["cells_and_heads", "all"]) -> list[nn.Conv2d]:
    """Return the convolutions of the branches of cells and of the heads of priors and posteriors, or all convolutions.

    With "cells_and_heads", the convolutions of a cell's skip are left out, as in the seed's program. Convolutions with
    spectral normalization, whose largest singular value is one already, are left out of both.
    """
    inside: dict[int, nn.Conv2d] = {}
    for module in model.modules():
        roots = [module] if scope == "all" else []
        if isinstance(module, Cell):
            roots += [child for name, child in module.named_children() if name != "skip"]
        if isinstance(module, LatentGroup):
            roots += module.heads
        for root in roots:
            inside |= {id(m): m for m in root.modules() if isinstance(m, nn.Conv2d)}
    return [convolution for convolution in inside.values() if not is_spectrally_normalized(convolution)]


class SpectralRegularization(nn.Module):
    """The sum over convolutions of the largest singular value of the weight, to the power of `exponent`, 1 or 2.

    A weight counts as the matrix (C_out, the rest). Its largest singular value comes from power iteration, whose
    vectors are kept between steps and saved with a checkpoint. Weights of one shape are handled in one batch.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], exponent: int = 2) -> None:
        super().__init__()
        self.exponent = exponent
        by_shape: dict[tuple[int, int], list[nn.Conv2d]] = defaultdict(list)
        for convolution in convolutions:
            by_shape[len(convolution.weight), convolution.weight[0].numel()].append(convolution)
        self._batches = list(by_shape.values())  # not submodules: their weights belong to the model
        for i, ((_, columns), batch) in enumerate(by_shape.items()):
            right = torch.randn(len(batch), columns, 1, generator=torch.Generator().manual_seed(i))
            self.register_buffer(f"right{i}", functional.normalize(right, dim=1).to(batch[0].weight.device))
        with torch.no_grad():
            self.singular_values(FIRST_POWER_ITERATIONS)

    def singular_values(self, iterations: int = 1) -> Tensor:
        """The largest singular value of every weight, differentiable, after some more steps of power iteration."""
        values = []
        for i, batch in enumerate(self._batches):
            right = getattr(self, f"right{i}")  # (n, columns, 1)
            # Input channels last, as they lie in memory; the order of its columns does not change a singular value.
            weights = torch.stack([c.weight.permute(0, 2, 3, 1).flatten(1) for c in batch])  # (n, C_out, columns)
            with torch.no_grad():
                for _ in range(iterations):
                    left = functional.normalize(weights @ right, dim=1)  # (n, C_out, 1)
                    image = weights.mT @ left
                    value = image.norm(dim=1, keepdim=True)  # left^T W right, right being image / value
                    right.copy_(image / value.clamp(min=1e-12))
            values.append(_SingularValue.apply(weights, value, left, right.clone()).flatten())
        return torch.cat(values) if values else torch.zeros(0)

    def forward(self) -> Tensor:
        return self.singular_values().pow(self.exponent).sum()


class _SingularValue(torch.autograd.Function):
    """Singular values (n, 1, 1) that are known, with the vectors that give their gradient, left right^T."""

    @staticmethod
    def forward(ctx, weights: Tensor, value: Tensor, left: Tensor, right: Tensor) -> Tensor:
        ctx.save_for_backward(left, right)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None, None]:
        left, right = ctx.saved_tensors
        return (grad * left) @ right.mT, None, None, None


class BatchNormRegularization(nn.Module):
    """The sum over the batch norms of a model of the largest |gamma|."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]  # not submodules: the model's own

    def forward(self) -> Tensor:
        largest = [norm.weight.abs().max() for norm in self._norms]
        return torch.stack(largest).sum() if largest else torch.zeros(())
