"""Distances between two sets of features: the Frechet distance and the kernel distance."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.evaluation.likelihood import Estimate
from nvae.system.errors import InvalidValueError
from nvae.system.seeds import seeded

BLOCKS = 10  # of the kernel distance, at least; the standard error comes from the differences between blocks
BLOCK_SIZE = 1000  # features per block and set, at most: the size of Binkowski et al. 2018
CHUNK = 4096  # features converted to float64 at once


class FeatureStatistics(NamedTuple):
    """Mean (D,) and covariance (D, D) of features, float64: all that the Frechet distance needs.

    images: their number; of a file that does not say the number, 1 more than the rank of the covariance, the least.
    """

    mean: Tensor
    covariance: Tensor
    images: int

    @property
    def has_too_few_images(self) -> bool:
        """Whether the covariance is singular because there are no more images than features.

        The Frechet distance is then far too large, and falls with every image: no number to compare.
        """
        return self.images <= len(self.mean)

    @classmethod
    def of(cls, features: Tensor) -> FeatureStatistics:
        """Compute from features (N, D). The covariance divides by N - 1. Raises InvalidValueError for fewer than 2."""
        count = len(features)
        if count < 2:
            raise InvalidValueError("features", f"{count} images", "2 or more")
        mean = sum(part.double().sum(0) for part in features.split(CHUNK)) / count
        covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
        for part in features.split(CHUNK):
            centered = part.double() - mean
            covariance += centered.T @ centered
        return cls(mean, covariance / (count - 1), count)


def frechet_distance(a: FeatureStatistics, b: FeatureStatistics) -> float:
    """Return |mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)) of the covariances A and B (Heusel et al. 2017).

    The square of the 2-Wasserstein distance of two Normals. tr (A B)^(1/2) is the sum of the square roots of the
    eigenvalues of A^(1/2) B A^(1/2), which is symmetric: no complex numbers, and covariances may be singular.
    """
    values, vectors = torch.linalg.eigh(a.covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    shared = torch.linalg.eigvalsh(root @ b.covariance @ root).clamp(min=0).sqrt().sum()
    traces = a.covariance.trace() + b.covariance.trace()
    return ((a.mean - b.mean).square().sum() + traces - 2 * shared).item()


def kernel_distance(a: Tensor, b: Tensor) -> Estimate:
    """Return the squared maximum mean discrepancy of features (N, D) and (M, D) (Binkowski et al. 2018).

    The kernel is (x y / D + 1)^3. Both sets are cut into the same number of disjoint random blocks. The result is the
    mean of the blocks' unbiased estimates, which can be below 0, and its standard error.
    """
    estimates = [_squared_discrepancy(a[x].double(), b[y].double()) for x, y in blocks(len(a), len(b))]
    return Estimate.of(torch.stack(estimates))


def blocks(count_a: int, count_b: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield disjoint blocks of two sets, as indices: always the same ones, at random.

    Consecutive blocks would be wrong for a data set in the order of its classes.
    """
    smaller, larger = sorted((count_a, count_b))
    number = min(max(BLOCKS, -(-larger // BLOCK_SIZE)), smaller // 2)
    orders = [
        torch.randperm(count, generator=seeded(0, "kernel distance", i)) for i, count in enumerate((count_a, count_b))
    ]
    return zip(*(order.tensor_split(number) for order in orders), strict=True)


def _squared_discrepancy(x: Tensor, y: Tensor) -> Tensor:
    """Return the unbiased estimate from features (n, D) and (m, D); pairs of one feature with itself do not count."""

    def kernel(u: Tensor, v: Tensor) -> Tensor:
        return (u @ v.T / u.shape[1] + 1) ** 3

    def mean_of_pairs(u: Tensor) -> Tensor:
        values = kernel(u, u)
        return (values.sum() - values.diagonal().sum()) / (len(u) * (len(u) - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2 * kernel(x, y).mean()
