"""Precision, recall, density and coverage of samples, from the nearest neighbors of all features at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.system.errors import InvalidValueError

CHUNK = 1000  # features whose distances to all others are in memory at once
# A squared distance of a and b that exceeds the squared radius by this part of |a|^2 + |b|^2 is inside: far more than
# the rounding of the expanded square, so that equal distances count as equal, and less than that of float32 features.
ROUNDING = 1e-12


class Manifold(NamedTuple):
    """How two sets of features overlap.

    precision, recall: Kynkaanniemi et al. 2019. density, coverage: Naeem et al. 2020. All but density are in [0, 1].
    """

    precision: float  # part of the samples within the distance of some real image to its k-th neighbor
    recall: float  # part of the real images within the distance of some sample to its k-th neighbor
    density: float  # mean number of real images whose neighborhoods contain a sample, over k
    coverage: float  # part of the real images whose neighborhood contains a sample


def manifolds(real: Tensor, samples: Tensor, neighbors: Sequence[int] = (3, 5)) -> dict[int, Manifold]:
    """Compare features of real images (N, D) with those of samples (M, D), for each number k of neighbors.

    The distance of the k-th neighbor itself is within, as in the authors' programs and in torch-fidelity: sets of
    duplicates, whose radii are 0, contain each other. All distances are used, not those within batches. Memory: 1,000
    rows of distances in float64.
    Raises InvalidValueError unless both sets have more than k features.
    """
    most = max(neighbors)
    for name, features in (("real features", real), ("features of samples", samples)):
        if len(features) <= most:
            raise InvalidValueError(name, len(features), f"more than the number of neighbors, {most}")
    center = real.double().mean(0)
    real, samples = real.double() - center, samples.double() - center  # small numbers: less rounding in distances
    radii_real, radii_samples = _radii(real, neighbors), _radii(samples, neighbors)
    inside = torch.zeros(len(neighbors), len(samples))  # neighborhoods of real images around each sample
    recalled = torch.zeros(len(neighbors), len(real), dtype=torch.bool)
    nearest = torch.full((len(real),), torch.inf, dtype=torch.float64)
    for first in range(0, len(samples), CHUNK):
        part = slice(first, first + CHUNK)
        distances = _squared_distances(real, samples[part], ROUNDING)  # (N, chunk)
        nearest = torch.minimum(nearest, distances.amin(1))
        for i in range(len(neighbors)):
            inside[i, part] = (distances <= radii_real[i][:, None]).sum(0).float()
            recalled[i] |= (distances <= radii_samples[i][None, part]).any(1)
    return {
        k: Manifold(
            (inside[i] > 0).double().mean().item(),
            recalled[i].double().mean().item(),
            inside[i].double().mean().item() / k,
            (nearest <= radii_real[i]).double().mean().item(),
        )
        for i, k in enumerate(neighbors)
    }


def _radii(features: Tensor, neighbors: Sequence[int]) -> Tensor:
    """Return the squared distance of each feature to its k-th neighbor, (K, N), of features (N, D)."""
    radii = torch.empty(len(neighbors), len(features), dtype=torch.float64)
    for first in range(0, len(features), CHUNK):
        part = slice(first, first + CHUNK)
        distances = _squared_distances(features[part], features)
        distances[torch.arange(len(distances)), torch.arange(first, first + len(distances))] = torch.inf  # to itself
        nearest = distances.topk(max(neighbors), largest=False).values
        for i, k in enumerate(neighbors):
            radii[i, part] = nearest[:, k - 1]
    return radii


def _squared_distances(a: Tensor, b: Tensor, lower: float = 0.0) -> Tensor:
    """Return the squared distances (N, M) of (N, D) and (M, D), less `lower` times the sum of both squares."""
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None]
    return squares.addmm_(a, b.T, beta=1 - lower, alpha=-2).clamp_(min=0)
