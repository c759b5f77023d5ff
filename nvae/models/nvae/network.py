"""The NVAE towers, built from level specs (Vahdat and Kautz 2020), in all the variants that a config can ask for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.likelihoods import build_likelihood
from nvae.models.nvae.cells import CellOptions, CellStack, CellTypes, cell_types
from nvae.models.nvae.config import NVAEConfig, groups_per_scale
from nvae.models.nvae.convolutions import Normalization, normalized
from nvae.models.nvae.flows import Flow


def nvae_levels(config: NVAEConfig) -> list[Level]:
    """The levels of the hierarchy, top to bottom."""
    side = config.input_dimension + 2 * config.padding
    finest_first = [
        Level(
            groups=groups,
            resolution=side // 2 ** (config.num_blocks_prepost + scale),
            encoder_channels=config.channel_towers.encoder
            * config.channel_multiplier ** (config.num_blocks_prepost + scale),
            decoder_channels=config.channel_towers.decoder
            * config.channel_multiplier ** (config.num_blocks_prepost + scale),
            latent_size=config.latent_size,
        )
        for scale, groups in enumerate(groups_per_scale(config))
    ]
    return finest_first[::-1]


def build_nvae(config: NVAEConfig) -> HierarchicalVAE:
    """The network that a config describes, with fresh weights from torch's default generator."""
    levels = nvae_levels(config)
    likelihood = build_likelihood(config)
    groups: list[LatentGroup] = []
    above: Level | None = None
    for level in levels:
        for _ in range(level.groups):
            groups.append(NVAEGroup(config, level, above))
            above = level
    draw = {"normal": torch.randn, "uniform": torch.rand}[config.initial_constant]
    constant = draw(1, state_channels(config, levels[0]), levels[0].resolution, levels[0].resolution)
    return HierarchicalVAE(
        config, levels, Encoder(config, levels), constant, groups, Output(config, likelihood.parameters), likelihood
    )


NVAE = build_nvae


def state_channels(config: NVAEConfig, top: Level) -> int:
    """Channels of the learned constant. A plain VAE has none: its state is made of z alone."""
    return 0 if config.plain_vae else top.decoder_channels


class Ingredients(NamedTuple):
    """What the parts of a network are made of: normalizations outside cells and of flows, cells and their details."""

    normalization: Normalization
    flow_normalization: Literal["none", "linear", "exponential"]
    details: CellOptions
    kinds: CellTypes


def ingredients(config: NVAEConfig) -> Ingredients:
    """From the keys of a config. Spectral normalization takes the place of every other one but that of flows."""
    inside = config.weight_normalization if config.normalize_cells else "none"
    spectral = config.spectral_normalization
    details = CellOptions(
        normalization="spectral" if spectral else inside,
        inverted_normalization="spectral" if spectral else "none",
        squeeze_excitation=config.squeeze_excitation,
        downsample_skip=config.downsample_skip,
        upsample_skip_bias=config.upsample_skip_bias,
    )
    outside = "spectral" if spectral else config.weight_normalization
    return Ingredients(outside, inside, details, cell_types(config.arch_instance))


class Encoder(nn.Module):
    """Bottom-up: stem, pre-processing, then a stack of cells per latent group, whose features are tapped."""

    def __init__(self, config: NVAEConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.centered = config.pixel_range == "centered"
        normalization, _, details, kinds = ingredients(config)
        channels, multiplier = config.channel_towers.encoder, config.channel_multiplier
        self.stem = normalized(nn.Conv2d(config.image_channels, channels, 3, padding=1), normalization)
        preprocess: list[nn.Module] = []
        for _ in range(config.num_blocks_prepost):
            for _ in range(config.num_cells_per_block_prepost.encoder - 1):
                preprocess.append(kinds.preprocess(channels, channels, details))
            preprocess.append(kinds.preprocess(channels, channels * multiplier, details, "downsample"))
            channels *= multiplier
        self.preprocess = CellStack(*preprocess)
        self.tower = nn.ModuleList()  # one stack per latent group, bottom to top
        cells_per_group = 0 if config.plain_vae else config.cells_per_split_enc
        for level in reversed(levels):
            for group in range(level.groups):
                cells: list[nn.Module] = []
                if group == 0 and level is not levels[-1]:
                    cells.append(kinds.encoder(channels, level.encoder_channels, details, "downsample"))
                    channels = level.encoder_channels
                cells += [kinds.encoder(channels, channels, details) for _ in range(cells_per_group)]
                self.tower.append(CellStack(*cells))
        self.top = nn.Sequential(nn.ELU(), normalized(nn.Conv2d(channels, channels, 1), normalization), nn.ELU())

    def forward(self, images: Tensor) -> list[Tensor]:
        h = self.preprocess(self.stem(2 * images - 1 if self.centered else images))
        features = []
        for stack in self.tower:
            h = stack(h)  # (B, C of the level, H, W)
            features.append(h)
        features[-1] = self.top(h)
        return features[::-1]


class NVAEGroup(LatentGroup):
    """One latent group of the top-down network (NVAE, figure 2 and section 3.2)."""

    def __init__(self, config: NVAEConfig, level: Level, above: Level | None) -> None:
        super().__init__()
        self.level = level
        self.same_flow = config.num_flows == 0 or config.fixed_flows
        self.temperature_scales_min_sigma = config.temperature_scales_min_sigma
        self.residual_posterior = config.residual_posterior
        normalization, flow_normalization, details, kinds = ingredients(config)
        channels, latents = level.decoder_channels, level.latent_size
        cells: list[nn.Module] = []
        if above is not None and above is not level:
            cells.append(kinds.decoder(above.decoder_channels, channels, details, "upsample"))
        if above is not None:
            cells += [kinds.decoder(channels, channels, details) for _ in range(config.cells_per_input_dec)]
        self.cells = CellStack(*cells)
        if above is None:
            self.prior_head = None
            self.encoder_combiner = None
        else:
            self.prior_head = normalized(nn.Conv2d(channels, 2 * latents, 1), normalization)
            self.encoder_combiner = normalized(nn.Conv2d(channels, level.encoder_channels, 1), normalization)
        self.posterior_head = normalized(nn.Conv2d(level.encoder_channels, 2 * latents, 3, padding=1), normalization)
        self.flow = Flow(latents, config.num_flows, config.flow_columns, flow_normalization)
        joined = (channels if above is not None else state_channels(config, level)) + latents
        self.decoder_combiner = normalized(nn.Conv2d(joined, channels, 1), normalization)

    @property
    def heads(self) -> list[nn.Module]:
        return [head for head in (self.prior_head, self.posterior_head) if head is not None]

    def descend(self, state: Tensor) -> Tensor:
        return self.cells(state)

    def prior(self, state: Tensor) -> Tensor:
        if self.prior_head is None:
            size, resolution = 2 * self.level.latent_size, self.level.resolution
            return state.new_zeros(1, 1, 1, 1).expand(len(state), size, resolution, resolution)
        return self.prior_head(functional.elu(state))

    def posterior(self, state: Tensor, features: Tensor, raw_prior: Tensor) -> Tensor:
        if self.encoder_combiner is not None:
            features = features + self.encoder_combiner(state)
        raw = self.posterior_head(features)
        return raw + raw_prior if self.residual_posterior else raw  # residual parameters: NVAE, section 3.2

    def posterior_flow(self, z: Tensor) -> Tensor:
        return self.flow(z)

    def prior_flow(self, z: Tensor) -> Tensor:
        return self.flow(z) if self.same_flow else z

    def join(self, state: Tensor, z: Tensor) -> Tensor:
        return self.decoder_combiner(torch.cat([state, z], dim=1))


class Output(nn.Module):
    """Post-processing back to full resolution, and the likelihood's parameters."""

    def __init__(self, config: NVAEConfig, parameters: int) -> None:
        super().__init__()
        blocks, multiplier = config.num_blocks_prepost, config.channel_multiplier
        normalization, _, details, kinds = ingredients(config)
        cell = kinds.postprocess
        channels = config.channel_towers.decoder * multiplier**blocks
        cells: list[nn.Module] = []
        for _ in range(blocks):
            narrow, more = channels // multiplier, config.num_cells_per_block_prepost.decoder - 1
            if config.postprocess_upsample == "first":
                cells.append(cell(channels, narrow, details, "upsample"))
                cells += [cell(narrow, narrow, details) for _ in range(more)]
            else:
                cells += [cell(channels, channels, details) for _ in range(more)]
                cells.append(cell(channels, narrow, details, "upsample"))
            channels = narrow
        self.postprocess = CellStack(*cells)
        self.head = normalized(nn.Conv2d(channels, parameters, 3, padding=1), normalization)

    def forward(self, state: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        """(B, parameters, H, W). channels: only these are computed, the others are NaN."""
        features = functional.elu(self.postprocess(state))
        if channels is None or len(channels) == self.head.out_channels:
            return self.head(features)
        some = functional.conv2d(features, self.head.weight[channels], self.head.bias[channels], padding=1)
        output = some.new_full((len(some), self.head.out_channels, *some.shape[2:]), torch.nan)
        output[:, channels] = some
        return output
