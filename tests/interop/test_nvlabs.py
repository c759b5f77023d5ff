"""The original NVAE's own weights, loaded under our names, give what the original program recorded."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import nn

from nvae.config import config_to_yaml, parse_config
from nvae.errors import UserError
from nvae.interop.key_mapping import load_with_key_map
from nvae.interop.nvlabs import config_of, key_map, weights_of
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior, HierarchicalVAE, TopDownOutput
from nvae.models.nvae.cells import InvertedResidualCell, ResidualCell
from nvae.models.nvae.config import groups_per_scale
from nvae.models.nvae.regularization import (
    BatchNormRegularization,
    SpectralRegularization,
    regularized_convolutions,
)
from nvae.objective import (
    ElboTerms,
    balance_alphas,
    balanced_kl,
    balancing_weights,
    elbo_terms,
)

RECORDINGS = ["nvlabs_bernoulli", "nvlabs_logistic_mixture_flows"]
TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=RECORDINGS)
def recording(request, reference):
    return torch.load(reference / f"{request.param}.pt", weights_only=True)


@pytest.fixture(scope="module")
def build(recording):
    """A function: a fresh model with the recorded weights."""

    def build(dtype: torch.dtype = torch.float32) -> HierarchicalVAE:
        config, _ = config_of(recording["args"], "the recording")
        model = load_with_key_map(config, weights_of(recording["state_dict"], config), key_map, "the recording")
        return model.requires_grad_(True).to(dtype)

    return build


def inside(model: HierarchicalVAE, images: torch.Tensor) -> torch.Tensor:
    """Without the margin that the network sees and the likelihood does not."""
    padding, side = model.config.padding, images.shape[-1]
    return images[..., padding : side - padding, padding : side - padding]


class Walk(NamedTuple):
    result: TopDownOutput
    terms: ElboTerms
    logits: torch.Tensor  # the network's raw output, margin included


def posterior_walk(model: HierarchicalVAE, recording: dict) -> Walk:
    """The recorded images are as large as the network's input, and not black in the margin: past our own padding."""
    dtype = model.constant.dtype
    images, outputs = recording["x"].to(dtype), []
    hook = model.output.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    noise = [eps.to(dtype) for eps in recording["eval"]["noise"]]
    result = model.top_down(FromPosterior(model.encoder(images), noise=noise), len(images))
    hook.remove()
    return Walk(result, elbo_terms(result, inside(model, images)), outputs[0])


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    """To 1e-4 of the recording's own size, which is its largest value: sums of terms that cancel have no more."""
    assert found.shape == expected.shape
    assert found.isfinite().all()
    atol = tolerance * expected.abs().max().item()
    torch.testing.assert_close(found.to(expected.dtype), expected, rtol=tolerance, atol=atol)
    assert expected.abs().max() > 0


def assert_close_and_varied(found: torch.Tensor, expected: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert_close(found, expected, tolerance)
    assert expected.std() > 100 * tolerance * expected.abs().max(), "the recording is too flat to compare with"


# ----------------------------------------------------------------------------------------------- evaluation mode


def test_the_weights_fill_the_model_exactly(recording, build):
    """Filling it says that no name is missing or left over."""
    model = build()
    assert sum(p.numel() for p in model.parameters()) == recording["parameters"]
    assert list(groups_per_scale(model.config)) == recording["groups_per_scale"]


@torch.no_grad()
def test_the_posterior_pass_is_the_recorded_one(recording, build):
    expected = recording["eval"]
    result, terms, logits = posterior_walk(build().eval(), recording)
    assert_close_and_varied(logits, expected["logits"])
    assert_close_and_varied(result.kl, expected["kl_per_group"])
    assert_close(-terms.log_likelihood, expected["reconstruction_loss"])


@torch.no_grad()
def test_the_evidence_of_the_posterior_pass_is_the_recorded_one(recording, build):
    expected = recording["eval"]
    result, terms, _ = posterior_walk(build().eval(), recording)
    log_q, log_p = (sum(getattr(group, key) for group in result.groups.values()) for key in ("log_q", "log_p"))
    assert_close(log_q, expected["log_q"])
    assert_close(log_p, expected["log_p"])
    assert_close(terms.log_likelihood + log_p - log_q, expected["log_importance_weight"])


@torch.no_grad()
def test_the_prior_pass_at_a_temperature_is_the_recorded_one(recording, build):
    expected, outputs, model = recording["sample"], [], build().eval()
    model.output.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    assert expected["temperature"] < 1
    result = model.top_down(FromNoise(expected["noise"], expected["temperature"]), len(recording["x"]))
    assert_close_and_varied(outputs[0], expected["logits"])
    assert_close_and_varied(result.px_z.mean(), inside(model, expected["mean"]), 1e-5)


@torch.no_grad()
def test_in_double_precision_only_the_recordings_own_rounding_is_left(recording, build):
    result, terms, logits = posterior_walk(build(torch.float64).eval(), recording)
    expected = recording["eval"]
    for found, theirs in (
        (result.kl, expected["kl_per_group"]),
        (logits, expected["logits"]),
        (-terms.log_likelihood, expected["reconstruction_loss"]),
    ):
        assert found.dtype == torch.float64
        assert (found - theirs).abs().max() < 1e-5 * theirs.abs().max()


# ------------------------------------------------------------------------------------------------- training mode


@torch.no_grad()
def test_the_pass_of_training_is_the_recorded_one(recording, build):
    expected, model = recording["train"], build().train()
    result, terms, logits = posterior_walk(model, recording)
    assert_close_and_varied(logits, expected["logits"])
    assert_close_and_varied(result.kl, expected["kl_per_group"])
    assert_close(-terms.log_likelihood, expected["reconstruction_loss"])
    assert (expected["logits"] - recording["eval"]["logits"]).abs().max() > 0.01, "batch norms were still"


@torch.no_grad()
def test_the_loss_of_training_is_the_recorded_one(recording, build):
    expected, model = recording["train"], build().train()
    coefficient = expected["kl_coefficient"]
    assert 0 < coefficient < 1
    result, terms, _ = posterior_walk(model, recording)
    assert_close(torch.tensor(balance_alphas(model.levels)), expected["balance_alpha"])
    assert_close_and_varied(balancing_weights(result.kl, model.levels), expected["kl_group_coefficients"])
    loss = (balanced_kl(result.kl, model.levels, coefficient) - terms.log_likelihood).mean()
    assert_close(loss, expected["loss"], 1e-6)
    # The KL is a small part of it, so by itself too:
    reconstruction = expected["reconstruction_loss"].mean()
    assert_close(loss + terms.log_likelihood.mean(), expected["loss"] - reconstruction, 1e-3)


@torch.no_grad()
def test_the_regularization_is_the_recorded_one(recording, build):
    expected, model = recording["train"], build()
    assert_close(BatchNormRegularization(model)(), expected["batchnorm_loss"])
    convolutions = regularized_convolutions(model, model.config.training_parameters.spectral_scope)
    spectral = SpectralRegularization(convolutions, model.config.training_parameters.spectral_exponent)
    spectral.singular_values(300)
    assert_close(spectral(), expected["spectral_loss_exact"])


def zero_in_exact_arithmetic(model: HierarchicalVAE) -> set[str]:
    """Names of biases whose only effect a batch norm takes away again."""
    names: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, ResidualCell):
            names.add(f"{name}.conv1.bias")
        if isinstance(module, InvertedResidualCell):
            names.add(f"{name}.norm1.bias")
    return names


def test_the_gradient_of_every_parameter_is_the_recorded_one(recording, build):
    """Its norm, to 1e-3, in double precision.

    Some gradients are zero, or nearly so, because a batch norm takes back what their parameter does: biases before it,
    and lengths of the weights before it, whose gradient is what its epsilon leaves. What the original recorded of these
    is float32's rounding of terms that cancel. So 1e-8 of the largest norm, a sixth of what float32 can tell apart next
    to it, counts as nothing. Our own single precision has such roundings too, up to 6e-3 of these norms; in double
    precision only those of the recording are left.
    """
    expected, model = recording["train"], build(torch.float64).train()
    result, terms, _ = posterior_walk(model, recording)
    (balanced_kl(result.kl, model.levels, expected["kl_coefficient"]) - terms.log_likelihood).mean().backward()
    names = key_map(model)
    found = {names[ours]: p.grad.norm().item() for ours, p in model.named_parameters()}
    theirs = {name: norm.item() for name, norm in expected["grad_norms"].items()}
    assert found.keys() == theirs.keys()
    nothing = 1e-8 * max(theirs.values())
    different = {
        name: (found[name], norm) for name, norm in theirs.items() if abs(found[name] - norm) > 1e-3 * norm + nothing
    }
    assert different == {}
    silent = {names[name] for name in zero_in_exact_arithmetic(model)}
    assert {name for name, norm in found.items() if norm < 1e-12} == silent
    # Next to the largest norm the others are small, but few are so small that the criterion says nothing of them.
    assert sum(norm < 100 * nothing for name, norm in theirs.items() if name not in silent) < 0.05 * len(theirs)


def test_in_single_precision_the_gradients_that_are_there_are_the_recorded_ones(recording, build):
    """To 1e-3 of every norm, and 1e-6 of the largest."""
    expected, model = recording["train"], build().train()
    result, terms, _ = posterior_walk(model, recording)
    (balanced_kl(result.kl, model.levels, expected["kl_coefficient"]) - terms.log_likelihood).mean().backward()
    names = key_map(model)
    largest = max(norm.item() for norm in expected["grad_norms"].values())
    for ours, parameter in model.named_parameters():
        norm = expected["grad_norms"][names[ours]].item()
        assert parameter.grad.norm().item() == pytest.approx(norm, rel=1e-3, abs=1e-6 * largest), ours


@torch.no_grad()
def test_the_running_statistics_after_one_step_are_the_recorded_ones(recording, build):
    model = build().train()
    before = {name: buffer.clone() for name, buffer in model.state_dict().items()}
    posterior_walk(model, recording)
    names, after = key_map(model), model.state_dict()
    expected = recording["train"]["running_stats_after_one_step"]
    ours = {theirs: name for name, theirs in names.items() if theirs in expected}
    statistics = [f"running_{kind}" for kind in ("mean", "var")]
    assert ours.keys() == expected.keys()
    assert {name for name in after if name.endswith(tuple(statistics))} <= set(ours.values())
    for theirs, tensor in expected.items():
        assert_close(after[ours[theirs]], tensor)
        assert not torch.equal(after[ours[theirs]], before[ours[theirs]])


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
    return config_of(SETTINGS | changes, "a.pt")[0]


def test_settings_become_the_config_that_says_the_same():
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
    assert groups_per_scale(config_with()) == (20, 10, 5)
    assert parse_config(config_to_yaml(config_with())) == config_with()


@pytest.mark.parametrize(
    ("settings", "key", "value"),
    [
        ({"use_se": False}, "squeeze_excitation", "none"),
        ({"res_dist": False}, "residual_posterior", False),
        ({"num_x_bits": 5}, "pixel_bits", 5),
        ({"num_nf": 0}, "num_flows", 0),
        ({"num_mixture_dec": 3}, "n_mix", 3),
        ({"num_mixture_dec": 1}, "sampling_method", "gaussian"),
        ({"arch_instance": "res_bnelu"}, "arch_instance", "res_bnelu"),
        ({"num_latent_scales": 1, "num_groups_per_scale": 1}, "plain_vae", True),
        ({"dataset": "celeba_256"}, "input_dimension", 256),
        ({"dataset": "lsun_bedroom_128"}, "input_dimension", 128),
        ({"dataset": "ffhq"}, "input_dimension", 256),
        ({"dataset": "imagenet_32"}, "input_dimension", 32),
        ({"dataset": "cifar10"}, "input_dimension", 32),
    ],
    ids=str,
)
def test_a_setting_becomes_its_key(settings, key, value):
    assert getattr(config_with(**settings), key) == value
    assert settings.keys() <= {"dataset"} or getattr(config_with(), key) != value, "it is so without the setting"


def test_groups_are_adaptive_or_all_alike():
    assert groups_per_scale(config_with(ada_groups=False)) == (20, 20, 20)
    assert groups_per_scale(config_with(min_groups_per_scale=8)) == (20, 10, 8)


def test_the_name_of_the_data_set_says_what_the_images_are():
    for name in ("mnist", "omniglot"):
        config = config_with(dataset=name, num_latent_scales=2)
        assert (config.input_dimension, config.padding, config.image_channels) == (28, 2, 1)
        assert config.sampling_method == "bernoulli"
        assert config.dataset.binarize
        assert not config.dataset.horizontal_flip
    assert config_with(dataset="mnist").dataset.name == "mnist"
    assert config_with(dataset="cifar10").dataset.name == "cifar10"
    assert config_with(dataset="cifar10").dataset.horizontal_flip
    assert not config_with(dataset="imagenet_32").dataset.horizontal_flip


def test_settings_of_the_schedule_are_taken_over():
    assert config_with().training_parameters == parse_config(config_to_yaml(config_with())).training_parameters
    schedule = config_with(
        epochs=45,
        batch_size=24,
        learning_rate=8e-3,
        learning_rate_min=2e-4,
        weight_decay=1e-4,
        weight_decay_norm=0.1,
        weight_decay_norm_init=10.0,
        weight_decay_norm_anneal=True,
        warmup_epochs=1,
        kl_anneal_portion=0.4,
        kl_const_portion=1e-3,
    ).training_parameters
    assert (schedule.epochs, schedule.batch_size, schedule.weight_decay) == (45, 24, 1e-4)
    assert (schedule.learning_rate, schedule.learning_rate_min) == (8e-3, 2e-4)
    assert (schedule.regularization_constant, schedule.regularization_constant_initial) == (0.1, 10.0)
    assert (schedule.learning_rate_warmup_epochs, schedule.warmup_portion) == (1, 0.4)
    assert schedule.warmup_delay_portion == 1e-3
    steady = config_with(weight_decay_norm=0.1, weight_decay_norm_init=10.0, weight_decay_norm_anneal=False)
    assert steady.training_parameters.regularization_constant_initial is None


NEWER = {"ada_groups", "min_groups_per_scale", "num_mixture_dec"}
WITH_A_VALUE = NEWER | {"num_x_bits", "num_nf"}


def test_older_settings_lack_what_came_later():
    """Files from before groups were adaptive and mixtures had a choosable number of components."""
    config, _ = config_of({key: value for key, value in SETTINGS.items() if key not in NEWER}, "old.pt")
    assert config == config_with(ada_groups=False)
    assert config.n_mix == 10
    assert groups_per_scale(config) == (20, 20, 20)


def test_flows_and_depth_have_a_value_when_they_are_missing():
    config, _ = config_of({key: value for key, value in SETTINGS.items() if key not in WITH_A_VALUE}, "old.pt")
    assert (config.num_flows, config.pixel_bits) == (0, 8)


@pytest.mark.parametrize("key", sorted(SETTINGS.keys() - WITH_A_VALUE))
def test_a_missing_setting_is_named(key):
    with pytest.raises(UserError, match=rf"^a\.pt: the setting {key} is missing"):
        config_of({name: value for name, value in SETTINGS.items() if name != key}, "a.pt")


@pytest.mark.parametrize(
    ("settings", "shown"),
    [
        ({"num_nf": "two"}, "the setting num_nf is 'two'"),
        ({"num_nf": 1.0}, "the setting num_nf is 1.0"),
        ({"num_latent_scales": True}, "the setting num_latent_scales is True"),
        ({"num_channels_enc": None}, "the setting num_channels_enc is None"),
        ({"use_se": 1}, "the setting use_se is 1"),
        ({"dataset": 3}, "the setting dataset is 3"),
        ({"arch_instance": ["res_mbconv"]}, r"the setting arch_instance is \['res_mbconv'\]"),
    ],
    ids=str,
)
def test_a_setting_of_another_kind_is_shown(settings, shown):
    with pytest.raises(UserError, match=rf"^a\.pt: {shown}"):
        config_with(**settings)


@pytest.mark.parametrize("name", ["faces", "celeba_large", "_64", ""])
def test_an_unknown_data_set_is_told_and_how_to_help(name):
    with pytest.raises(UserError, match=rf"^a\.pt: its data set '{name}' is none whose image size is known.*--config"):
        config_with(dataset=name)


def test_ends_of_different_sizes_are_refused():
    with pytest.raises(UserError, match="num_preprocess_blocks and num_postprocess_blocks differ"):
        config_with(num_postprocess_blocks=2)


def test_settings_that_describe_no_network_are_refused_in_the_configs_words():
    with pytest.raises(UserError, match=r"^a\.pt: the settings in it: arch_instance: got 'res_net'"):
        config_with(arch_instance="res_net")
    with pytest.raises(UserError, match="pixel_bits: got 9"):
        config_with(num_x_bits=9)


def test_every_parameter_and_buffer_of_any_network_has_one_name_of_theirs():
    small = {"num_channels_enc": 8, "num_channels_dec": 8, "num_groups_per_scale": 2, "num_latent_scales": 2}
    for changes in ({}, {"arch_instance": "res_elu", "use_se": False}, {"arch_instance": "mbconv_sep"}):
        with torch.device("meta"):
            model = build_model(config_with(**small, **changes))
        names = key_map(model)
        assert names.keys() == model.state_dict().keys()
        assert len(set(names.values())) == len(names)
        assert any(isinstance(m, nn.BatchNorm2d) for m in model.modules()) != ("use_se" in changes)
