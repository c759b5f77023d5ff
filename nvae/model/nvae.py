"""The NVAE towers, built from level specs (Vahdat and Kautz 2020), in the variant of the seed project."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.config import Config, groups_per_scale
from nvae.model.cells import CellStack, InvertedResidualCell, ResidualCell
from nvae.model.convolutions import weight_normalised
from nvae.model.flows import Flow
from nvae.model.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.model.likelihoods import build_likelihood

TOWER_EXPANSION = 6
POSTPROCESS_EXPANSION = 3


def nvae_levels(config: Config) -> list[Level]:
    """The levels of the hierarchy, top to bottom."""
    finest_first = [
        Level(
            groups=groups,
            resolution=config.input_dimension // 2 ** (config.num_blocks_prepost + scale),
            encoder_channels=config.channel_towers.encoder
            * config.channel_multiplier ** (config.num_blocks_prepost + scale),
            decoder_channels=config.channel_towers.decoder
            * config.channel_multiplier ** (config.num_blocks_prepost + scale),
            latent_size=config.latent_size,
        )
        for scale, groups in enumerate(groups_per_scale(config))
    ]
    return finest_first[::-1]


def build_nvae(config: Config) -> HierarchicalVAE:
    """The network that a config describes, with fresh weights from torch's default generator."""
    levels = nvae_levels(config)
    likelihood = build_likelihood(config)
    groups: list[LatentGroup] = []
    above: Level | None = None
    for level in levels:
        for _ in range(level.groups):
            groups.append(NVAEGroup(config, level, above))
            above = level
    top = levels[0]
    constant = torch.randn(1, top.decoder_channels, top.resolution, top.resolution)
    return HierarchicalVAE(
        config, levels, Encoder(config, levels), constant, groups, Output(config, likelihood.parameters), likelihood
    )


class Encoder(nn.Module):
    """Bottom-up: stem, pre-processing, then a stack of cells per latent group, whose features are tapped."""

    def __init__(self, config: Config, levels: Sequence[Level]) -> None:
        super().__init__()
        channels = config.channel_towers.encoder
        self.stem = weight_normalised(nn.Conv2d(config.image_channels, channels, 3, padding=1))
        preprocess: list[nn.Module] = []
        for _ in range(config.num_blocks_prepost):
            for _ in range(config.num_cells_per_block_prepost - 1):
                preprocess.append(ResidualCell(channels, channels))
            preprocess.append(ResidualCell(channels, channels * config.channel_multiplier, "halve"))
            channels *= config.channel_multiplier
        self.preprocess = CellStack(*preprocess)
        self.tower = nn.ModuleList()  # one stack per latent group, bottom to top
        for level in reversed(levels):
            for group in range(level.groups):
                cells: list[nn.Module] = []
                if group == 0 and level is not levels[-1]:
                    cells.append(ResidualCell(channels, level.encoder_channels, "halve"))
                    channels = level.encoder_channels
                cells += [ResidualCell(channels, channels) for _ in range(config.cells_per_split_enc)]
                self.tower.append(CellStack(*cells))
        self.top = nn.Sequential(nn.ELU(), weight_normalised(nn.Conv2d(channels, channels, 1)), nn.ELU())

    def forward(self, images: Tensor) -> list[Tensor]:
        h = self.preprocess(self.stem(images))
        features = []
        for stack in self.tower:
            h = stack(h)  # (B, C of the level, H, W)
            features.append(h)
        features[-1] = self.top(h)
        return features[::-1]


class NVAEGroup(LatentGroup):
    """One latent group of the top-down network (NVAE, figure 2 and section 3.2)."""

    def __init__(self, config: Config, level: Level, above: Level | None) -> None:
        super().__init__()
        self.level = level
        self.same_flow = config.num_flows == 0 or config.fixed_flows
        channels, latents = level.decoder_channels, level.latent_size
        cells: list[nn.Module] = []
        if above is not None and above is not level:
            cells.append(InvertedResidualCell(above.decoder_channels, channels, TOWER_EXPANSION, "double"))
        if above is not None:
            cells += [
                InvertedResidualCell(channels, channels, TOWER_EXPANSION) for _ in range(config.cells_per_input_dec)
            ]
        self.cells = CellStack(*cells)
        if above is None:
            self.prior_head = None
            self.encoder_combiner = None
        else:
            self.prior_head = weight_normalised(nn.Conv2d(channels, 2 * latents, 1))
            self.encoder_combiner = weight_normalised(nn.Conv2d(channels, level.encoder_channels, 1))
        self.posterior_head = weight_normalised(nn.Conv2d(level.encoder_channels, 2 * latents, 3, padding=1))
        self.flow = Flow(latents, config.num_flows)
        self.decoder_combiner = weight_normalised(nn.Conv2d(channels + latents, channels, 1))

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
        return self.posterior_head(features) + raw_prior  # residual parameters: NVAE, section 3.2

    def posterior_flow(self, z: Tensor) -> Tensor:
        return self.flow(z)

    def prior_flow(self, z: Tensor) -> Tensor:
        return self.flow(z) if self.same_flow else z

    def join(self, state: Tensor, z: Tensor) -> Tensor:
        return self.decoder_combiner(torch.cat([state, z], dim=1))


class Output(nn.Module):
    """Post-processing back to full resolution, and the likelihood's parameters."""

    def __init__(self, config: Config, parameters: int) -> None:
        super().__init__()
        blocks, multiplier = config.num_blocks_prepost, config.channel_multiplier
        channels = config.channel_towers.decoder * multiplier**blocks
        cells: list[nn.Module] = []
        for _ in range(blocks):
            for _ in range(config.num_cells_per_block_prepost - 1):
                cells.append(InvertedResidualCell(channels, channels, POSTPROCESS_EXPANSION))
            cells.append(InvertedResidualCell(channels, channels // multiplier, POSTPROCESS_EXPANSION, "double"))
            channels //= multiplier
        self.postprocess = CellStack(*cells)
        self.head = weight_normalised(nn.Conv2d(channels, parameters, 3, padding=1))

    def forward(self, state: Tensor) -> Tensor:
        return self.head(functional.elu(self.postprocess(state)))  # (B, parameters, H, W)
