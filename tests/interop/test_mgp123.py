"""The seed project's own weights give what its program computed, and its architecture is derived from shapes."""

from __future__ import annotations

import re

import pytest
import torch

from nvae.config import config_from_dict, load_config
from nvae.interop.importer import import_checkpoint
from nvae.interop.mgp123 import key_map
from nvae.models.families import build_model
from nvae.models.nvae.regularization import (
    BatchNormRegularization,
    SpectralRegularization,
    regularized_convolutions,
)
from nvae.system.errors import UserError

RECORDINGS = ["mgp123_logistic_mixture", "mgp123_gaussian_flows", "mgp123_gaussian_mixture"]
PRECISIONS = pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.float64, 2e-5)], ids=str)


@PRECISIONS
@pytest.mark.parametrize("name", RECORDINGS)
@torch.no_grad()
def test_passes_match_recordings(passes, recording, assert_close, name, dtype, tolerance):
    model_passes, recorded = passes(name, dtype), recording(name)
    actual = model_passes.posterior()
    for key, expected in recorded["eval"].items():
        assert actual[key].dtype == dtype, key
        assert_close(actual[key], expected, tolerance)
    for expected in recorded.get("prior", []):
        assert_close(model_passes.prior(expected)["mean"].clamp(0, 1), expected["mean"])  # the seed clamps images


@pytest.mark.parametrize("name", RECORDINGS[:2])
def test_weights_fill_the_model(imported, recording, name):
    model, state = imported(name), recording(name)["state_dict"]
    assert sum(p.numel() for p in model.parameters()) == recording(name)["parameters"]
    torch.testing.assert_close(
        sum(tensor.double().sum() for tensor in model.state_dict().values()),
        sum(tensor.double().sum() for tensor in state.values()),
    )


def test_spectral_scope_cells_and_heads_is_the_seeds(imported, recording):
    name = "mgp123_gaussian_mixture"
    model, expected = imported(name), recording(name)["regularization"]
    convolutions = regularized_convolutions(model, "cells_and_heads")
    theirs = {ours: their_name.rpartition(".")[0] for ours, their_name in key_map(model).items()}
    weight = re.compile(r"(.+?)\.(parametrizations\.weight\.original1|weight)")
    names = {match[1]: theirs[ours] for ours in theirs if (match := weight.fullmatch(ours))}
    ids = {id(convolution) for convolution in convolutions}
    regularized = {names[ours]: module for ours, module in model.named_modules() if id(module) in ids}
    assert len(convolutions) == 49
    assert regularized.keys() == expected["singular_values"].keys()
    for their_name, convolution in regularized.items():
        largest = torch.linalg.matrix_norm(convolution.weight.detach().flatten(1), 2).item()
        assert largest == pytest.approx(expected["singular_values"][their_name], rel=1e-5)
    spectral = SpectralRegularization(convolutions, 2)
    spectral.singular_values(300)
    assert expected["spectral"] == pytest.approx(75.619, abs=1e-3)
    assert spectral().item() == pytest.approx(expected["spectral"], rel=1e-5)
    assert BatchNormRegularization(model)().item() == pytest.approx(expected["batch_norm"], rel=1e-5)


@pytest.mark.parametrize(
    ("name", "overrides", "count"),
    [
        ("gaussian_mixture", [], 49),
        ("tiny", [], 61),
        *((name, ["initial_splits_per_scale=2"], 85) for name in ("penguin", "big_logistic_mixture20latentnoflows")),
    ],
)
def test_spectral_scope_counts_of_seed_configs(name, overrides, count):
    with torch.device("meta"):
        model = build_model(load_config(name, overrides))
    assert len(regularized_convolutions(model, "cells_and_heads")) == count


# -------------------------------------------------------------------------------------------------- architecture


def checkpoint_of(model, **content):
    weights = model.state_dict()
    return {"state_dict": {theirs: weights[ours].clone() for ours, theirs in key_map(model).items()}, **content}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "assumed"),
    [
        ({"sampling_method": "logistic_mixture"}, ["sampling_method"]),
        ({"num_flows": 1}, ["fixed_flows"]),
        (
            {
                "number_of_scales": 3,
                "initial_splits_per_scale": 5,
                "exponential_scaling": 2,
                "min_splits": 2,
                "input_dimension": 16,
            },
            [],
        ),
        ({"channel_towers": {"encoder": 4, "decoder": 6}, "channel_multiplier": 3, "image_channels": 1}, []),
        (
            {
                "num_cells_per_block_prepost": 3,
                "num_blocks_prepost": 2,
                "cells_per_split_enc": 2,
                "cells_per_input_dec": 3,
            },
            [],
        ),
        ({"number_of_scales": 1, "initial_splits_per_scale": 1, "num_blocks_prepost": 0}, []),
    ],
    ids=str,
)
def test_config_is_derived_from_shapes(file, make_model, changes, assumed):
    expected = make_model(**changes)
    imported = import_checkpoint(file(checkpoint_of(expected, model_arch="elsewhere/x.yaml")))
    weights = imported.model.state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in expected.state_dict().items())
    assert imported.model.noise_shapes == expected.noise_shapes
    assert [warning.partition(":")[0] for warning in imported.warnings] == ["config", *assumed]


def test_config_with_the_name_of_the_yaml_needs_the_same_shapes(file):
    seed = load_config("gaussian_mixture")
    smaller = config_from_dict(seed.model_dump() | {"channel_towers": 4}, "test")
    for config, equal in ((seed, True), (smaller, False)):
        content = checkpoint_of(build_model(config), model_arch="a\\b/gaussian_mixture.yaml")
        imported = import_checkpoint(file(content)).model.config
        assert imported.channel_towers == config.channel_towers
        assert imported.sampling_method == "gaussian_mixture"  # also where only the name tells
        assert (imported == seed.model_copy(update={"likelihood_tails": "original"})) is equal


def test_given_config_has_the_tails_of_the_original_unless_it_names_others(file, make_model, make_config):
    source = file(checkpoint_of(make_model()))
    for given, expected in (({}, "original"), ({"likelihood_tails": "exact"}, "exact")):
        assert import_checkpoint(source, make_config(**given)).model.config.likelihood_tails == expected


def test_config_without_squeeze_excitation_does_not_fit(file, make_model, make_config):
    with pytest.raises(UserError, match=r"\.model\.10\.model\.0\.bias' and \d+ more"):
        import_checkpoint(file(checkpoint_of(make_model())), make_config(squeeze_excitation="none"))


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("decoder_constant", ()),
        ("initial_transform.weight_v", (4,)),
        ("mixer.encoder_sampler.0.weight_v", ()),
        ("to_distribution_conv.1.weight_v", (0, 0, 3, 3)),
        ("preprocess.model.2.model.skip.model.skip down.conv_1.weight", (1, 0, 1, 1)),
        ("encoder_tower.model.enc_block_9.model.split_1.model.cell_encoder1.model.0.weight", (4,)),
        (f"encoder_tower.model.enc_block_1.model.split_{'7' * 5000}.", (4,)),
    ],
    ids=lambda value: str(value)[:70],
)
def test_impossible_shapes_are_refused(file, make_model, name, shape):
    content = checkpoint_of(make_model())
    content["state_dict"][name] = torch.zeros(shape)
    with pytest.raises(UserError) as error:
        import_checkpoint(file(content))
    assert "checkpoint.pt" in str(error.value)
    assert len(str(error.value)) < 1000
