"""What training minimises: the negative ELBO with KL warm-up and balancing, spectral and batch-norm regularisation.

Formulas: Vahdat and Kautz 2020, section 3.3 and appendix A; spectral regularisation by Yoshida and Miyato 2017.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nvae.model.cells import InvertedResidualCell, ResidualCell
from nvae.model.hierarchy import LatentGroup, Level, Pass

MIN_KL_COEFFICIENT = 1e-4
FIRST_POWER_ITERATIONS = 20


class Bound(NamedTuple):
    """Terms of the evidence lower bound, nats per image."""

    log_likelihood: Tensor  # (B,)
    kl: Tensor  # (B, G), top group first

    @property
    def elbo(self) -> Tensor:
        """(B,): log p(x) is at least this."""
        return self.log_likelihood - self.kl.sum(1)


def bound(result: Pass, images: Tensor) -> Bound:
    """The ELBO's terms from a posterior pass over images (B, C, H, W) in [0, 1]."""
    return Bound(result.pixels.log_prob(images).flatten(1).sum(1), result.kl)


def kl_coefficient(epoch: float, warmup_epochs: float) -> float:
    """The weight of the KL, rising linearly from 1e-4 to 1 during the warm-up. `epoch` counts fractions too."""
    return 1.0 if epoch >= warmup_epochs else max(epoch / warmup_epochs, MIN_KL_COEFFICIENT)


def balance_alphas(levels: Sequence[Level]) -> list[float]:
    """Per group, top first: 4^i / (groups in its scale), i = 0 at the coarsest scale, divided by the smallest."""
    alphas = [4.0**i / level.groups for i, level in enumerate(levels) for _ in range(level.groups)]
    return [alpha / min(alphas) for alpha in alphas]


def balanced_kl(kl: Tensor, levels: Sequence[Level], coefficient: float) -> Tensor:
    """The KL of each image as it enters the loss, (B,), from the KL per group (B, G).

    During the warm-up every group is weighted in proportion to (mean |KL| + 0.01) / alpha, mean weight one, so that
    no group is switched off before it had its chance. The weights carry no gradient.
    """
    if coefficient >= 1:
        return kl.sum(1)
    weights = (kl.detach().abs().mean(0) + 0.01) / kl.new_tensor(balance_alphas(levels))
    return coefficient * (kl * (weights / weights.mean())).sum(1)


def regularised_convolutions(model: nn.Module) -> list[nn.Conv2d]:
    """The convolutions inside cells, and the heads that give the parameters of priors and posteriors."""
    inside: dict[int, nn.Conv2d] = {}
    for module in model.modules():
        roots = [module] if isinstance(module, ResidualCell | InvertedResidualCell) else []
        if isinstance(module, LatentGroup):
            roots = module.heads
        for root in roots:
            inside |= {id(m): m for m in root.modules() if isinstance(m, nn.Conv2d)}
    return list(inside.values())


class SpectralRegularisation(nn.Module):
    """The sum of the squared largest singular values of convolution weights.

    A weight counts as the matrix (C_out, the rest). Its largest singular value comes from power iteration, whose
    vectors are kept between steps and saved with a checkpoint. Weights of one shape are handled in one batch.
    """

    def __init__(self, convolutions: Sequence[nn.Conv2d]) -> None:
        super().__init__()
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
        return torch.cat(values)

    def forward(self) -> Tensor:
        return self.singular_values().square().sum()


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


def batch_norm_regularisation(model: nn.Module) -> Tensor:
    """The sum over batch norms of the largest |gamma|."""
    return torch.stack([m.weight.abs().max() for m in model.modules() if isinstance(m, nn.BatchNorm2d)]).sum()
