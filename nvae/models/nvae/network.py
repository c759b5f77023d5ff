"""The NVAE of Vahdat and Kautz (2020): the network that an NVAEConfig describes, built from its levels."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.models.distributions import Distribution, FlowDistribution, SoftClampedNormal, TemperatureRule
from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.likelihoods import build_likelihood
from nvae.models.nvae.cells import CellOptions, CellStack, CellTypes, cell_types
from nvae.models.nvae.config import NVAEConfig, groups_finest_first
from nvae.models.nvae.convolutions import Normalization, normalized, weight_norms, weights_computed_once
from nvae.models.nvae.flows import Flow
from nvae.models.nvae.regularization import (
    BatchNormRegularization,
    SpectralRegularization,
    regularized_convolutions,
)


def nvae_levels(config: NVAEConfig) -> list[Level]:
    """Return the levels of the hierarchy, top first."""
    side, towers = config.input_dimension + 2 * config.padding, config.channel_towers
    sizes, count = config.latent_size, config.number_of_scales
    sizes_finest_first = sizes[::-1] if isinstance(sizes, tuple) else (sizes,) * count
    scales = zip(groups_finest_first(config), sizes_finest_first, strict=True)
    levels = []
    for downsamplings, (groups, latent_size) in enumerate(scales, config.num_blocks_prepost):
        widening = config.channel_multiplier**downsamplings
        encoder, decoder = towers.encoder * widening, towers.decoder * widening
        levels.append(Level(groups, side // 2**downsamplings, encoder, decoder, latent_size))
    return levels[::-1]


class NVAE(HierarchicalVAE):
    """The NVAE of Vahdat and Kautz (2020): residual cells, a learned constant at the top, diagonal Normals."""

    config: NVAEConfig

    def __init__(self, config: NVAEConfig) -> None:
        levels = nvae_levels(config)
        super().__init__(config, levels, build_likelihood(config))
        self.padding = config.padding
        of_groups = [level for level in levels for _ in range(level.groups)]
        pairs = zip(of_groups, [None, *of_groups[:-1]], strict=True)
        groups = [NVAEGroup(config, level, above) for level, above in pairs]
        draw = {"normal": torch.randn, "uniform": torch.rand}[config.initial_constant]
        constant = draw(1, state_channels(config, levels[0]), levels[0].resolution, levels[0].resolution)
        self.encoder = Encoder(config, levels)
        self.constant = nn.Parameter(constant)  # (1, C, h, w)
        self.groups = nn.ModuleList(groups)
        self.output = Output(config, self.likelihood.num_parameters)

    def bottom_up(self, images: Tensor) -> list[Tensor]:
        return self.encoder(functional.pad(images, 4 * (self.padding,)) if self.padding else images)

    def initial_state(self, batch_size: int) -> Tensor:
        return self.constant.expand(batch_size, -1, -1, -1)

    def decode(self, state: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        output = self.output(state, channels)
        p = self.padding  # the margin is not part of the likelihood
        return output[:, :, p:-p, p:-p] if p else output

    def regularization_terms(self) -> dict[str, nn.Module]:
        schedule = self.config.training_parameters
        convolutions = regularized_convolutions(self, schedule.spectral_scope)
        return {
            "spectral": SpectralRegularization(convolutions, schedule.spectral_exponent, schedule.spectral_iterations),
            "batch_norm": BatchNormRegularization(self),
        }

    def weights_computed_once(self) -> AbstractContextManager[None]:
        return weights_computed_once(self._weight_norms)

    @cached_property
    def _weight_norms(self) -> list[list[Any]]:
        return weight_norms(self)

    def recompute_activations(self, recompute: bool) -> None:
        for module in self.modules():
            if isinstance(module, CellStack):
                module.recompute = recompute


def state_channels(config: NVAEConfig, top: Level) -> int:
    """Return the number of channels of the learned constant: 0 for a plain VAE, whose state is z alone."""
    return 0 if config.plain_vae else top.decoder_channels


def building_blocks(config: NVAEConfig) -> tuple[Normalization, CellOptions, CellTypes]:
    """Return the normalization outside cells and flows, the options and the types of cells, for all parts of a network.

    Spectral normalization replaces weight normalization outside flows.
    """
    spectral = config.spectral_normalization
    options = CellOptions(
        normalization="spectral" if spectral else weight_normalization_inside(config),
        inverted_normalization="spectral" if spectral else "none",
        squeeze_excitation=config.squeeze_excitation,
        downsample_skip=config.downsample_skip,
        upsample_skip_bias=config.upsample_skip_bias,
    )
    return "spectral" if spectral else config.weight_normalization, options, cell_types(config.arch_instance)


def weight_normalization_inside(config: NVAEConfig) -> Literal["none", "linear", "exponential"]:
    """Return the weight normalization of flows, and of cells without spectral normalization."""
    return config.weight_normalization if config.normalize_cells else "none"


class Encoder(nn.Module):
    """The bottom-up network: stem, pre-processing, then one stack of cells per latent group."""

    def __init__(self, config: NVAEConfig, levels: Sequence[Level]) -> None:
        super().__init__()
        self.centered = config.pixel_range == "centered"
        normalization, options, types = building_blocks(config)
        channels, multiplier = config.channel_towers.encoder, config.channel_multiplier
        self.stem = normalized(nn.Conv2d(config.image_channels, channels, 3, padding=1), normalization)
        preprocess: list[nn.Module] = []
        for _ in range(config.num_blocks_prepost):
            for _ in range(config.num_cells_per_block_prepost.encoder - 1):
                preprocess.append(types.preprocess(channels, channels, options))
            preprocess.append(types.preprocess(channels, channels * multiplier, options, "downsample"))
            channels *= multiplier
        self.preprocess = CellStack(*preprocess)
        self.tower = nn.ModuleList()  # one stack per latent group, bottom to top
        cells_per_group = 0 if config.plain_vae else config.cells_per_split_enc
        for level in reversed(levels):
            for group in range(level.groups):
                cells: list[nn.Module] = []
                if group == 0 and level is not levels[-1]:
                    cells.append(types.encoder(channels, level.encoder_channels, options, "downsample"))
                    channels = level.encoder_channels
                cells += [types.encoder(channels, channels, options) for _ in range(cells_per_group)]
                self.tower.append(CellStack(*cells))
        self.top = nn.Sequential(nn.ELU(), normalized(nn.Conv2d(channels, channels, 1), normalization), nn.ELU())

    def forward(self, images: Tensor) -> list[Tensor]:
        """Map images (B, C, H, W) in [0, 1] to the features of every latent group, top group first."""
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
        self.fixed_flow = config.fixed_flows
        self.rule: TemperatureRule = "sigma" if config.temperature_scales_min_sigma else "sigma_above_minimum"
        self.residual_posterior = config.residual_posterior
        normalization, options, types = building_blocks(config)
        channels, latents = level.decoder_channels, level.latent_size
        if above is None:
            self.cells, self.prior_head, self.encoder_combiner = CellStack(), None, None
        else:
            cells: list[nn.Module] = []
            if above is not level:
                cells.append(types.decoder(above.decoder_channels, channels, options, "upsample"))
            cells += [types.decoder(channels, channels, options) for _ in range(config.cells_per_input_dec)]
            self.cells = CellStack(*cells)
            self.prior_head = normalized(nn.Conv2d(channels, 2 * latents, 1), normalization)
            self.encoder_combiner = normalized(nn.Conv2d(channels, level.encoder_channels, 1), normalization)
        self.posterior_head = normalized(nn.Conv2d(level.encoder_channels, 2 * latents, 3, padding=1), normalization)
        self.flow = Flow(latents, config.num_flows, config.flow_columns, weight_normalization_inside(config))
        combined = (channels if above is not None else state_channels(config, level)) + latents
        self.decoder_combiner = normalized(nn.Conv2d(combined, channels, 1), normalization)

    def prior(self, state: Tensor) -> tuple[Tensor, SoftClampedNormal]:
        state = self.cells(state)
        if self.prior_head is None:
            size, resolution = 2 * self.level.latent_size, self.level.resolution
            raw = state.new_zeros(1, 1, 1, 1).expand(len(state), size, resolution, resolution)
        else:
            raw = self.prior_head(functional.elu(state))  # (B, 2L, H, W)
        return state, SoftClampedNormal.from_raw(raw, self.rule)

    def posterior(self, state: Tensor, features: Tensor, prior: SoftClampedNormal) -> Distribution:
        if self.encoder_combiner is not None:
            features = features + self.encoder_combiner(state)
        raw = self.posterior_head(features)  # (B, 2L, H, W)
        if self.residual_posterior:  # NVAE, section 3.2
            raw = raw + prior.raw
        normal = SoftClampedNormal.from_raw(raw, self.rule)
        return normal if self.fixed_flow or len(self.flow) == 0 else FlowDistribution(normal, self.flow)

    def merge(self, state: Tensor, z: Tensor) -> Tensor:
        z = z.to(state.dtype)
        if self.fixed_flow:  # prior and posterior share the flow, so the flow does not change the KL of the two Normals
            z = self.flow(z)
        return self.decoder_combiner(torch.cat([state, z], dim=1))


class Output(nn.Module):
    """Post-processing: upsampling to full resolution, then the convolution that gives the likelihood's parameters."""

    head: Any  # nn.Conv2d with a bias

    def __init__(self, config: NVAEConfig, num_parameters: int) -> None:
        super().__init__()
        blocks, multiplier = config.num_blocks_prepost, config.channel_multiplier
        normalization, options, types = building_blocks(config)
        channels, count = config.channel_towers.decoder * multiplier**blocks, config.num_cells_per_block_prepost.decoder
        upsampling = 0 if config.postprocess_upsample == "first" else count - 1
        cells: list[nn.Module] = []
        for index in range(blocks * count):
            resample = "upsample" if index % count == upsampling else None
            after = channels // multiplier if resample else channels
            cells.append(types.postprocess(channels, after, options, resample))
            channels = after
        self.postprocess = CellStack(*cells)
        self.head = normalized(nn.Conv2d(channels, num_parameters, 3, padding=1), normalization)

    def forward(self, state: Tensor, channels: Sequence[int] | None = None) -> Tensor:
        """Return (B, num_parameters, H, W). channels: compute only these output channels; the others are NaN."""
        features = functional.elu(self.postprocess(state))
        if channels is None or len(channels) == self.head.out_channels:
            return self.head(features)
        computed = functional.conv2d(features, self.head.weight[channels], self.head.bias[channels], padding=1)
        output = computed.new_full((len(computed), self.head.out_channels, *computed.shape[2:]), torch.nan)
        output[:, channels] = computed
        return output
