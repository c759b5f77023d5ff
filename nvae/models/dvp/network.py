"""The DVP-VAE of Kuzina and Tomczak (TMLR 2024): a Ladder VAE whose priors see the image of a context, a pseudo-input.

The first latent group is the context u. q(u | x) is a Normal around a summary of x, such as its lowest DCT
coefficients. p(u) is a diffusion prior, or another top prior. The state of the ladder's groups holds the pseudo-input
of u.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from nvae.models.distributions import DiagonalNormal, Distribution, Noise
from nvae.models.dvp.config import DVPConfig
from nvae.models.dvp.context import CONTEXTS
from nvae.models.hierarchy import FromPosterior, GroupInfo, Level
from nvae.models.ladder.network import LadderState, LadderVAE
from nvae.models.priors.top_priors import LeadingNoiseNormal, TopPriorGroup, VampPrior, build_top_prior, components_of

LOG_VARIANCE_RANGE = (-12.0, -5.0)


class ContextGroup(TopPriorGroup):
    """The context u, (B, C, k, k), above the ladder."""

    def __init__(self, config: DVPConfig) -> None:
        super().__init__()
        channels, size = config.image_channels, config.context_size
        self.level = Level(1, size, channels, channels, channels, name="context")
        self.context = CONTEXTS[config.context](config)
        self.log_variance = nn.Parameter(torch.full((1, channels, size, size), config.diffusion_min_gamma))
        self.top_prior = build_top_prior(config, config.top_prior, self.level.latent_shape, self.context.is_bounded)

    @property
    def info(self) -> GroupInfo:
        return replace(super().info, is_spatial=self.context.is_spatial)

    def prior(self, state: LadderState) -> tuple[LadderState, Distribution]:
        components: tuple[Tensor, ...] = ()
        if isinstance(self.top_prior, VampPrior):
            components = components_of(self._posterior_around(self.context(self.top_prior.images)), len(state.s))
        return state, self.top_prior(len(state.s), *components)

    def posterior(self, state: LadderState, features: Tensor, prior: Distribution) -> DiagonalNormal:
        return self._posterior_around(features)

    def _posterior_around(self, mu: Tensor) -> DiagonalNormal:
        if self.training:
            # In place, as in the published program: the gradient is not zero at the ends. A skipped step clamps what
            # the next step would.
            with torch.no_grad():
                self.log_variance.clamp_(*LOG_VARIANCE_RANGE)
        log_variance = self.log_variance if self.training else self.log_variance.clamp(*LOG_VARIANCE_RANGE)
        return LeadingNoiseNormal(mu, (0.5 * log_variance).exp().expand_as(mu), "variance")

    def merge(self, state: LadderState, z: Tensor) -> LadderState:
        return state._replace(context=self.context.inverse(z))

    def image_of(self, z: Tensor) -> Tensor:
        return ((self.context.inverse(z) + 1) / 2).clamp(0, 1)


class DVPVAE(LadderVAE):
    """The DVP-VAE: a context, then the groups of a Ladder VAE."""

    def __init__(self, config: DVPConfig) -> None:
        super().__init__(config, context_channels=config.image_channels)
        context = ContextGroup(config)
        self.levels = (context.level, *self.levels)
        self.groups.insert(0, context)
        self.pretraining_epochs = config.training_parameters.pretrain_prior_epochs

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        return [self.groups[0].context(images), *self.encoder(images)]

    def pretraining_kl(self, images: Tensor, noise: Noise) -> Tensor:
        context = self.groups[0]
        context.context.requires_grad_(False)  # the KL alone would make a learned map constant
        state, prior = context.prior(self.initial_state(len(images)))
        kl = FromPosterior([context.context(images)], noise)(0, context, state, prior).kl
        context.context.requires_grad_(True)
        assert kl is not None
        return kl

    def calibrate(self, images_u8: Tensor) -> None:
        self.groups[0].context.calibrate(images_u8)
