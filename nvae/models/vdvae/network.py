"""The Very Deep VAE of Child (2021).

The decoder has one stream (B, w, R, R) per resolution R. A block changes the stream of its resolution, after it has
added the upsampled stream of a coarser one where the config says so. The image comes from the finest stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nvae.models.distributions import DiagonalNormal, at_least_float32
from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.vdvae.config import Block, VDVAEConfig, blocks_of
from nvae.models.vdvae.likelihoods import build_vdvae_likelihood

Function: TypeAlias = Callable[[Tensor], Tensor]

ACTIVATIONS: dict[str, Function] = {"gelu": functional.gelu, "silu": functional.silu}
START = 0.3  # share of the ordinary initial weights in those of learned resampling
SIGMAS: dict[str, Function] = {
    "exp": torch.exp,
    "bounded": lambda raw: (5 * torch.tanh(raw / 5)).exp(),
    "softplus": partial(functional.softplus, beta=0.6931471805599453),  # ln 2: softplus(0) / ln 2 is 1
}


class Streams(NamedTuple):
    """The state of a pass.

    streams: coarsest first; None before the first block of a stream that starts from zeros and adds a coarser one.
    x, active: after a prior, the stream of its group with the prior's features, and the activation function of the
    stream without them.
    """

    streams: tuple[Any, ...]
    x: Any = None
    active: Any = None


class Bottleneck(nn.Module):
    """Convolutions with an activation between: 1x1, one or two of 3x3, 1x1; all 1x1 up to a resolution of 2.

    From (B, in, R, R), which the activation has been applied to, to (B, out, R, R). convolutions: 3 or 4. With
    `recompute`, the backward pass computes the activations again; there are no random numbers to repeat.
    """

    recompute = False

    def __init__(
        self, channels: int, hidden: int, out: int, resolution: int, convolutions: int, activation: Function
    ) -> None:
        super().__init__()
        self.act = activation
        kernel = 3 if resolution > 2 else 1
        self.c1 = nn.Conv2d(channels, hidden, 1)
        self.c2 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2)
        self.c3 = nn.Conv2d(hidden, hidden, kernel, padding=kernel // 2) if convolutions == 4 else None
        self.c4 = nn.Conv2d(hidden, out, 1)

    def forward(self, active: Tensor) -> Tensor:
        if self.recompute and torch.is_grad_enabled():
            return checkpoint(self._convolutions, active, use_reentrant=False, preserve_rng_state=False)
        return self._convolutions(active)

    def _convolutions(self, active: Tensor) -> Tensor:
        h = self.c1(active)
        for convolution in (self.c2, self.c3, self.c4):
            h = h if convolution is None else convolution(self.act(h))
        return h


class FixedDownsampling(nn.Module):
    """Average pooling: (B, w, R, R) to (B, channels, R / factor, R / factor); channels that x lacks are zeros."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(x, self.factor)
        missing = self.channels - x.shape[1]
        return functional.pad(x, (0, 0, 0, 0, 0, missing)) if missing else x


class FixedUpsampling(nn.Module):
    """Nearest-neighbor upsampling of the first channels: (B, w, R, R) to (B, channels, factor R, factor R)."""

    def __init__(self, channels: int, factor: int) -> None:
        super().__init__()
        self.channels, self.factor = channels, factor

    def forward(self, x: Tensor) -> Tensor:
        return functional.interpolate(x[:, : self.channels], scale_factor=self.factor)


class LearnedDownsampling(nn.Conv2d):
    """A convolution as `FixedDownsampling`, near which it starts."""

    def __init__(self, inputs: int, channels: int, factor: int) -> None:
        super().__init__(inputs, channels, factor, stride=factor)
        with torch.no_grad():
            self.weight.mul_(START).add_(torch.eye(channels, inputs)[:, :, None, None] / factor**2)


class LearnedUpsampling(nn.Module):
    """A 1x1 convolution and a pixel shuffle (Shi et al. 2016) as `FixedUpsampling`, near which they start."""

    def __init__(self, inputs: int, channels: int, factor: int) -> None:
        super().__init__()
        self.conv, self.factor = nn.Conv2d(inputs, channels * factor**2, 1), factor
        with torch.no_grad():
            copies = torch.eye(channels, inputs).repeat_interleave(factor**2, dim=0)
            self.conv.weight.mul_(START).add_(copies[:, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return functional.pixel_shuffle(self.conv(x), self.factor)


def downsampling(config: VDVAEConfig, block: Block) -> nn.Module:
    """Return what follows a block of the encoder."""
    if block.factor is None:
        return nn.Identity()
    inputs, channels = config.width_at(block.resolution), config.width_at(block.resolution // block.factor)
    if config.resampling == "learned":
        return LearnedDownsampling(inputs, channels, block.factor)
    return FixedDownsampling(channels, block.factor)


def upsampling(config: VDVAEConfig, block: Block) -> nn.Module:
    """Return what upsamples the stream that a block of the decoder adds first."""
    if block.source is None:
        return nn.Identity()
    channels, factor = config.width_at(block.resolution), block.resolution // block.source
    if config.resampling == "learned":
        return LearnedUpsampling(config.width_at(block.source), channels, factor)
    return FixedUpsampling(channels, factor)


class Encoder(nn.Module):
    """The bottom-up network: residual blocks and downsampling."""

    def __init__(self, config: VDVAEConfig) -> None:
        super().__init__()
        self.mean, self.std, self.act = config.pixel_mean, config.pixel_std, ACTIVATIONS[config.activation]
        plan = blocks_of("enc_blocks", config.enc_blocks)
        self.patch_size = config.patch_size
        self.in_conv = nn.Conv2d(config.image_channels * config.patch_size**2, config.width, 3, padding=1)
        self.blocks = nn.ModuleList(bottleneck(config, block.resolution) for block in plan)
        self.downsamplings = nn.ModuleList(downsampling(config, block) for block in plan)
        scale_last(self.blocks, len(self.blocks))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        """Map images (B, C, S, S) in [0, 1] to the activated last x (B, w, R, R) of every resolution R."""
        x = (255 * images - self.mean) / self.std
        x = self.in_conv(functional.pixel_unshuffle(x, self.patch_size) if self.patch_size > 1 else x)
        activations = {x.shape[-1]: x}
        for block, downsample in zip(self.blocks, self.downsamplings, strict=True):
            x = downsample(x + block(self.act(x)))
            activations[x.shape[-1]] = x
        return {resolution: self.act(x) for resolution, x in activations.items()}


def bottleneck(config: VDVAEConfig, resolution: int, inputs: int = 1, out: int | None = None) -> Bottleneck:
    """Return the block of a resolution, from `inputs` times the channels there to `out`, by default as many."""
    width, hidden = config.width_at(resolution), config.hidden_width_at(resolution)
    out, activation = width if out is None else out, ACTIVATIONS[config.activation]
    return Bottleneck(inputs * width, hidden, out, resolution, config.block_convolutions, activation)


def scale_last(blocks: Iterable[Any], total: int) -> None:
    """Divide the last weights of blocks by sqrt(total)."""
    with torch.no_grad():
        for block in blocks:
            block.c4.weight.mul_(total**-0.5)


class Stream(nn.Module):
    """A block's stream: its place in the state, and the coarser stream that is added before the block.

    sides: the resolutions of the streams, coarsest first.
    """

    def __init__(self, config: VDVAEConfig, block: Block, sides: Sequence[int]) -> None:
        super().__init__()
        self.resolution, self.place = block.resolution, sides.index(block.resolution)
        self.source = None if block.source is None else sides.index(block.source)
        self.upsample = upsampling(config, block)

    def before(self, streams: tuple[Any, ...]) -> Tensor:
        """Return the stream (B, w, R, R) with the coarser one added."""
        x = streams[self.place]
        if self.source is None:
            return x
        added = self.upsample(streams[self.source])
        return added if x is None else x + added

    def replaced(self, streams: tuple[Any, ...], x: Tensor) -> tuple[Any, ...]:
        """Return all streams, with x in the place of this one."""
        return *streams[: self.place], x, *streams[self.place + 1 :]


class PlainBlock(nn.Module):
    """One block of the decoder without a latent group. total: the number of blocks."""

    def __init__(self, config: VDVAEConfig, stream: Stream, total: int) -> None:
        super().__init__()
        self.stream, self.act = stream, ACTIVATIONS[config.activation]
        self.output_block = bottleneck(config, stream.resolution)
        scale_last([self.output_block], total)

    def forward(self, streams: tuple[Any, ...]) -> tuple[Any, ...]:
        x = self.stream.before(streams)
        return self.stream.replaced(streams, x + self.output_block(self.act(x)))


class VDVAEGroup(LatentGroup):
    """One block of the decoder with its latent group. total: the number of blocks."""

    def __init__(self, config: VDVAEConfig, level: Level, stream: Stream, total: int) -> None:
        super().__init__()
        self.level, self.stream = level, stream
        self.act, self.sigma = ACTIVATIONS[config.activation], SIGMAS[config.sigma]
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
        return DiagonalNormal(mu, self.sigma(raw))

    def prior(self, state: Streams) -> tuple[Streams, DiagonalNormal]:
        x = self.stream.before(state.streams)
        active, latents = self.act(x), self.level.latent_size
        parameters, features = self.prior_block(active).split([2 * latents, x.shape[1]], dim=1)
        parameters = parameters.clone(memory_format=torch.channels_last)  # a view would keep the features in memory
        return Streams(state.streams, x + features, active), self._normal(parameters)

    def posterior(self, state: Streams, features: Tensor, prior: DiagonalNormal) -> DiagonalNormal:
        return self._normal(self.posterior_block(torch.cat([state.active, features], dim=1)))

    def merge(self, state: Streams, z: Tensor) -> Streams:
        x = state.x + self.z_projection(z.to(state.x.dtype))
        x = x + self.output_block(self.act(x))
        return Streams(self.stream.replaced(state.streams, x))


class VDVAE(HierarchicalVAE):
    """The Very Deep VAE: a bottom-up network, and a decoder with one stream per resolution."""

    def __init__(self, config: VDVAEConfig) -> None:
        blocks = blocks_of("dec_blocks", config.dec_blocks)
        with_latents = filter(config.has_latents, blocks)
        runs = [list(run) for _, run in groupby(with_latents, lambda block: block.resolution)]
        levels = [_level(config, run[0].resolution, len(run)) for run in runs]
        super().__init__(config, levels, build_vdvae_likelihood(config))
        sides = sorted({block.resolution for block in blocks})
        self.encoder = Encoder(config)
        streams = [Stream(config, block, sides) for block in blocks]
        level_of_groups = [level for level in levels for _ in range(level.groups)]
        self.groups = nn.ModuleList(
            VDVAEGroup(config, level, stream, len(blocks))
            for level, stream in zip(level_of_groups, streams, strict=False)
        )
        self.plain_blocks = nn.ModuleList(
            PlainBlock(config, stream, len(blocks)) for stream in streams[len(level_of_groups) :]
        )
        self.gain = nn.Parameter(torch.ones(1, config.width, 1, 1))
        self.bias = nn.Parameter(torch.zeros(1, config.width, 1, 1))
        self.stream_biases = nn.ParameterList(
            torch.zeros(1, config.width_at(side), side, side) for side in sides if side <= config.no_bias_above
        )
        parameters = self.likelihood.num_parameters
        out = (config.output_width or parameters) * config.patch_size**2
        self.output = nn.Conv2d(config.width, out, 1)
        self.patch_size, self.act = config.patch_size, ACTIVATIONS[config.activation]
        self.last = nn.Conv2d(config.output_width, parameters, 3, padding=1) if config.output_width else None
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
        streams = state.streams
        for block in self.plain_blocks:
            streams = block(streams)
        x = self.output(streams[-1] * self.gain + self.bias)
        x = functional.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x
        return x if self.last is None else self.last(self.act(x))


def _level(config: VDVAEConfig, resolution: int, groups: int) -> Level:
    width = config.width_at(resolution)
    return Level(groups, resolution, width, width, config.latent_size)
