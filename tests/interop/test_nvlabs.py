"""The original NVAE's own weights give what its program computed, and its settings become our config."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_to_yaml, flat, parse_config
from nvae.interop.nvlabs import config_of_settings, key_map
from nvae.models.families import build_model
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import groups_finest_first
from nvae.models.nvae.regularization import (
    BatchNormRegularization,
    SpectralRegularization,
    regularized_convolutions,
)
from nvae.objective import balance_alphas, balanced_kl, balancing_weights
from nvae.system.errors import UserError

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
    assert list(groups_finest_first(model.config)) == recording(name)["groups_per_scale"]


@EVERY_RECORDING
@PRECISIONS
@torch.no_grad()
def test_passes_match_recordings(passes, recording, assert_close, name, dtype, tolerance):
    model_passes, recorded = passes(name, dtype), recording(name)
    actual = model_passes.posterior()
    for key, expected in recorded["eval"].items():
        assert actual[key].dtype == dtype, key
        assert_close(actual[key], expected, tolerance)
    assert recorded["prior"]["temperature"] < 1
    sample = model_passes.prior(recorded["prior"])
    for key in recorded["prior"].keys() & sample.keys():
        assert_close(sample[key], recorded["prior"][key], tolerance)


@pytest.mark.slow
@EVERY_RECORDING
@PRECISIONS
@torch.no_grad()
def test_training_pass_matches_recordings(passes, recording, assert_close, name, dtype, tolerance):
    model_passes, expected = passes(name, dtype), recording(name)["train"]
    levels, coefficient = model_passes.model.train().levels, expected["kl_coefficient"]
    actual = model_passes.posterior()
    for key in expected.keys() & actual.keys():
        assert_close(actual[key], expected[key], tolerance)
    assert (expected["kl"] - recording(name)["eval"]["kl"]).abs().max() > 0.01, "batch norms used running statistics"
    assert 0 < coefficient < 1
    kl, reconstruction = balanced_kl(actual["kl"], levels, coefficient), expected["reconstruction"].mean()
    assert_close((kl + actual["reconstruction"]).mean(), expected["loss"], 1e-6)
    assert_close(kl.mean(), expected["loss"] - reconstruction, 1e-3)  # separately: the KL is a small part of the loss
    if "balance_alpha" in expected:
        assert_close(torch.tensor(balance_alphas(levels)), expected["balance_alpha"])
        assert_close(balancing_weights(actual["kl"].abs().mean(0), levels), expected["kl_group_coefficients"])


@pytest.mark.slow
@EVERY_RECORDING
@torch.no_grad()
def test_running_statistics_match_recordings(passes, recording, assert_close, name):
    model_passes, expected = passes(name), recording(name)["train"]["running_stats"]
    before = {ours: tensor.clone() for ours, tensor in model_passes.model.state_dict().items()}
    model_passes.model.train()
    model_passes.posterior()
    after, theirs = model_passes.model.state_dict(), key_map(model_passes.model)
    ours = [our_name for our_name in after if theirs[our_name] in expected]
    assert len(ours) == len(expected)
    assert {our_name for our_name in after if our_name.endswith(("running_mean", "running_var"))} <= set(ours)
    for our_name in ours:
        assert_close(after[our_name], expected[theirs[our_name]])
        assert not torch.equal(after[our_name], before[our_name])


@pytest.mark.slow
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
    assert BatchNormRegularization(model)().item() == pytest.approx(expected["batch_norm"], rel=1e-4)


def gradient_norms(model_passes, recorded) -> dict[str, float]:
    """Return the gradient norms of the balanced loss by the original's parameter names."""
    model_passes.model.train().requires_grad_(True)
    results = model_passes.posterior()
    kl = balanced_kl(results["kl"], model_passes.model.levels, recorded["train"]["kl_coefficient"])
    (kl + results["reconstruction"]).mean().backward()
    theirs = key_map(model_passes.model)
    return {theirs[name]: p.grad.norm().item() for name, p in model_passes.model.named_parameters()}


def zero_in_exact_arithmetic(model) -> set[str]:
    """Return the names of biases without effect, because a batch norm subtracts them."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, ResidualCell):
            names.add(f"{name}.conv1.bias")
        if isinstance(module, InvertedResidualCell):
            names.add(f"{name}.norm1.bias")
    return names


@pytest.mark.slow
@EVERY_RECORDING
@pytest.mark.parametrize(("dtype", "floor"), [(torch.float64, 1e-8), (torch.float32, 1e-6)], ids=str)
def test_gradient_norms_match_recordings(passes, recording, name, dtype, floor):
    """Every norm to 1e-3, or to `floor` of the largest.

    Some gradients are (nearly) zero, because a batch norm removes the effect of the parameter: biases before the norm,
    and lengths of weights before the norm, which have an effect through epsilon only. Their recorded norms are rounding
    errors of float32. 1e-8 of the largest norm is a sixth of the resolution of float32 at that norm.
    """
    model_passes, expected = passes(name, dtype), recording(name)["train"]["grad_norms"]
    actual = gradient_norms(model_passes, recording(name))
    assert actual.keys() == expected.keys()
    resolution = floor * max(expected.values())
    assert {key: norm for key, norm in expected.items() if abs(actual[key] - norm) > 1e-3 * norm + resolution} == {}
    if dtype is torch.float64:
        theirs = key_map(model_passes.model)
        zero = {theirs[ours] for ours in zero_in_exact_arithmetic(model_passes.model)}
        zero |= {key for key, norm in expected.items() if norm == 0}  # hidden units that are zero on all images
        assert {key for key, norm in actual.items() if norm < 1e-12} == zero
        # The criterion above is too weak for small norms: few of the other norms are small.
        assert sum(norm < 100 * resolution for key, norm in expected.items() if key not in zero) < 0.05 * len(expected)


# ------------------------------------------------------------------------------------------------------ settings


@pytest.fixture(scope="module")
def config_with(settings):
    return lambda **changes: config_of_settings(settings | changes, "a.pt")[0]


def test_settings_become_an_equal_config(config_with):
    written = """
style: nvlabs
channel_towers: {encoder: 4, decoder: 6}
number_of_scales: 3
initial_splits_per_scale: 20
exponential_scaling: 2
min_splits: 8
latent_size: 2
input_dimension: 64
num_blocks_prepost: 1
num_cells_per_block_prepost: {encoder: 2, decoder: 3}
cells_per_split_enc: 5
cells_per_input_dec: 4
residual_posterior: False
likelihood_tails: original
n_mix: 2
dataset: {name: celeba, path: dataset/celeba, resampling: bilinear, horizontal_flip: True}
training_parameters: {learning_rate_decay: nvlabs, skip_high_losses: False}
"""
    groups = {"num_latent_scales": 3, "num_groups_per_scale": 20, "min_groups_per_scale": 8}
    cells = {"num_preprocess_cells": 2, "num_postprocess_cells": 3}
    towers = {"num_cell_per_cond_enc": 5, "num_cell_per_cond_dec": 4}
    config = config_with(**groups, **cells, **towers)
    assert config == parse_config(written)
    assert groups_finest_first(config) == (20, 10, 8)
    assert parse_config(config_to_yaml(config)) == config


SCHEDULE = {  # ours: value and the original's name
    "epochs": (45, "epochs"),
    "learning_rate": (8e-3, "learning_rate"),
    "learning_rate_min": (2e-4, "learning_rate_min"),
    "weight_decay": (1e-4, "weight_decay"),
    "regularization_constant": (0.1, "weight_decay_norm"),
    "regularization_constant_initial": (10.0, "weight_decay_norm_init"),
    "learning_rate_warmup_epochs": (1, "warmup_epochs"),
    "warmup_portion": (0.4, "kl_anneal_portion"),
    "warmup_delay_portion": (1e-3, "kl_const_portion"),
    "kl_const_coeff": (0.002, "kl_const_coeff"),
}
THREE_SCALES = {"num_latent_scales": 3, "num_groups_per_scale": 20}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"use_se": False}, {"squeeze_excitation": "none"}),
        ({"res_dist": True}, {"residual_posterior": True}),
        ({"num_x_bits": 5}, {"pixel_bits": 5}),
        ({"num_nf": 2}, {"num_flows": 2}),
        ({"num_mixture_dec": 3}, {"n_mix": 3}),
        ({"num_mixture_dec": 1}, {"sampling_method": "gaussian"}),
        ({"arch_instance": "res_bnelu"}, {"arch_instance": "res_bnelu"}),
        ({"num_latent_scales": 1, "num_groups_per_scale": 1}, {"plain_vae": True}),
        (THREE_SCALES, {"groups": (20, 10, 5)}),
        # The original ignores the minimum without ada_groups.
        (THREE_SCALES | {"ada_groups": False, "min_groups_per_scale": 30}, {"groups": (20, 20, 20)}),
        ({"dataset": "celeba_256"}, {"input_dimension": 256}),
        *(
            (
                {"dataset": f"lsun_{scene}_128"},
                {
                    "input_dimension": 128,
                    "dataset.name": "lsun",
                    "dataset.category": category,
                    "dataset.fit": "crop_anywhere",
                    "dataset.resampling": "bilinear",
                    "dataset.horizontal_flip": True,
                },
            )
            for scene, category in (("bedroom", "bedroom"), ("church", "church_outdoor"), ("tower", "tower"))
        ),
        ({"dataset": "ffhq"}, {"input_dimension": 256}),
        ({"dataset": "imagenet_32"}, {"input_dimension": 32, "dataset.horizontal_flip": True}),
        ({"dataset": "imagenet_64"}, {"dataset.name": "folder", "dataset.horizontal_flip": True}),
        ({"dataset": "cifar10"}, {"input_dimension": 32, "dataset.name": "cifar10", "dataset.path": "dataset/cifar10"}),
        ({"dataset": "mnist"}, {"input_dimension": 28, "padding": 2, "image_channels": 1, "dataset.binarize": True}),
        ({"dataset": "mnist"}, {"sampling_method": "bernoulli", "dataset.name": "mnist"}),
        ({"dataset": "omniglot"}, {"dataset.name": "omniglot", "dataset.version": "chardata"}),
        ({"dataset": "omniglot"}, {"padding": 2, "dataset.path": "dataset/omniglot", "dataset.horizontal_flip": False}),
        (
            {name: value for value, name in SCHEDULE.values()} | {"weight_decay_norm_anneal": True},
            {f"training_parameters.{key}": value for key, (value, _) in SCHEDULE.items()}
            | {"training_parameters.learning_rate_decay": "nvlabs", "training_parameters.skip_high_losses": False},
        ),
        (
            {"batch_size": 24, "num_process_per_node": 8, "num_proc_node": 3},
            {"training_parameters.batch_size": 576},  # of all GPUs together
        ),
    ],
    ids=str,
)
def test_settings_become_keys(config_with, changes, expected):
    def values(config):
        all_values = flat(config.model_dump()) | {"groups": groups_finest_first(config)}
        return {key: all_values.get(key) for key in expected}

    assert values(config_with(**changes)) == expected
    assert values(config_with()) != expected


def test_weight_decay_norm_init_counts_only_with_annealing(config_with):
    schedule = config_with(weight_decay_norm_init=10.0, weight_decay_norm_anneal=False).training_parameters
    assert schedule.regularization_constant_initial is None


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"kl_const_coeff": 2}, ["kl_const_coeff"]),
        ({"kl_const_coeff": 0}, ["kl_const_coeff"]),
        ({"kl_const_coeff": 1e-4}, []),  # the default
        ({"learning_rate": 1e-9}, ["learning_rate"]),
    ],
    ids=str,
)
def test_settings_that_are_dropped_give_a_warning(settings, config_with, changes, shown):
    config, warnings = config_of_settings(settings | changes, "a.pt")
    assert len(warnings) == len(shown)
    assert all(part in warning for part, warning in zip(shown, warnings, strict=True))
    schedule = {"training_parameters": config_with().training_parameters}
    assert config.model_copy(update=schedule) == config_with()


def test_missing_settings_have_a_value_in_older_files_or_are_refused(settings, config_with):
    older = {"ada_groups": False, "min_groups_per_scale": 1, "num_mixture_dec": 10, "num_x_bits": 8, "num_nf": 0}
    for key in settings:
        fewer = {name: value for name, value in settings.items() if name != key}
        if key in older:
            assert config_of_settings(fewer, "a.pt")[0] == config_with(**{key: older[key]})
        else:
            with pytest.raises(UserError, match=rf"a\.pt.*\b{key}\b"):
                config_of_settings(fewer, "a.pt")


OUR_KEYS = {"num_nf": "num_flows", "num_channels_enc": "channel_towers", "num_x_bits": "pixel_bits"}


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("num_nf", ["two", 1.0, 10**9, 2**2039, torch.zeros(2), {}, math.nan]),
        ("num_latent_scales", [True]),
        ("num_channels_enc", [None, 10**9, -1]),
        ("use_se", [1]),
        ("dataset", [3, "faces", "celeba_large", "_64", "", "celeba_" + 5000 * "6", "\0\n_64"]),
        ("arch_instance", [["res_mbconv"], "res_net", "\x1b[2J"]),
        ("num_x_bits", [9]),
        ("num_postprocess_blocks", [2]),
    ],
)
def test_impossible_settings_are_one_sentence(config_with, key, values):
    for value in values:
        with pytest.raises(UserError, match=rf"a\.pt.*({key}|{OUR_KEYS.get(key, key)})") as error:
            config_with(**{key: value})
        assert str(error.value).isprintable()
        assert len(str(error.value)) < 500


def test_impossible_schedules_are_ignored(settings, config_with):
    strange = ["x\n", 2**2039, -1, math.nan, math.inf, torch.zeros(2), None, [[]], True]
    names = ["kl_const_coeff", "batch_size", "num_proc_node", *(name for _, name in SCHEDULE.values())]
    for changes in ({name: value} for name in names for value in strange):
        config, warnings = config_of_settings(
            settings | {"batch_size": 8, "weight_decay_norm_anneal": True} | changes, "a"
        )
        assert config.channel_towers == config_with().channel_towers
        assert all(warning.isprintable() for warning in warnings)


@pytest.mark.parametrize(
    "changes", [{}, {"arch_instance": "res_elu", "use_se": False}, {"arch_instance": "mbconv_sep"}], ids=str
)
def test_every_tensor_has_one_name(config_with, changes):
    with torch.device("meta"):
        model = build_model(config_with(**changes))
    names = key_map(model)
    assert names.keys() == model.state_dict().keys()
    assert len(set(names.values())) == len(names)
