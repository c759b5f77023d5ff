"""The NVAE towers: what a config builds."""

from __future__ import annotations

import pytest
import torch

from nvae.config import load_config
from nvae.model.cells import InvertedResidualCell, ResidualCell
from nvae.model.hierarchy import FromPrior
from nvae.model.nvae import build_nvae, nvae_levels

SEEDS = {
    "big_logistic_mixture20latentnoflows": (18_584_772, 9),
    "gaussian_mixture": (6_335_934, 3),
    "gaussian_mixture5latent": (25_381_266, 4),
    "large_logistic_mixture20latentnoflows": (32_262_692, 20),
    "logistic_mixture10latent": (25_394_316, 4),
    "penguin": (36_689_892, 18),
    "tiny": (32_584_410, 3),
}


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_configs_build_the_seeds_networks(name):
    with torch.device("meta"):
        model = build_nvae(load_config(name))
    assert (sum(p.numel() for p in model.parameters()), len(model.groups)) == SEEDS[name]


def test_levels_go_from_the_coarsest_to_the_finest(make_config):
    levels = nvae_levels(
        make_config(
            channel_towers={"encoder": 4, "decoder": 6},
            number_of_scales=3,
            initial_splits_per_scale=5,
            exponential_scaling=2,
            input_dimension=32,
            latent_size=7,
        )
    )
    assert [level.groups for level in levels] == [1, 2, 5]
    assert [level.resolution for level in levels] == [4, 8, 16]
    assert [level.encoder_channels for level in levels] == [32, 16, 8]
    assert [level.decoder_channels for level in levels] == [48, 24, 12]
    assert [level.latent_shape for level in levels] == [(7, 4, 4), (7, 8, 8), (7, 16, 16)]


@pytest.mark.parametrize(
    "changes",
    [
        {"channel_multiplier": 1},
        {"channel_multiplier": 3},
        {"num_blocks_prepost": 0},
        {"num_blocks_prepost": 2, "number_of_scales": 1},
        {"channel_towers": {"encoder": 4, "decoder": 6}},
        {"image_channels": 1, "sampling_method": "logistic_mixture"},
        {"number_of_scales": 3, "initial_splits_per_scale": 3, "exponential_scaling": 2},
        {"number_of_scales": 1, "initial_splits_per_scale": 1},
        {"cells_per_split_enc": 2, "cells_per_input_dec": 3, "num_cells_per_block_prepost": 3},
    ],
    ids=str,
)
@torch.no_grad()
def test_a_model_of_any_shape_encodes_and_decodes(make_model, make_config, changes):
    model, config = make_model(**changes), make_config(**changes)
    images = torch.rand(2, config.image_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    features = model.bottom_up(images)
    expected = [
        (level.encoder_channels, level.resolution, level.resolution)
        for level in model.levels
        for _ in range(level.groups)
    ]
    assert [tuple(feature.shape[1:]) for feature in features] == expected
    result = model(images)
    assert result.pixels.mean().shape == images.shape
    assert result.pixels.log_prob(images).isfinite().all()
    assert (result.kl > 0).all()


def test_cells_resample_exactly_where_the_scale_changes(make_model):
    model = make_model(number_of_scales=3, input_dimension=16)  # groups 2, 2, 2
    doubling = [[cell.doubles for cell in group.cells] for group in model.groups]
    assert doubling == [[], [False], [True, False], [False], [True, False], [False]]
    halving = [[cell.conv1.stride == (2, 2) for cell in cells] for cells in model.encoder.tower]
    assert halving == [[False], [False], [True, False], [False], [True, False], [False]]  # bottom to top


def test_the_numbers_of_cells_are_those_of_the_config(make_model):
    model = make_model(
        cells_per_split_enc=3, cells_per_input_dec=2, num_cells_per_block_prepost=4, num_blocks_prepost=2
    )
    assert len(model.encoder.preprocess) == len(model.output.postprocess) == 8
    assert [len(cells) for cells in model.encoder.tower] == [3, 3, 4, 3]
    assert [len(group.cells) for group in model.groups] == [0, 2, 3, 2]
    residual = sum(isinstance(m, ResidualCell) for m in model.modules())
    inverted = sum(isinstance(m, InvertedResidualCell) for m in model.modules())
    assert (residual, inverted) == (8 + 13, 8 + 7)


def test_inverted_cells_are_six_times_as_wide_in_the_towers_and_three_times_in_post_processing(make_model):
    model = make_model()
    for group in model.groups:
        for cell in group.cells:
            assert cell.expand.out_channels == 6 * cell.expand.in_channels
    for cell in model.output.postprocess:
        assert cell.expand.out_channels == 3 * cell.expand.in_channels


def test_every_parameter_takes_part_in_training(make_model):
    model = make_model(num_flows=1, number_of_scales=3, input_dimension=16).train()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = model(images, torch.Generator().manual_seed(2))
    (result.kl.sum() - result.pixels.log_prob(images).sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    still = [name for name, p in model.named_parameters() if p.ndim == 4 and not p.grad.any()]
    assert still == []


def test_sampling_does_not_touch_the_encoder(make_model):
    model = make_model()
    model.top_down(FromPrior(), 2).pixels.mean().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.constant.grad.abs().max() > 0


def test_the_learned_constant_starts_as_a_standard_normal(make_config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        constant = torch.cat([build_nvae(make_config(channel_towers=4, latent_size=1)).constant for _ in range(50)])
    count = constant.numel()
    assert constant.mean().abs() < 5 / count**0.5
    assert (constant.var() - 1).abs() < 5 * (2 / count) ** 0.5
