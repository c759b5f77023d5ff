"""The network of the NVAE family, as built from a config."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize

from nvae.config import load_config
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import ArchInstance, groups_finest_first
from nvae.models.nvae.convolutions import SpectralNorm, WeightNorm, is_spectrally_normalized
from nvae.models.nvae.network import NVAE, nvae_levels

SEED_CONFIGS = {
    "big_logistic_mixture20latentnoflows": (18_584_772, 9),
    "gaussian_mixture": (6_335_934, 3),
    "gaussian_mixture5latent": (25_381_266, 4),
    "large_logistic_mixture20latentnoflows": (32_262_692, 20),
    "logistic_mixture10latent": (25_394_316, 4),
    "penguin": (36_689_892, 18),
    "tiny": (32_584_410, 3),
}
PUBLISHED = {
    "nvae_mnist": (33_363_134, (10, 5)),
    "nvae_cifar10": (130_852_480, (30,)),
    "nvae_imagenet32": (268_509_444, (28,)),
    "nvae_celeba64": (153_281_364, (20, 10, 5)),
    "nvae_celebahq256": (330_798_664, (16, 8, 4, 4, 4)),
}
NVLABS = {"style": "nvlabs", "n_mix": 2}


@pytest.mark.slow
@pytest.mark.parametrize("name", SEED_CONFIGS)
def test_seed_configs_have_the_seed_projects_parameter_counts(name):
    with torch.device("meta"):
        model = NVAE(load_config(name))
    assert (sum(p.numel() for p in model.parameters()), len(model.groups)) == SEED_CONFIGS[name]


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_have_the_published_parameter_counts(name):
    config = load_config(name)
    with torch.device("meta"):
        model = build_model(config)
    assert (sum(p.numel() for p in model.parameters()), groups_finest_first(config)) == PUBLISHED[name]
    assert len(model.groups) == sum(groups_finest_first(config))


def test_nvae_levels_are_ordered_from_coarsest_to_finest(make_config):
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
        {"num_cells_per_block_prepost": {"encoder": 3, "decoder": 1}},
        {"residual_posterior": False},
        {"weight_normalization": "exponential"},
        {
            "normalize_cells": True,
            "num_flows": 1,
            "fixed_flows": True,
        },  # fixed flows: the KL is in closed form, so it is positive
        {"spectral_normalization": True, "num_flows": 1, "fixed_flows": True},
        {"squeeze_excitation": "none"},
        {"downsample_skip": "shifted", "upsample_skip_bias": False},
        {"postprocess_upsample": "first", "num_cells_per_block_prepost": 2, "num_blocks_prepost": 2},
        {"number_of_scales": 1, "initial_splits_per_scale": 1, "plain_vae": True},
        {"sampling_method": "coupled_logistic_mixture", "pixel_bits": 5},
        {"sampling_method": "bernoulli", "image_channels": 1},
        {"pixel_range": "centered"},
        NVLABS | {"num_flows": 1, "fixed_flows": True},
        NVLABS | {"number_of_scales": 1, "initial_splits_per_scale": 1, "num_flows": 2, "fixed_flows": True},
        NVLABS | {"spectral_normalization": True, "arch_instance": "mbconv_sep"},
    ],
    ids=str,
)
@torch.no_grad()
def test_nvae_of_any_settings_encodes_and_decodes(make_model, make_config, changes):
    model, config = make_model(**changes), make_config(**changes)
    images = torch.rand(2, config.image_channels, 8, 8, generator=torch.Generator().manual_seed(1))
    features = model.bottom_up(images)
    expected = [
        (level.encoder_channels, level.resolution, level.resolution)
        for level in model.levels
        for _ in range(level.groups)
    ]
    assert [tuple(feature.shape[1:]) for feature in features] == expected
    result = model(images, model.draw_noise(len(images), posterior=True))
    assert result.px_z.mean().shape == images.shape
    assert result.px_z.log_prob(images).isfinite().all()
    assert (result.kl > 0).all()


UNEVEN = {"number_of_scales": 3, "input_dimension": 16, "groups_per_scale": [3, 1, 2], "latent_size": [5, 1, 3]}


@pytest.mark.parametrize("changes", [{}, NVLABS, {"num_flows": 1}, {"num_flows": 1, "fixed_flows": True}], ids=str)
@torch.no_grad()
def test_nvae_with_lists_has_their_groups_and_widths_from_the_top(make_model, changes):
    model = make_model(**UNEVEN, **changes)
    shapes = 3 * [(5, 2, 2)] + [(1, 4, 4)] + 2 * [(3, 8, 8)]
    assert [group.level.latent_shape for group in model.groups] == model.noise_shapes == shapes
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = model(images, model.draw_noise(2, posterior=True))
    assert [tuple(result.groups[i].z.shape[1:]) for i in range(6)] == shapes
    sampled = model.top_down(FromNoise(model.draw_noise(2), [0.9, 0.7, 0.7, 0.6, 0.5, 0.5]), 2)
    assert sampled.px_z.mean().shape == images.shape


@torch.no_grad()
def test_nvae_with_lists_equal_to_the_rule_is_the_same_network(make_config):
    rule = {"initial_splits_per_scale": 4, "exponential_scaling": 2}
    lists = {"groups_per_scale": [2, 4], "latent_size": [2, 2]}
    models = []
    for keys in (rule, lists):
        torch.manual_seed(0)
        models.append(NVAE(make_config(**keys)).eval())
    assert models[0].levels == models[1].levels
    ours, theirs = (model.state_dict() for model in models)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = models[0].draw_noise(2, torch.Generator().manual_seed(2), posterior=True)
    first, second = (model(images, noise) for model in models)
    assert torch.equal(first.kl, second.kl)
    assert torch.equal(first.px_z.log_prob(images), second.px_z.log_prob(images))


@pytest.mark.parametrize("style", ["mgp123", "nvlabs"])
@pytest.mark.parametrize("arch_instance", get_args(ArchInstance))
@torch.no_grad()
def test_nvae_of_any_cells_encodes_and_decodes(make_model, arch_instance, style):
    model = make_model(arch_instance=arch_instance, style=style, channel_towers=8)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for training in (True, False):
        result = model.train(training)(images, model.draw_noise(2, posterior=True))
        assert result.px_z.mean().shape == images.shape
        assert result.px_z.log_prob(images).isfinite().all()
        assert (result.kl > 0).all()


def test_nvae_cells_resample_between_scales_only(make_model):
    model = make_model(number_of_scales=3, input_dimension=16)  # groups 2, 2, 2
    upsampling = [[cell.resample == "upsample" for cell in group.cells] for group in model.groups]
    assert upsampling == [[], [False], [True, False], [False], [True, False], [False]]
    downsampling = [[cell.conv1.stride == (2, 2) for cell in cells] for cells in model.encoder.tower]
    assert downsampling == [[False], [False], [True, False], [False], [True, False], [False]]  # bottom to top


def test_nvae_has_the_configured_numbers_of_cells(make_model):
    model = make_model(
        cells_per_split_enc=3, cells_per_input_dec=2, num_cells_per_block_prepost=4, num_blocks_prepost=2
    )
    assert len(model.encoder.preprocess) == len(model.output.postprocess) == 8
    assert [len(cells) for cells in model.encoder.tower] == [3, 3, 4, 3]
    assert [len(group.cells) for group in model.groups] == [0, 2, 3, 2]
    residual = sum(isinstance(m, ResidualCell) for m in model.modules())
    inverted = sum(isinstance(m, InvertedResidualCell) for m in model.modules())
    assert (residual, inverted) == (8 + 13, 8 + 7)


def test_nvae_pre_and_postprocessing_differ_in_cells(make_model):
    model = make_model(num_cells_per_block_prepost={"encoder": 4, "decoder": 2}, num_blocks_prepost=2)
    assert [cell.resample for cell in model.encoder.preprocess] == [None, None, None, "downsample"] * 2
    assert [cell.resample for cell in model.output.postprocess] == [None, "upsample"] * 2


@pytest.mark.parametrize(
    ("position", "expected"),
    [
        ("last", [(16, 16, None), (16, 16, None), (16, 8, "upsample"), (8, 8, None), (8, 8, None), (8, 4, "upsample")]),
        ("first", [(16, 8, "upsample"), (8, 8, None), (8, 8, None), (8, 4, "upsample"), (4, 4, None), (4, 4, None)]),
    ],
)
def test_postprocessing_upsamples_in_the_first_or_last_cell_of_a_block(make_model, position, expected):
    model = make_model(
        num_cells_per_block_prepost=3, num_blocks_prepost=2, number_of_scales=1, postprocess_upsample=position
    )
    cells = [(c.expand.in_channels, c.project.out_channels, c.resample) for c in model.output.postprocess]
    assert cells == expected


def test_inverted_cells_expand_by_six_in_groups_and_three_in_postprocessing(make_model):
    model = make_model()
    for group in model.groups:
        for cell in group.cells:
            assert cell.expand.out_channels == 6 * cell.expand.in_channels
    for cell in model.output.postprocess:
        assert cell.expand.out_channels == 3 * cell.expand.in_channels


@pytest.mark.parametrize(
    "changes",
    [{}, NVLABS, NVLABS | {"arch_instance": "res_elu"}, {"spectral_normalization": True}],
    ids=["mgp123", "nvlabs", "nvlabs res_elu", "spectral"],
)
def test_nvae_every_parameter_has_a_gradient(make_model, changes):
    model = make_model(num_flows=1, number_of_scales=3, input_dimension=16, **changes).train()
    images = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    result = model(images, model.draw_noise(len(images), torch.Generator().manual_seed(2), posterior=True))
    (result.kl.sum() - result.px_z.log_prob(images).sum()).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []
    zero = [name for name, p in model.named_parameters() if p.ndim == 4 and not p.grad.any()]
    assert zero == []


def test_nvae_samples_without_the_encoder(make_model):
    model = make_model()
    model.top_down(FromNoise(model.draw_noise(2)), 2).px_z.mean().sum().backward()
    assert all(parameter.grad is None for parameter in model.encoder.parameters())
    assert model.constant.grad.abs().max() > 0


@pytest.mark.slow
def test_constant_starts_standard_normal(make_config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        constant = torch.cat([NVAE(make_config(channel_towers=4, latent_size=1)).constant for _ in range(50)])
    count = constant.numel()
    assert constant.mean().abs() < 5 / count**0.5
    assert (constant.var() - 1).abs() < 5 * (2 / count) ** 0.5


@pytest.mark.parametrize("changes", [{"initial_constant": "uniform"}, {"style": "nvlabs"}], ids=str)
def test_constant_starts_uniform_if_configured(make_config, changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        constant = NVAE(make_config(input_dimension=64, **changes)).constant
    count = constant.numel()
    assert count == 16 * 16 * 16
    assert 0 <= constant.min() < 0.01
    assert 0.99 < constant.max() < 1
    assert abs(constant.mean() - 0.5) < 5 / (12 * count) ** 0.5


# ----------------------------------------------------------------------------------------- the two styles


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [m for m in module.modules() if isinstance(m, nn.Conv2d)]


def test_nvlabs_style_normalizes_exponentially_outside_inverted_cells(make_model):
    model = make_model(num_flows=1, **NVLABS)
    inside = {id(c) for m in model.modules() if isinstance(m, InvertedResidualCell) for c in convolutions(m)}
    inside -= {id(c) for m in model.modules() if isinstance(m, InvertedResidualCell) for c in convolutions(m.skip)}
    assert len(inside) == 3 * sum(isinstance(m, InvertedResidualCell) for m in model.modules()) > 0
    for convolution in convolutions(model):
        if id(convolution) in inside:
            assert not parametrize.is_parametrized(convolution)
            assert convolution.bias is None
        else:
            assert convolution.parametrizations.weight[0].exponential


def test_mgp123_style_normalizes_linearly_outside_cells(make_model):
    model = make_model()
    cells = [m for m in model.modules() if isinstance(m, ResidualCell | InvertedResidualCell)]
    inside = {id(c) for cell in cells for c in convolutions(cell)}
    for convolution in convolutions(model):
        assert parametrize.is_parametrized(convolution) == (id(convolution) not in inside)
        if id(convolution) not in inside:
            norm = convolution.parametrizations.weight[0]
            assert isinstance(norm, WeightNorm) and not norm.exponential


@pytest.mark.parametrize("style", ["mgp123", "nvlabs"])
def test_spectral_normalization_covers_all_convolutions_outside_flows(make_model, style):
    model = make_model(spectral_normalization=True, num_flows=1, style=style)
    in_flows = {id(c) for group in model.groups for c in convolutions(group.flow)}
    assert in_flows
    for convolution in convolutions(model):
        assert is_spectrally_normalized(convolution) == (id(convolution) not in in_flows)
    assert not any(isinstance(m, SpectralNorm) for m in make_model(style=style).modules())


@torch.no_grad()
def test_centered_pixel_range_maps_images_to_minus_one_to_one(make_model):
    unit, centered = make_model(), make_model(pixel_range="centered")
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(centered.bottom_up(images), unit.bottom_up(2 * images - 1), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(centered.bottom_up(images)[0], unit.bottom_up(images)[0])


@torch.no_grad()
def test_posterior_without_residual_parameters_ignores_the_prior(make_model):
    """A posterior head with zero output gives Normal(0, 1.01) for every prior."""
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for residual in (True, False):
        model = make_model(residual_posterior=residual)
        for group in model.groups:
            group.posterior_head.parametrizations.weight.original0.zero_()
            group.posterior_head.bias.zero_()
        for index, group in model(images, model.draw_noise(2, posterior=True)).groups.items():
            if residual:
                assert torch.equal(group.posterior.mu, group.prior.mu)
                continue
            assert torch.equal(group.posterior.mu, torch.zeros_like(group.posterior.mu))
            torch.testing.assert_close(group.posterior.sigma, torch.full_like(group.posterior.sigma, 1.01))
            assert (group.prior.mu.abs().max() > 0.01) == (index > 0)


@torch.no_grad()
def test_nvlabs_style_temperature_scales_the_minimum_sigma(make_model):
    model = make_model(**NVLABS)
    for temperature in (1.0, 0.6):
        noise = model.draw_noise(2)
        groups = model.top_down(FromNoise(noise, temperature), 2).groups
        torch.testing.assert_close(groups[0].z, 1.01 * temperature * noise[0])
    noise = [torch.ones(2, *shape) for shape in model.noise_shapes]
    for group in model.top_down(FromNoise(noise, 0.0), 2).groups.values():
        assert torch.equal(group.z, group.prior.mu), "z depends on the noise at temperature 0"


# ---------------------------------------------------------------------------------------------------- plain VAE


@pytest.mark.parametrize("style", ["mgp123", "nvlabs"])
def test_plain_vae_has_no_towers_and_no_constant(make_model, style):
    model = make_model(
        style=style,
        number_of_scales=1,
        initial_splits_per_scale=1,
        plain_vae=True,
        cells_per_split_enc=3,
        channel_towers={"encoder": 4, "decoder": 8},
    )
    assert [len(cells) for cells in model.encoder.tower] == [0]
    (group,) = model.groups
    assert len(group.cells) == 0
    assert model.constant.numel() == 0
    assert (group.decoder_combiner.in_channels, group.decoder_combiner.out_channels) == (2, 16)
    z = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(1))
    state = group.merge(model.constant.expand(3, -1, -1, -1), z)
    torch.testing.assert_close(state, group.decoder_combiner(z))
    with torch.no_grad():
        result = model.top_down(FromNoise([z]), 3)
    assert result.px_z.mean().shape == (3, 3, 8, 8)
    torch.testing.assert_close(result.groups[0].z, 1.01 * z)


def test_single_group_without_plain_vae_has_towers_and_a_constant(make_model):
    model = make_model(number_of_scales=1, initial_splits_per_scale=1)
    assert [len(cells) for cells in model.encoder.tower] == [1]
    assert model.constant.numel() > 0


# ------------------------------------------------------------------------------------------------------- padding

PADDED = {"input_dimension": 4, "padding": 2}
PADDING = pytest.mark.parametrize("changes", [{}, NVLABS], ids=["mgp123", "nvlabs"])


def twins(make_model, changes):
    """Return a padded model, and a model with the same weights for images that include the margin."""
    padded, whole = make_model(**PADDED, **changes), make_model(**changes)
    whole.load_state_dict(padded.state_dict())
    return padded, whole


@PADDING
@torch.no_grad()
def test_padded_model_equals_a_larger_model_on_padded_images(make_model, changes):
    padded, whole = twins(make_model, changes)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with_margin = functional.pad(images, (2, 2, 2, 2))
    assert with_margin.shape == (2, 3, 8, 8)
    for ours, theirs in zip(padded.bottom_up(images), whole.bottom_up(with_margin), strict=True):
        assert torch.equal(ours, theirs)
    noise = padded.draw_noise(2, torch.Generator().manual_seed(2), posterior=True)
    ours, theirs = padded(images, noise), whole(with_margin, noise)
    assert torch.equal(ours.kl, theirs.kl)
    inside = (..., slice(2, -2), slice(2, -2))
    assert ours.px_z.mean().shape == ours.px_z.most_likely().shape == ours.px_z.sample().shape == images.shape
    torch.testing.assert_close(ours.px_z.mean(), theirs.px_z.mean()[inside])
    torch.testing.assert_close(ours.px_z.log_prob(images), theirs.px_z.log_prob(with_margin)[inside])
    assert padded.noise_shapes == whole.noise_shapes == [(2, 2, 2), (2, 2, 2), (2, 4, 4), (2, 4, 4)]


@PADDING
def test_padded_model_ignores_the_output_in_the_margin(make_model, changes):
    model = make_model(**PADDED, **changes)
    images = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    outputs, results = [], []

    def disturbed(module, inputs, output):
        margin = torch.ones_like(output)
        margin[..., 2:-2, 2:-2] = 0
        outputs.append(output)
        return output + 7 * len(results) * margin  # unchanged in the first pass

    model.output.register_forward_hook(disturbed)
    for _ in range(2):
        result = model(images, model.draw_noise(len(images), torch.Generator().manual_seed(2), posterior=True))
        results.append((result.px_z.log_prob(images), result.px_z.mean(), result.kl))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first, second)
    (gradient,) = torch.autograd.grad(results[0][0].sum(), outputs[0])
    assert gradient.shape[2:] == (8, 8)
    assert (gradient[..., 2:-2, 2:-2] != 0).any()
    gradient[..., 2:-2, 2:-2] = 0
    assert not gradient.any()
