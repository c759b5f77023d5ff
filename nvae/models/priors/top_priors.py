"""Priors p(z) of the first latent group: one module per value of the key `top_prior`, each gives a distribution."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nvae.models.distributions import DiagonalNormal, NormalMixture
from nvae.models.hierarchy import GroupInfo, LatentGroup
from nvae.models.priors.config import TopPriorConfig
from nvae.models.priors.diffusion import DiffusionPrior

Shape = tuple[int, int, int]


class SimplePrior(nn.Module):
    """The base class of priors with an exact log density, for z of a shape (C, H, W)."""

    info = GroupInfo()

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = self.posterior_noise_shape = shape
        self.noise_shape: tuple[int, ...] = shape


class StandardPrior(SimplePrior):
    """A standard Normal."""

    zeros: Tensor

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.register_buffer("zeros", torch.zeros(1, *shape), persistent=False)

    def forward(self, batch_size: int) -> DiagonalNormal:
        zeros = self.zeros.expand(batch_size, *self.shape)
        return DiagonalNormal(zeros, zeros + 1, "variance")


class GaussianPrior(SimplePrior):
    """A diagonal Normal with learned means and variances; a standard Normal before training."""

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.mu = nn.Parameter(torch.zeros(1, *shape))
        self.log_variance = nn.Parameter(torch.zeros(1, *shape))

    def forward(self, batch_size: int) -> DiagonalNormal:
        mu, sigma = (x.expand(batch_size, *self.shape) for x in (self.mu, (0.5 * self.log_variance).exp()))
        return DiagonalNormal(mu, sigma, "variance")


class MixtureShaped(SimplePrior):
    """The base class of mixtures: a sample also needs the two draws that choose its component."""

    info = GroupInfo(shared_draws=2)

    def __init__(self, shape: Shape) -> None:
        super().__init__(shape)
        self.noise_shape = (1 + self.info.shared_draws, *shape)


class MixturePrior(MixtureShaped):
    """A mixture of M diagonal Normals with learned weights, means and variances."""

    def __init__(self, shape: Shape, components: int) -> None:
        super().__init__(shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.mu = nn.Parameter(torch.randn(components, *shape))
        self.log_variance = nn.Parameter(torch.zeros(components, *shape))

    def forward(self, batch_size: int) -> NormalMixture:
        parts = (self.logits.log_softmax(0), self.mu, (0.5 * self.log_variance).exp())
        return NormalMixture(*(part.expand(batch_size, *part.shape) for part in parts))


class VampPrior(MixtureShaped):
    """The mixture of the posteriors of M learned pseudo-inputs, all of one weight (Tomczak and Welling 2018).

    The family computes the posteriors: `components_of` the posterior of `images`, mu and sigma (B, M, *shape).
    """

    def __init__(self, shape: Shape, components: int, image_shape: Shape) -> None:
        super().__init__(shape)
        self.pseudo_inputs = nn.Parameter(torch.rand(components, *image_shape))

    @property
    def images(self) -> Tensor:
        """The pseudo-inputs (M, C, S, S), clamped to [0, 1]."""
        return self.pseudo_inputs.clamp(0, 1)

    def forward(self, batch_size: int, mu: Tensor, sigma: Tensor) -> NormalMixture:
        log_weights = mu.new_full(mu.shape[:2], -math.log(mu.shape[1]))
        return NormalMixture(log_weights, mu, sigma)


TopPrior = SimplePrior | DiffusionPrior  # a module that returns p(z) for a batch size


def build_top_prior(config: TopPriorConfig, name: str, shape: Shape, bounded: bool) -> TopPrior:
    """Build the prior `name` for z of a shape (C, H, W). bounded: z is about inside [-1, 1]."""
    if name == "standard":
        return StandardPrior(shape)
    if name == "gaussian":
        return GaussianPrior(shape)
    if name == "mixture":
        return MixturePrior(shape, config.prior_components)
    if name == "vampprior":
        image_shape = (config.image_channels, config.input_dimension, config.input_dimension)
        return VampPrior(shape, config.prior_components, image_shape)
    return DiffusionPrior(config, shape, bounded)


def components_of(posterior: DiagonalNormal, batch_size: int) -> tuple[Tensor, Tensor]:
    """Return the posteriors of M pseudo-inputs, mu and sigma (M, *shape), as components (B, M, *shape)."""
    mu, sigma = posterior.mu, posterior.sigma
    return mu.expand(batch_size, *mu.shape), sigma.expand(batch_size, *sigma.shape)


@dataclass(frozen=True, eq=False)
class LeadingNoiseNormal(DiagonalNormal):
    """A diagonal Normal whose noise may be longer than z: the first numbers make z, a prior's bound takes the rest."""

    def sample(self, noise: Tensor, temperature: float = 1.0) -> Tensor:
        size = self.mu[0].numel()
        return super().sample(noise.flatten(1)[:, :size].reshape(self.mu.shape), temperature)


class TopPriorGroup(LatentGroup):
    """The base class of a first latent group whose prior is a `TopPrior`."""

    top_prior: TopPrior

    @property
    def info(self) -> GroupInfo:
        return self.top_prior.info

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.top_prior.noise_shape

    @property
    def posterior_noise_shape(self) -> tuple[int, ...]:
        return self.top_prior.posterior_noise_shape
