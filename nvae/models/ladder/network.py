"""The Ladder VAE of Kuzina and Tomczak (TMLR 2024): the model of the published program without the diffusion prior.

A prior returns its parameters and features h of the state s. The merge sees s + h, the posterior sees s without h, and
the output sees only the sum of all z. In the family dvp, every prior also sees the image of a context.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from nvae.models.distributions import DiagonalNormal, Distribution, at_least_float32
from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.ladder.config import LadderConfig, channels_per_scale
from nvae.models.ladder.likelihoods import build_ladder_likelihood
from nvae.models.priors.top_priors import LeadingNoiseNormal, TopPriorGroup, VampPrior, build_top_prior, components_of
from nvae.models.priors.unet import zeroed

MAX_LOG_VARIANCE = 1.0
BATCH_NORM_MOMENTUM = 0.05
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"silu": nn.SiLU, "relu": nn.ReLU, "elu": nn.ELU, "gelu": nn.GELU}


class LadderState(NamedTuple):
    """The state of a Ladder VAE; what a model or a place in the pass does not have is None."""

    s: Tensor  # (B, C, h, w) of the level
    z_sum: Tensor  # (B, L, S, S): the sum of all z at the images' resolution
    merged: Tensor  # (B, C, h, w): s + h after a prior; before it, s
    context: Tensor | None = None  # (B, C, S, S): the image of the context, which every prior sees
    components: tuple[Tensor, Tensor] | None = None  # of a vampprior, before the first group; see VampPrior


def ladder_levels(config: LadderConfig) -> list[Level]:
    """Return the levels of the hierarchy, top first; a scale without latents has no level."""
    first = 0 if config.first_scale_at_image_size else 1
    scales = zip(config.latents_per_scale, channels_per_scale(config), strict=True)
    finest_first = [
        Level(groups, config.input_dimension // 2**halvings, channels, channels, config.latent_size)
        for halvings, (groups, channels) in enumerate(scales, first)
        if groups
    ]
    return finest_first[::-1]


class Block(nn.Module):
    """body(x) + skip(x), (B, in, H, W) to (B, out, H, W). The body has 1x1, 3x3, 3x3 and 1x1 convolutions.

    hidden: channels between the convolutions. preactivation: True for normalization and activation before each
    convolution (encoder), False for after (decoder).
    """

    def __init__(
        self,
        in_channels: int,
        hidden: int,
        out_channels: int,
        *,
        preactivation: bool,
        activation: Callable[[], nn.Module] = nn.SiLU,
        batch_norm: bool = False,
        weight_norm: bool = False,
    ) -> None:
        super().__init__()
        widths = (in_channels, hidden, hidden, hidden, out_channels)
        layers: list[nn.Module] = []

        def norm(channels: int) -> list[nn.Module]:
            return [nn.BatchNorm2d(channels, momentum=BATCH_NORM_MOMENTUM)] if batch_norm else []

        if not preactivation:
            layers += norm(in_channels)
        for index, kernel in enumerate((1, 3, 3, 1)):
            before, after = widths[index], widths[index + 1]
            convolution = nn.Conv2d(before, after, kernel, padding=kernel // 2)
            is_last = index == 3
            if weight_norm and (preactivation or not is_last):
                convolution = parametrizations.weight_norm(convolution, dim=0)
            if preactivation:
                layers += [*norm(before), activation(), convolution]
            else:
                layers += [convolution, *norm(after), *([] if is_last else [activation()])]
        self.body = nn.Sequential(*layers)
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    @property
    def last_convolution(self) -> nn.Conv2d:
        return [module for module in self.body if isinstance(module, nn.Conv2d)][-1]

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x) + self.skip(x)


def block_type(config: LadderConfig, preactivation: bool) -> Callable[..., Block]:
    """Return the blocks of a config, as a function (in_channels, hidden, out_channels) -> Block."""
    activation = ACTIVATIONS[config.activation]
    norms = {"batch_norm": config.batch_norm, "weight_norm": config.weight_norm}
    return partial(Block, preactivation=preactivation, activation=activation, **norms)


def zero_last(block: Block) -> Block:
    """Set the last convolution of a block to zero, so that the block starts as its skip; return the block."""
    zeroed(block.last_convolution)
    return block


class Encoder(nn.Module):
    """The bottom-up network: blocks and average pooling; one feature map per scale (small) or latent group (plain)."""

    def __init__(self, config: LadderConfig) -> None:
        super().__init__()
        self.counts, self.is_small = config.latents_per_scale, config.encoder == "small"
        self.mean, self.std = config.pixel_mean, config.pixel_std
        channels, make = config.channels, block_type(config, preactivation=True)

        def block(in_channels: int, out_channels: int) -> Block:
            return make(in_channels, int(in_channels * config.hidden_multiplier), out_channels)

        stem = nn.Conv2d(config.image_channels, channels, 1)
        self.stem = nn.Sequential(stem, *(block(channels, channels) for _ in range(config.num_init_blocks)))
        self.stages = nn.ModuleList()  # finest first
        self.pooling: list[int] = []  # of each stage's output
        kernel = 1 if config.first_scale_at_image_size else 2
        for count, width in zip(config.latents_per_scale, channels_per_scale(config), strict=True):
            for stage in range(min(count, 1) if self.is_small else count):
                blocks = [block(channels, width)]
                blocks += [block(width, width) for _ in range(config.encoder_blocks_per_scale - 1)]
                self.stages.append(nn.Sequential(*blocks))
                self.pooling.append(kernel if stage == 0 else 1)
                channels = width
            kernel = 2 if count else 2 * kernel

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, C, H, W) in [0, 1] to one feature map per latent group, top group first."""
        h = self.stem((255 * images - self.mean) / self.std)
        features = []
        for stage, kernel in zip(self.stages, self.pooling, strict=True):
            h = functional.avg_pool2d(stage(h), kernel)
            features.append(h)
        if self.is_small:
            counts = filter(None, self.counts)
            features = [feature for feature, count in zip(features, counts, strict=True) for _ in range(count)]
        return features[::-1]


class LadderGroup(LatentGroup):
    """One latent group; `below` is the level of the next group, None after the last one.

    context_channels: channels of the context's image in the state; 0 without a context.
    """

    def __init__(
        self, config: LadderConfig, level: Level, below: Level | None, num_groups: int, context_channels: int = 0
    ) -> None:
        super().__init__()
        self.level, self.below = level, below
        self.min_log_variance = config.min_log_variance
        channels, latents = level.decoder_channels, level.latent_size
        hidden, block = int(channels * config.hidden_multiplier), block_type(config, preactivation=False)
        self.prior_block = zero_last(block(channels + context_channels, hidden, 2 * latents + channels))
        self.posterior_block = zero_last(block(channels, hidden, 2 * latents))
        self.z_projection = nn.Conv2d(latents, channels, 1)
        if below is None:  # unused in the last group, as in the original
            self.z_projection.requires_grad_(False)
        blocks: list[Block] = []
        if below is not None:
            widths = [channels] * config.decoder_blocks_per_latent + [below.decoder_channels]
            blocks = [block(before, hidden, after) for before, after in zip(widths, widths[1:], strict=False)]
        self.blocks = nn.Sequential(*blocks)
        with torch.no_grad():
            scale = math.sqrt(1 / num_groups)
            self.z_projection.weight.mul_(scale)
            if blocks:
                blocks[-1].last_convolution.weight.mul_(scale)

    def _normal(self, mu: Tensor, log_variance: Tensor) -> DiagonalNormal:
        log_variance = at_least_float32(log_variance).clamp(self.min_log_variance, MAX_LOG_VARIANCE)
        return LeadingNoiseNormal(at_least_float32(mu), (0.5 * log_variance).exp(), "variance")

    def prior(self, state: LadderState) -> tuple[LadderState, Distribution]:
        s, latents = state.s, self.level.latent_size
        seen = s
        if state.context is not None:
            seen = torch.cat([s, functional.adaptive_avg_pool2d(state.context, s.shape[-1]).to(s.dtype)], 1)
        mu, log_variance, h = self.prior_block(seen).split([latents, latents, s.shape[1]], dim=1)
        return state._replace(merged=s + h), self._normal(mu, log_variance)

    def posterior(self, state: LadderState, features: Tensor, prior: Distribution | None) -> DiagonalNormal:
        mu, log_variance = self.posterior_block((features + state.s) / math.sqrt(2)).chunk(2, dim=1)
        return self._normal(mu, log_variance)

    def merge(self, state: LadderState, z: Tensor) -> LadderState:
        z = z.to(state.s.dtype)
        s, z_sum = state.merged, state.z_sum + resize(z, state.z_sum.shape[-1])
        if self.below is not None:
            s = resize(self.blocks(s + self.z_projection(z)), self.below.resolution)
        return LadderState(s, z_sum, s, state.context)


class TopGroup(TopPriorGroup, LadderGroup):
    """The first group with a top prior: its block gives h alone."""

    def __init__(self, config: LadderConfig, level: Level, below: Level | None, num_groups: int) -> None:
        super().__init__(config, level, below, num_groups)
        self.top_prior = build_top_prior(config, config.top_prior, level.latent_shape, bounded=False)

    def prior(self, state: LadderState) -> tuple[LadderState, Distribution]:
        return super().prior(state)[0], self.top_prior(len(state.s), *(state.components or ()))


def resize(x: Tensor, side: int) -> Tensor:
    """Resize (B, C, H, W) to (B, C, side, side), bilinearly."""
    return x if x.shape[-1] == side else functional.interpolate(x, (side, side), mode="bilinear", align_corners=False)


class Output(nn.Module):
    """From the sum of all z (B, w, H, W) to the likelihood's parameters."""

    def __init__(self, config: LadderConfig, num_parameters: int) -> None:
        super().__init__()
        channels, block = config.channels, block_type(config, preactivation=False)
        hidden = int(channels * config.hidden_multiplier)
        self.projection = nn.Conv2d(config.latent_size, channels, 1)
        blocks = (zero_last(block(channels, hidden, channels)) for _ in range(config.num_postprocess_blocks))
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Conv2d(channels, num_parameters, 3, padding=1)

    def forward(self, z_sum: Tensor) -> Tensor:
        return self.head(self.blocks(self.projection(z_sum)))


class LadderVAE(HierarchicalVAE):
    """The Ladder VAE: bottom-up features per scale, a top-down pass from ones, an output that sees the sum of all z.

    context_channels: of the context of a family that extends this one; 0 without a context.
    """

    def __init__(self, config: LadderConfig, context_channels: int = 0) -> None:
        levels = ladder_levels(config)
        super().__init__(config, levels, build_ladder_likelihood(config))
        levels_of_groups = [level for level in levels for _ in range(level.groups)]
        self.num_latents, self.top = len(levels_of_groups), levels[0]
        self.encoder = Encoder(config)
        groups: list[LadderGroup] = []
        for index, (level, below) in enumerate(zip(levels_of_groups, [*levels_of_groups[1:], None], strict=True)):
            if index == 0 and not context_channels and config.top_prior != "learned":
                groups.append(TopGroup(config, level, below, self.num_latents))
            else:
                groups.append(LadderGroup(config, level, below, self.num_latents, context_channels))
        self.groups = nn.ModuleList(groups)
        self.output = Output(config, self.likelihood.num_parameters)

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        return self.encoder(images)

    def initial_state(self, batch_size: int) -> LadderState:
        side, like = self.config.input_dimension, next(self.parameters())
        s = like.new_ones(batch_size, self.top.decoder_channels, self.top.resolution, self.top.resolution)
        state = LadderState(s, like.new_zeros(batch_size, self.top.latent_size, side, side), s)
        top = self.groups[0]
        if isinstance(top, TopGroup) and isinstance(top.top_prior, VampPrior):
            features = self.encoder(top.top_prior.images)[0]  # (M, ...)
            posterior = top.posterior(state._replace(s=features.new_ones(())), features, None)
            state = state._replace(components=components_of(posterior, batch_size))
        return state

    def decode(self, state: LadderState, channels: Sequence[int] | None = None) -> Tensor:
        return self.output(state.z_sum / math.sqrt(self.num_latents))
