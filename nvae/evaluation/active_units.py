"""Count the latent units that carry information about images."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch

from nvae.models.hierarchy import FromPosterior, HierarchicalVAE
from nvae.system.ranks import Ranks

ACTIVE_VARIANCE = 0.01


class ActiveUnits:
    """The variance over images of the noise from which the priors make the centers of the posteriors.

    A unit is active if Var_x[(mu_q - mu_p) / sigma_p] > 0.01, with all latents above it at their posteriors' centers:
    the criterion of Burda et al. (2016), generalized from a standard Normal to any prior. If the prior needs more noise
    than one number per unit, the criterion is Var_x[mu_q / sigma_q] > 0.01.
    """

    def __init__(self, model: HierarchicalVAE) -> None:
        self.model = model
        self.images = 0
        self.sums = [torch.zeros((), dtype=torch.float64)] * len(model.groups)
        self.squares = list(self.sums)

    def add(self, features: list[Any], count: int) -> None:
        """Add `count` images by their bottom-up features."""
        zeros = self.model.no_noise(count, posterior=True)
        source = FromPosterior(features, zeros)
        output = self.model.top_down(source, count, mean_only=True)
        self.images += count
        for index, group in output.groups.items():
            if self.model.groups[index].noise_shape == self.model.groups[index].level.latent_shape:
                units = group.prior.to_noise(group.z)
            else:
                assert group.posterior is not None
                sigma = group.posterior.sample(torch.ones_like(zeros[index])) - group.z
                units = group.z / sigma
            units = units.cpu().double()  # (count, *latent_shape)
            self.sums[index] = self.sums[index] + units.sum(0)
            self.squares[index] = self.squares[index] + units.square().sum(0)

    def merge(self, ranks: Ranks) -> None:
        """Include the images of the other ranks."""
        images, sums, squares = zip(*ranks.gather((self.images, self.sums, self.squares)), strict=True)
        self.images = sum(images)
        self.sums = [reduce(torch.add, parts) for parts in zip(*sums, strict=True)]
        self.squares = [reduce(torch.add, parts) for parts in zip(*squares, strict=True)]

    def counts(self) -> list[int]:
        """Return the number of active units of every group."""
        pairs = zip(self.sums, self.squares, strict=True)
        variances = [square / self.images - (total / self.images).square() for total, square in pairs]
        return [int(torch.sum(variance > ACTIVE_VARIANCE)) for variance in variances]
