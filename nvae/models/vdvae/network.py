"""The Very Deep VAE of Child (2021).

The decoder has one stream (B, w, R, R) per resolution R. A block changes the stream of its resolution, after it has
added the upsampled stream of a coarser one where the config says so. The image comes from the finest stream.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nvae.models.distributions import DiagonalNormal, at_least_float32
from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.vdvae.config import VDVAEConfig, blocks_of
from nvae.models.vdvae.likelihoods import build_vdvae_likelihood

SOFTPLUS_BETA = 0.6931471805599453  # ln 2: softplus(0) / ln 2 is 1


class Streams(NamedTuple):
    """The state of a pass.

    streams: coarsest first; None before the first block of a stream that starts from zeros and adds a coarser one.
    x, active: after a prior, the stream of its group with the prior's features, and GELU of the stream without them.
    """

    streams: tuple[Any, ...]
    x: Any = None
    active: Any = None


class Bottleneck(nn.Module):
    """Four convolutions with GELU between: 1x1, 3x3, 3x3, 1x1; all 1x1 up to a resolution of 2.

    From (B, in, R, R), which GELU has been applied to, to (B, out, R, R). With `recompute`, the backward pass computes
    the activations again.
    """

    recompute = False

    def __init__(self, channels: int, hidden: int, out: int, resolution: int) -> None:
        super().__init__()
        kernel = 3 if resolution > 2 else 1
        self.c1 = nn.Conv2d(channels, hidden, 1)
        self.c2 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.c4 = nn.Conv2d(hidden, out, 1)

    def forward(self, active: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._convolutions, active, use_reentrant=False)
        return self._convolutions(active)

    def _convolutions(self, active: Tensor) -> Tensor:
        h = self.c1(active)
        for convolution in (self.c2, self.c3, self.c4):
            h = convolution(functional.gelu(h))
        return h


class Encoder(nn.Module):
    """The bottom-up network: residual blocks and average pooling."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.mean, self.std = config.pixel_mean, config.pixel_std
        plan = blocks_of("enc_blocks", config.enc_blocks)
        self.factors = [block.factor or 1 for block in plan]  # of the pooling after each block
        self.widths = [config.width_at(block.resolution // (block.factor or 1)) for block in plan]  # after the pooling
        self.in_conv = nn.Conv2d(config.image_channels, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(bottleneck(config, block.resolution) for block in plan)
        scale_last(self.blocks, len(self.blocks))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images (B, C, S, S) in [0, 1] to GELU of the last activations (B, w, R, R) at every resolution R."""
        x = self.in_conv((255 * images - self.mean) / self.std)
        activations = {x.shape[-1]: x}
        for block, factor, width in zip(self.blocks, self.factors, self.widths, strict=True):
            x = x + block(functional.gelu(x))
            x = functional.avg_pool2d(x, factor) if factor > 1 else x
            missing = width - x.shape[1]
            activations[x.shape[-1]] = x = functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x
        return {resolution: functional.gelu(x) for resolution, x in activations.items()}


def bottleneck(config: VDVAEConfig, resolution: int, inputs: int = 1, out: int | None = None) -> Bottleneck:
    """Return the block of a resolution, from `inputs` times the channels there to `out`, by default as many."""
    width = config.width_at(resolution)
    return Bottleneck(inputs * width, config.hidden_width_at(resolution), width if out is None else out, resolution)


def scale_last(blocks: Iterable[Any], total: int) -> None:
    """Divide the last weights of blocks by sqrt(total)."""
    with torch.no_grad():
        for block in blocks:
            block.c4.weight.mul_(total**-0.5)


class VDVAEGroup(LatentGroup):
    """One block of the decoder.

    stream, source: the place in the state of the block's stream, and of the stream that the block adds first. total:
    the number of blocks.
    """

    def __init__(self, config: VDVAEConfig, level: Level, stream: int, source: int | None, total: int) -> None:
        super().__init__()
        self.level, self.stream, self.source = level, stream, source
        self.is_softplus = config.sigma == "softplus"
        width, latents = level.decoder_channels, level.latent_size
        self.posterior_block = bottleneck(config, level.resolution, inputs=2, out=2 * latents)
        self.prior_block = bottleneck(config, level.resolution, out=2 * latents + width)
        self.z_projection = nn.Conv2d(latents, width, 1)
        self.output_block = bottleneck(config, level.resolution)
        nn.init.zeros_(self.prior_block.c4.weight)
        scale_last([self.output_block], total)
        with torch.no_grad():
            self.z_projection.weight.mul_(total**-0.5)

    def _normal(self, parameters: Tensor) -> DiagonalNormal:
        mu, raw = at_least_float32(parameters).chunk(2, dim=1)
        return DiagonalNormal(mu, functional.softplus(raw, SOFTPLUS_BETA) if self.is_softplus else raw.exp())

    def prior(self, state: Streams) -> tuple[Streams, DiagonalNormal]:
        x = state.streams[self.stream]
        if self.source is not None:
            coarser = state.streams[self.source][:, : self.level.decoder_channels]
            added = functional.interpolate(coarser, (self.level.resolution,) * 2)  # to the nearest
            x = added if x is None else x + added
        active, latents = functional.gelu(x), self.level.latent_size
        parameters, features = self.prior_block(active).split([2 * latents, x.shape[1]], dim=1)
        parameters = parameters.clone(memory_format=torch.channels_last)  # a view would keep the features in memory
        return Streams(state.streams, x + features, active), self._normal(parameters)

    def posterior(self, state: Streams, features: Tensor, prior: DiagonalNormal) -> DiagonalNormal:
        return self._normal(self.posterior_block(torch.cat([state.active, features], dim=1)))

    def merge(self, state: Streams, z: Tensor) -> Streams:
        x = state.x + self.z_projection(z.to(state.x.dtype))
        x = x + self.output_block(functional.gelu(x))
        return Streams((*state.streams[: self.stream], x, *state.streams[self.stream + 1 :]))


class VDVAE(HierarchicalVAE):
    """The Very Deep VAE: a bottom-up network, and a decoder with one stream per resolution."""

    def __init__(self, config: VDVAEConfig) -> None:
        blocks = blocks_of("dec_blocks", config.dec_blocks)
        runs = [list(run) for _, run in groupby(blocks, lambda block: block.resolution)]
        levels = [_level(config, run[0].resolution, len(run)) for run in runs]
        super().__init__(config, levels, build_vdvae_likelihood(config))
        sides = sorted({block.resolution for block in blocks})
        self.encoder = Encoder(config)
        groups = []
        for level, run in zip(levels, runs, strict=True):
            for block in run:
                source = None if block.source is None else sides.index(block.source)
                groups.append(VDVAEGroup(config, level, sides.index(level.resolution), source, len(blocks)))
        self.groups = nn.ModuleList(groups)
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.stream_biases = nn.ParameterList(
            torch.zeros(1, config.width_at(side), side, side) for side in sides if side <= config.no_bias_above
        )
        self.output = nn.Conv2d(config.width, self.likelihood.num_parameters, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]  # every convolution has one
        first = {block.resolution: block for block in reversed(blocks)}
        # Streams that start from zeros and add nothing first, (channels, side), by their places; the rest have None.
        self.zeros = {
            place: (config.width_at(side), side)
            for place, side in enumerate(sides)
            if side > config.no_bias_above and first[side].source is None
        }
        self.num_streams = len(sides)

    def recompute_activations(self, recompute: bool) -> None:
        for module in self.modules():
            if isinstance(module, Bottleneck):
                module.recompute = recompute

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        activations = self.encoder(images)
        return [activations[group.level.resolution] for group in self.groups]

    def initial_state(self, batch_size: int) -> Streams:
        streams: list[Any] = [None] * self.num_streams
        for place, bias in enumerate(self.stream_biases):  # the coarsest streams
            streams[place] = bias.expand(batch_size, -1, -1, -1)
        for place, (width, side) in self.zeros.items():
            streams[place] = self.gain.new_zeros(batch_size, width, side, side)
        return Streams(tuple(streams))

    def decode(self, state: Streams, channels: Sequence[int] | None = None) -> Tensor:
        return self.output(state.streams[-1] * self.gain + self.bias)


def _level(config: VDVAEConfig, resolution: int, groups: int) -> Level:
    width = config.width_at(resolution)
    return Level(groups, resolution, width, width, config.latent_size)
