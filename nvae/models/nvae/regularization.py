"""Spectral and batch-norm regularization of an NVAE (Vahdat and Kautz 2020, appendix A; Yoshida and Miyato 2017)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.models.hierarchy import LatentGroup
from nvae.models.nvae.cells import Cell
from nvae.models.nvae.convolutions import (
    FIRST_POWER_ITERATIONS,
    is_spectrally_normalized,
    power_iteration,
    weight_matrix,
)

EVERYTHING = slice(None)


def regularized_convolutions(model: nn.Module, scope: Literal["cells_and_heads", "all"]) -> list[nn.Conv2d]:
    """Return the convolutions in cells and in the heads of priors and posteriors, or all convolutions of a model.

    The scope "cells_and_heads" leaves out the skips of cells, as the seed project does. Both scopes leave out
    convolutions with spectral normalization, because their largest singular value is always one.
    """
    inside: dict[nn.Conv2d, None] = {}  # without duplicates, in order
    for module in model.modules():
        roots: list[nn.Module] = [module] if scope == "all" else []
        if isinstance(module, Cell):
            roots += [child for name, child in module.named_children() if name != "skip"]
        if isinstance(module, LatentGroup):
            roots += [child for name, child in module.named_children() if name.endswith("_head")]
        for root in roots:
            inside |= {m: None for m in root.modules() if isinstance(m, nn.Conv2d)}
    return [convolution for convolution in inside if not is_spectrally_normalized(convolution)]


class SpectralRegularization(nn.Module):
    """The sum over convolutions of the weight's largest singular value to the power of `exponent`, 1 or 2.

    A weight is taken as the matrix (C_out, the rest). Power iteration gives the singular value; its vectors are buffers
    that stay between steps and are saved with a checkpoint. Weights of one shape are computed in one batch.
    iterations: per call.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d], exponent: int = 2, iterations: int = 1) -> None:
        super().__init__()
        self.exponent, self.iterations = exponent, iterations
        by_shape: dict[tuple[int, int], list[nn.Conv2d]] = defaultdict(list)
        for convolution in convolutions:
            by_shape[len(convolution.weight), convolution.weight[0].numel()].append(convolution)
        self._batches = list(by_shape.values())  # not submodules: their weights belong to the model
        for i, ((_, columns), batch) in enumerate(by_shape.items()):
            right = torch.randn(len(batch), columns, 1, generator=torch.Generator().manual_seed(i))
            self.register_buffer(f"right{i}", functional.normalize(right, dim=1).to(batch[0].weight.device))
        with torch.no_grad():
            self.singular_values(FIRST_POWER_ITERATIONS)

    def singular_values(self, iterations: int = 1, own: slice = EVERYTHING) -> Tensor:
        """Take steps of power iteration; return the largest singular values, (convolutions,), differentiable.

        own: which batches to compute.
        """
        values = []
        for i, batch in list(enumerate(self._batches))[own]:
            buffer = getattr(self, f"right{i}")
            weights = torch.stack([weight_matrix(c.weight) for c in batch])  # (n, C_out, columns)
            right = buffer  # (n, columns, 1)
            for _ in range(iterations):
                left, right, value = power_iteration(weights, right)
            buffer.copy_(right)
            values.append(_SingularValue.apply(weights, value, left, right).flatten())
        return torch.cat(values) if values else torch.zeros(0)

    def forward(self, own: slice = EVERYTHING) -> Tensor:
        return self.singular_values(self.iterations, own).pow(self.exponent).sum()


class _SingularValue(torch.autograd.Function):
    """Singular values (n, 1, 1), computed before, as a function of the weights with the gradient left right^T."""

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
    """The sum over a model's batch norms of the largest absolute weight, max |gamma|.

    Weights of one shape are computed in one batch.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        by_shape: dict[torch.Size, list[Any]] = defaultdict(list)
        for module in model.modules():
            if isinstance(module, _BatchNorm):
                by_shape[module.weight.shape].append(module)
        self._batches = list(by_shape.values())  # not submodules: they belong to the model

    def forward(self, own: slice = EVERYTHING) -> Tensor:
        sums = [torch.stack([norm.weight for norm in batch]).abs().amax(1).sum() for batch in self._batches[own]]
        return torch.stack(sums).sum() if sums else torch.zeros(())
