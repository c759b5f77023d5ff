"""The original NVAE's own weights give what its program computed, and its settings become our config."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nvae.config import config_to_yaml, flat, parse_config
from nvae.errors import UserError
from nvae.interop.nvlabs import config_of_settings, key_map
from nvae.models.families import build_model
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import groups_per_scale
from nvae.objective import (
    SpectralRegularization,
    balance_alphas,
    balanced_kl,
    balancing_weights,
    batch_norm_regularization,
    regularized_convolutions,
)

WITH_PARAMETER_COUNTS = ["nvlabs_bernoulli", "nvlabs_logistic_mixture_flows"]
RECORDINGS = [
    *WITH_PARAMETER_COUNTS,
    *(f"nvlabs_{name}" for name in ("res53_mbconv", "res35_mbconv", "res55_mbconv", "res_bnelu", "not_ada_min3")),
]
EVERY_RECORDING = pytest.mark.parametrize("name", RECORDINGS)
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 1e-5)], ids=str)


@pytest.mark.parametrize("name", WITH_PARAMETER_COUNTS)
def test_weights_fill_the_model(imported, recording, name):
    model = imported(name)
    assert sum(p.numel() for p in model.parameters()) == recording(name)["parameters"]
    assert list(groups_per_scale(model.config)) == recording(name)["groups_per_scale"]


@EVERY_RECORDING
@PRECISIONS
@torch.no_grad()
def test_passes_match_recordings(passes, recording, assert_close, name, dtype, tolerance):
    walk, recorded = passes(name, dtype), recording(name)
    actual = walk.posterior()
    for key, expected in recorded["eval"].items():
        assert actual[key].dtype == dtype, key
        assert_close(actual[key], expected, tolerance)
    assert recorded["prior"]["temperature"] < 1
    sample = walk.prior(recorded["prior"])
    for key in recorded["prior"].keys() & sample.keys():
        assert_close(sample[key], recorded["prior"][key], tolerance)


@EVERY_RECORDING
@PRECISIONS
@torch.no_grad()
def test_training_pass_matches_recordings(passes, recording, assert_close, name, dtype, tolerance):
    walk, expected = passes(name, dtype), recording(name)["train"]
    levels, coefficient = walk.model.train().levels, expected["kl_coefficient"]
    actual = walk.posterior()
    for key in expected.keys() & actual.keys():
        assert_close(actual[key], expected[key], tolerance)
    assert (expected["kl"] - recording(name)["eval"]["kl"]).abs().max() > 0.01, "batch norms used running statistics"
    assert 0 < coefficient < 1
    kl, reconstruction = balanced_kl(actual["kl"], levels, coefficient), expected["reconstruction"].mean()
    assert_close((kl + actual["reconstruction"]).mean(), expected["loss"], 1e-6)
    assert_close(kl.mean(), expected["loss"] - reconstruction, 1e-3)  # a small part of the loss: by itself too
    if "balance_alpha" in expected:
        assert_close(torch.tensor(balance_alphas(levels)), expected["balance_alpha"])
        assert_close(balancing_weights(actual["kl"], levels), expected["kl_group_coefficients"])


@EVERY_RECORDING
@torch.no_grad()
def test_running_statistics_match_recordings(passes, recording, assert_close, name):
    walk, expected = passes(name), recording(name)["train"]["running_stats"]
    before = {ours: tensor.clone() for ours, tensor in walk.model.state_dict().items()}
    walk.model.train()
    walk.posterior()
    after, theirs = walk.model.state_dict(), key_map(walk.model)
    ours = [our_name for our_name in after if theirs[our_name] in expected]
    assert len(ours) == len(expected)
    assert {our_name for our_name in after if our_name.endswith(("running_mean", "running_var"))} <= set(ours)
    for our_name in ours:
        assert_close(after[our_name], expected[theirs[our_name]])
        assert not torch.equal(after[our_name], before[our_name])


@EVERY_RECORDING
@torch.no_grad()
def test_regularization_matches_recordings(imported, recording, name):
    model, expected = imported(name), recording(name)["regularization"]
    schedule = model.config.training_parameters
    spectral = SpectralRegularization(
        regularized_convolutions(model, schedule.spectral_scope), schedule.spectral_exponent
    )
    spectral.singular_values(300)
    assert spectral().item() == pytest.approx(expected["spectral"], rel=1e-4)
    assert batch_norm_regularization(model).item() == pytest.approx(expected["batch_norm"], rel=1e-4)


def gradient_norms(walk, recorded) -> dict[str, float]:
    """The norm of the gradient of the balanced loss for every parameter, by the original's names."""
    walk.model.train().requires_grad_(True)
    results = walk.posterior()
    kl = balanced_kl(results["kl"], walk.model.levels, recorded["train"]["kl_coefficient"])
    (kl + results["reconstruction"]).mean().backward()
    theirs = key_map(walk.model)
    return {theirs[name]: p.grad.norm().item() for name, p in walk.model.named_parameters()}


def zero_in_exact_arithmetic(model) -> set[str]:
    """Names of biases whose only effect is taken back by a batch norm."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, ResidualCell):
            names.add(f"{name}.conv1.bias")
        if isinstance(module, InvertedResidualCell):
            names.add(f"{name}.norm1.bias")
    return names


@EVERY_RECORDING
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 1e-8), (torch.float32, 1e-6)], ids=str)
def test_gradient_norms_match_recordings(passes, recording, name, dtype, floor):
    """Every norm to 1e-3, or to `floor` of the largest.

    Some gradients are zero, or nearly so, because a batch norm takes back what their parameter does: biases before it,
    and lengths of the weights before it, whose gradient is what its epsilon leaves. Their recorded norms are float32's
    rounding of canceling terms. 1e-8 of the largest norm is a sixth of what float32 can resolve next to that norm.
    """
    walk, expected = passes(name, dtype), recording(name)["train"]["grad_norms"]
    actual = gradient_norms(walk, recording(name))
    assert actual.keys() == expected.keys()
    nothing = floor * max(expected.values())
    assert {key: norm for key, norm in expected.items() if abs(actual[key] - norm) > 1e-3 * norm + nothing} == {}
    if dtype is torch.float64:
        theirs = key_map(walk.model)
        silent = {theirs[ours] for ours in zero_in_exact_arithmetic(walk.model)}
        assert {key for key, norm in actual.items() if norm < 1e-12} == silent
        # Few of the other norms are so small that the criterion above says nothing about them.
        assert sum(norm < 100 * nothing for key, norm in expected.items() if key not in silent) < 0.05 * len(expected)


# ------------------------------------------------------------------------------------------------------ settings

SETTINGS = {
    "dataset": "celeba_64",
    "num_latent_scales": 3,
    "num_groups_per_scale": 20,
    "num_latent_per_group": 20,
    "ada_groups": True,
    "min_groups_per_scale": 1,
    "num_channels_enc": 64,
    "num_channels_dec": 48,
    "num_preprocess_blocks": 1,
    "num_preprocess_cells": 2,
    "num_cell_per_cond_enc": 2,
    "num_postprocess_blocks": 1,
    "num_postprocess_cells": 3,
    "num_cell_per_cond_dec": 4,
    "num_mixture_dec": 10,
    "use_se": True,
    "res_dist": True,
    "num_x_bits": 8,
    "num_nf": 1,
    "arch_instance": "res_mbconv",
}


def config_with(**changes):
    return config_of_settings(SETTINGS | changes, "a.pt")[0]


def test_settings_become_an_equal_config():
    written = """
style: nvlabs
channel_towers: {encoder: 64, decoder: 48}
number_of_scales: 3
initial_splits_per_scale: 20
exponential_scaling: 2
latent_size: 20
input_dimension: 64
num_flows: 1
num_blocks_prepost: 1
num_cells_per_block_prepost: {encoder: 2, decoder: 3}
cells_per_split_enc: 2
cells_per_input_dec: 4
dataset: {name: folder, path: dataset/celeba_64, horizontal_flip: True}
"""
    assert config_with() == parse_config(written)
    assert parse_config(config_to_yaml(config_with())) == config_with()


MNIST = {"dataset": "mnist", "num_latent_scales": 2}
SCHEDULE = {
    "epochs": 45,
    "batch_size": 24,
    "num_process_per_node": 8,
    "num_proc_node": 3,
    "learning_rate": 8e-3,
    "learning_rate_min": 2e-4,
    "weight_decay": 1e-4,
    "weight_decay_norm": 0.1,
    "weight_decay_norm_init": 10.0,
    "weight_decay_norm_anneal": True,
    "warmup_epochs": 1,
    "kl_anneal_portion": 0.4,
    "kl_const_portion": 1e-3,
}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"use_se": False}, {"squeeze_excitation": "none"}),
        ({"res_dist": False}, {"residual_posterior": False}),
        ({"num_x_bits": 5}, {"pixel_bits": 5}),
        ({"num_nf": 0}, {"num_flows": 0}),
        ({"num_mixture_dec": 3}, {"n_mix": 3}),
        ({"num_mixture_dec": 1}, {"sampling_method": "gaussian"}),
        ({"arch_instance": "res_bnelu"}, {"arch_instance": "res_bnelu"}),
        ({"num_latent_scales": 1, "num_groups_per_scale": 1}, {"plain_vae": True}),
        ({"ada_groups": False}, {"groups": (20, 20, 20)}),
        ({"min_groups_per_scale": 8}, {"groups": (20, 10, 8)}),
        # The original ignores the minimum without ada_groups.
        ({"ada_groups": False, "min_groups_per_scale": 30}, {"groups": (20, 20, 20), "min_splits": 1}),
        ({"dataset": "celeba_256"}, {"input_dimension": 256}),
        ({"dataset": "lsun_bedroom_128"}, {"input_dimension": 128}),
        ({"dataset": "ffhq"}, {"input_dimension": 256}),
        ({"dataset": "imagenet_32"}, {"input_dimension": 32, "dataset.horizontal_flip": False}),
        ({"dataset": "cifar10"}, {"input_dimension": 32, "dataset.name": "cifar10", "dataset.path": "dataset/cifar10"}),
        (MNIST, {"input_dimension": 28, "padding": 2, "image_channels": 1, "sampling_method": "bernoulli"}),
        (MNIST, {"dataset.name": "mnist", "dataset.binarize": True, "dataset.horizontal_flip": False}),
        (MNIST | {"dataset": "omniglot"}, {"padding": 2, "dataset.path": "dataset/omniglot", "dataset.binarize": True}),
        (
            SCHEDULE,
            {
                "training_parameters.epochs": 45,
                "training_parameters.batch_size": 576,  # of all GPUs together
                "training_parameters.learning_rate": 8e-3,
                "training_parameters.learning_rate_min": 2e-4,
                "training_parameters.weight_decay": 1e-4,
                "training_parameters.regularization_constant": 0.1,
                "training_parameters.regularization_constant_initial": 10.0,
                "training_parameters.learning_rate_warmup_epochs": 1,
                "training_parameters.warmup_portion": 0.4,
                "training_parameters.warmup_delay_portion": 1e-3,
            },
        ),
    ],
    ids=str,
)
def test_settings_become_keys(settings, expected):
    def values(config):
        all_values = flat(config.model_dump()) | {"groups": groups_per_scale(config)}
        return {key: all_values[key] for key in expected}

    assert values(config_with(**settings)) == expected
    assert values(config_with()) != expected


def test_weight_decay_norm_init_counts_only_with_annealing():
    steady = config_with(**(SCHEDULE | {"weight_decay_norm_anneal": False}))
    assert steady.training_parameters.regularization_constant_initial is None


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"kl_const_coeff": 0.002}, "0.002"),
        ({"kl_const_coeff": 0}, "got 0,"),
        ({"learning_rate": 1e-9}, "learning_rate"),
    ],
    ids=str,
)
def test_settings_that_are_dropped_give_a_warning(settings, shown):
    config, warnings = config_of_settings(SETTINGS | settings, "a.pt")
    assert [shown in warning for warning in warnings] == [True]
    assert config == config_with()


def test_original_kl_const_coeff_gives_no_warning():
    assert config_of_settings(SETTINGS | {"kl_const_coeff": 1e-4}, "a.pt") == (config_with(), [])


NEWER = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_x_bits": 8, "num_nf": 0}


@pytest.mark.parametrize("key", sorted(SETTINGS))
def test_missing_settings_have_a_value_in_older_files_or_are_refused(key):
    settings = {name: value for name, value in SETTINGS.items() if name != key}
    if key in NEWER:
        assert config_of_settings(settings, "a.pt")[0] == config_with(**{key: NEWER[key]})
    else:
        with pytest.raises(UserError, match=rf"a\.pt.*\b{key}\b"):
            config_of_settings(settings, "a.pt")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("num_nf", value) for value in ("two", 1.0, 10**9, 10**5000, torch.zeros(2))),
        ("num_latent_scales", True),
        *(("num_channels_enc", value) for value in (None, 10**9)),
        ("use_se", 1),
        *(("dataset", value) for value in (3, "faces", "celeba_large", "_64", "", "celeba_" + 5000 * "6", "\0\n_")),
        *(("arch_instance", value) for value in (["res_mbconv"], "res_net")),
        ("num_x_bits", 9),
        ("num_postprocess_blocks", 2),
    ],
    ids=lambda value: str(value)[:30] if not isinstance(value, int) else hex(value)[:10],
)
def test_impossible_settings_are_refused(key, value):
    ours = {
        "num_nf": "num_flows",
        "num_channels_enc": "channel_towers",
        "num_x_bits": "pixel_bits",
    }
    with pytest.raises(UserError, match=rf"a\.pt.*({key}|{ours.get(key, key)})") as error:
        config_with(**{key: value})
    assert len(str(error.value).splitlines()) == 1
    assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    "changes", [{}, {"arch_instance": "res_elu", "use_se": False}, {"arch_instance": "mbconv_sep"}], ids=str
)
def test_every_tensor_has_one_name(changes):
    small = {"num_channels_enc": 8, "num_channels_dec": 8, "num_groups_per_scale": 2, "num_latent_scales": 2}
    with torch.device("meta"):
        model = build_model(config_with(**small, **changes))
    names = key_map(model)
    assert names.keys() == model.state_dict().keys()
    assert len(set(names.values())) == len(names)
    assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) != ("use_se" in changes)
