"""Configs: loading, styles, overrides, and files of earlier versions."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
import yaml

from nvae.checkpoint import load
from nvae.config import (
    ConfigError,
    available_configs,
    config_from_dict,
    config_path,
    config_to_yaml,
    flat,
    load_config,
    migrations,
    parse_config,
)
from nvae.models.nvae.config import STYLES, groups_finest_first
from nvae.schema import DATASETS, NAMED_DATASETS, DownloadedDataset

SMALL = """channel_towers: 8
number_of_scales: 2
initial_splits_per_scale: 1
latent_size: 4
"""

# The seed's settings, those of most of its files first; each file's own below.
COMMON = {
    "channel_towers": 32,
    "number_of_scales": 3,
    "initial_splits_per_scale": 1,
    "latent_size": 20,
    "num_flows": 0,
    "cells_per_split_enc": 2,
    "cells_per_input_dec": 2,
    "exponential_scaling": 1,
    "num_blocks_prepost": 1,
    "num_cells_per_block_prepost": 2,
    "channel_multiplier": 2,
    "input_dimension": 64,
    "sampling_method": "gaussian",
    "n_mix": 3,
    "min_splits": 1,
    "fixed_flows": False,
    "learning_rate": 1e-2,
    "regularization_constant": 5e-2,
    "kl_constant": 1,
    "warmup_epochs": 30,
    "batch_size": 20,
    "write_reconstruction": True,
    "epochs_per_checkpoint": 2,
    "epochs": 100,
    "half_precision": False,
    "use_tensor_checkpoints": False,
    "gradient_clipping": None,
}
MIXTURE = {"sampling_method": "logistic_mixture", "n_mix": 10, "fixed_flows": True}
LONG = {"regularization_constant": 0.1, "warmup_epochs": 50}
SEEDS = {
    "big_logistic_mixture20latentnoflows": MIXTURE
    | LONG
    | {"initial_splits_per_scale": 3, "batch_size": 40, "write_reconstruction": False, "epochs": 200},
    "gaussian_mixture": {"latent_size": 2, "sampling_method": "gaussian_mixture"},
    "gaussian_mixture5latent": {
        "number_of_scales": 4,
        "latent_size": 10,
        "sampling_method": "gaussian_mixture",
        "n_mix": 5,
        "batch_size": 16,
    },
    "large_logistic_mixture20latentnoflows": MIXTURE
    | LONG
    | {
        "initial_splits_per_scale": 10,
        "exponential_scaling": 2,
        "min_splits": 5,
        "batch_size": 16,
        "epochs_per_checkpoint": 1,
    },
    "logistic_mixture10latent": MIXTURE
    | {
        "number_of_scales": 4,
        "latent_size": 10,
        "warmup_epochs": 60,
        "batch_size": 32,
        "write_reconstruction": False,
        "epochs": 400,
    },
    "penguin": MIXTURE
    | LONG
    | {
        "initial_splits_per_scale": 6,
        "fixed_flows": False,
        "batch_size": 32,
        "write_reconstruction": False,
        "epochs_per_checkpoint": 1,
        "epochs": 200,
        "half_precision": True,
    },
    "tiny": {
        "channel_towers": 64,
        "latent_size": 1,
        "num_flows": 1,
        "cells_per_split_enc": 3,
        "cells_per_input_dec": 3,
        "fixed_flows": True,
    },
}


def resolved(text: str, *overrides: str) -> dict:
    return flat(parse_config(text, overrides).model_dump())


# -------------------------------------------------------------------------------------------------- what loads


@pytest.mark.parametrize("name", SEEDS)
def test_seed_configs_have_the_seeds_values(name):
    config = load_config(name)
    training = dict(config.training_parameters)
    for key, expected in (COMMON | SEEDS[name]).items():
        if key in ("channel_towers", "num_cells_per_block_prepost"):
            assert dict(getattr(config, key)) == {"encoder": expected, "decoder": expected}
        else:
            assert (training[key] if key in training else getattr(config, key)) == expected, key
    assert (config.style, config.image_channels, config.likelihood_tails) == ("mgp123", 3, "exact")
    assert (config.dataset.name, config.dataset.path) == ("folder", "dataset")
    assert (training["optimizer"], training["optimizer_epsilon"]) == ("adamax", 1e-3)
    assert training["optimizer_betas"] == (0.9, 0.999)


def test_cells_per_input_dec_defaults_to_the_seeds_value():
    assert parse_config(SMALL).cells_per_input_dec == 1
    assert parse_config(SMALL, ["style=nvlabs"]).cells_per_input_dec == 2


def test_no_config_of_a_public_set_validates_on_its_test_images():
    for name in available_configs():
        dataset = load_config(name).dataset
        if isinstance(dataset, DownloadedDataset) and not NAMED_DATASETS[dataset.name].validation:
            assert dataset.validation_images, name


def test_every_file_in_model_configs_loads_and_is_listed(root):
    files = sorted((root / "model_configs").glob("*.yaml"))
    assert {file.stem for file in files} >= set(SEEDS)
    assert {file.stem for file in files} <= set(available_configs())
    for file in files:
        assert load_config(file) == load_config(file.stem)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"initial_splits_per_scale": 3}, (3, 3)),
        ({"number_of_scales": 1}, (2,)),
        ({"initial_splits_per_scale": 10, "exponential_scaling": 2, "number_of_scales": 3}, (10, 5, 2)),
        (
            {"initial_splits_per_scale": 10, "exponential_scaling": 2, "number_of_scales": 3, "min_splits": 5},
            (10, 5, 5),
        ),
        ({"initial_splits_per_scale": 1, "exponential_scaling": 3}, (1, 1)),
        ({"initial_splits_per_scale": 2, "min_splits": 4}, (2, 4)),
        ({"groups_per_scale": [5, 10], "exponential_scaling": 3}, (10, 5)),
    ],
    ids=str,
)
def test_groups_per_scale_divides_down_to_the_minimum(make_config, changes, expected):
    assert groups_finest_first(make_config(**changes)) == expected


def test_list_of_groups_sets_the_groups_of_the_finest_scale():
    without = SMALL.replace("initial_splits_per_scale: 1\n", "")
    for text, overrides in ((without, ["groups_per_scale=[3, 2]"]), (SMALL + "groups_per_scale: [3, 2]\n", [])):
        config = parse_config(text, overrides)
        assert (config.groups_per_scale, config.initial_splits_per_scale) == ((3, 2), 2)
        assert parse_config(config_to_yaml(config)) == config
    single = parse_config(SMALL, ["groups_per_scale=[1]", "number_of_scales=1", "style=nvlabs"])
    several = parse_config(SMALL, ["groups_per_scale=[2]", "number_of_scales=1", "style=nvlabs"])
    assert (single.plain_vae, several.plain_vae) == (True, False)


def test_towers_take_one_number_or_two():
    assert dict(parse_config(SMALL).channel_towers) == {"encoder": 8, "decoder": 8}
    config = parse_config(SMALL, ["channel_towers.decoder=16", "num_cells_per_block_prepost.encoder=3"])
    assert dict(config.channel_towers) == {"encoder": 8, "decoder": 16}
    assert dict(config.num_cells_per_block_prepost) == {"encoder": 3, "decoder": 2}
    four = parse_config(SMALL + "num_cells_per_block_prepost: 4\n", ["num_cells_per_block_prepost.encoder=3"])
    assert dict(four.num_cells_per_block_prepost) == {"encoder": 3, "decoder": 4}


@pytest.mark.parametrize(
    ("text", "number"), [("1e-2", 0.01), ("1.5E-3", 0.0015), ("2e+1", 20.0), ("1e1", 10.0), ("0.5", 0.5), ("3", 3.0)]
)
def test_numbers_may_have_an_exponent(text, number):
    """YAML 1.1, which PyYAML reads, takes 1e-2 for a text."""
    in_file = parse_config(SMALL + f"training_parameters:\n  learning_rate: {text}\n")
    override = parse_config(SMALL, [f"training_parameters.learning_rate={text}"])
    assert in_file.training_parameters.learning_rate == override.training_parameters.learning_rate == number
    assert parse_config(SMALL + "dataset: {path: e5}\n").dataset.path == "e5"


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e2", 100), ("064", 64), ("09", 9), ("0x10", 16), ("0o17", 15), ("0b11", 3), ("1_000", 1000), ("+7", 7)]
    + [("15.0", 15), ("1.5e1", 15), ("5.", 5), ("1e+0", 1)],
)
def test_whole_numbers_are_those_of_yaml_1_2(text, number):
    """YAML 1.1, which PyYAML reads, takes 064 for 52 and 1:30 for 90."""
    in_file = parse_config(SMALL + f"training_parameters:\n  epochs: {text}\n")
    override = parse_config(SMALL, [f"training_parameters.epochs={text}"])
    assert in_file.training_parameters.epochs == override.training_parameters.epochs == number


@pytest.mark.parametrize(("word", "expected"), [("yes", True), ("On", True), ("true", True), ("no", False)])
def test_booleans_are_those_of_yaml_1_1(word, expected):
    assert parse_config(SMALL + f"fixed_flows: {word}\n").fixed_flows is expected


@pytest.mark.parametrize("text", ["2024", "2024-01-01", "yes", "1e2", "0x10", "=", "064", "1.50"])
def test_key_for_any_text_takes_it_as_it_is_in_a_file(text):
    for name in ("folder", "mnist"):
        assert parse_config(SMALL + f"dataset:\n  name: {name}\n  path: {text}\n").dataset.path == text
    assert parse_config(SMALL + "dataset:\n  name: mnist\n  path: ~\n").dataset.path is None


def test_validated_config_is_frozen(config):
    with pytest.raises(ValueError, match="frozen"):
        config.latent_size = 3


def test_flat_gives_dotted_keys():
    assert flat({"a": 1, "b": {"c": 2, "d": {"e": [3]}}}) == {"a": 1, "b.c": 2, "b.d.e": [3]}


# -------------------------------------------------------------------------------------------------- data sets


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_dataset_has_only_its_own_keys(name):
    every = {key for dataset in DATASETS.values() for key in dataset.model_fields}
    own = set(DATASETS[name].model_fields)
    defaults = {key: field.default for dataset in DATASETS.values() for key, field in dataset.model_fields.items()}
    assert set(parse_config(SMALL, [f"dataset.name={name}"]).dataset.model_dump()) == own
    for key in every - own:
        with pytest.raises(ConfigError) as caught:
            config_from_dict(yaml.safe_load(SMALL) | {"dataset": {"name": name, key: defaults[key]}}, "a config")
        assert (caught.value.kind, caught.value.key) == ("unknown_key", f"dataset.{key}")
        assert set(caught.value.allowed.split(", ")) == own


def test_dataset_without_a_name_is_a_folder():
    assert parse_config(SMALL).dataset.name == "folder"
    assert parse_config(SMALL + "dataset: {path: x}\n").dataset.model_dump() == {
        "name": "folder",
        "path": "x",
        "validation_fraction": 0.05,
        "validation_images": None,
        "validation_choice": "random",
        "split_seed": 0,
        "crop": None,
        "fit": "crop",
        "resampling": "lanczos",
        "background": "white",
        "percentiles": None,
        "max_image_pixels": 64_000_000,
        "min_image_size": 1,
        "horizontal_flip": False,
        "random_crop": 0,
        "sharpness": None,
        "color_jitter": None,
        "binarize": False,
        "encoder_input": "binary",
        "dequantize": False,
    }


def test_override_of_the_dataset_name_drops_the_other_sets_keys():
    text = SMALL + "dataset: {name: toy_faces, training_images: 7, horizontal_flip: True}\n"
    assert parse_config(text, ["dataset.name=toy_faces"]).dataset.training_images == 7
    digits = parse_config(text, ["dataset.path=x", "dataset.name=mnist"]).dataset  # in either order
    assert (digits.name, digits.path, digits.horizontal_flip) == ("mnist", "x", False)


# --------------------------------------------------------------------------------------------------------- styles

# What DESIGN.md and shared/reference/README.md say of the original NVAE, where it differs from the seed.
NVLABS = {
    "cells_per_input_dec": 2,
    "pixel_range": "centered",
    "weight_normalization": "exponential",
    "normalize_cells": True,
    "squeeze_excitation": "sixteenth",
    "flow_columns": "left",
    "downsample_skip": "shifted",
    "upsample_skip_bias": False,
    "postprocess_upsample": "first",
    "initial_constant": "uniform",
    "temperature_scales_min_sigma": True,
    "sampling_method": "coupled_logistic_mixture",
    "n_mix": 10,
    "training_parameters.learning_rate_min": 1e-4,
    "training_parameters.learning_rate_warmup_epochs": 5.0,
    "training_parameters.learning_rate_decay": "after_its_warmup",
    "training_parameters.warmup_portion": 0.3,
    "training_parameters.warmup_delay_portion": 1e-4,
    "training_parameters.regularization_constant": 1e-2,
    "training_parameters.spectral_exponent": 1,
    "training_parameters.spectral_iterations": 4,
    "training_parameters.spectral_scope": "all",
}


def test_style_fills_in_missing_keys():
    seed, original = resolved(SMALL), resolved(SMALL + "style: nvlabs\n")
    different = {key: value for key, value in original.items() if value != seed[key]}
    assert different == {"style": "nvlabs"} | NVLABS
    assert resolved(SMALL + "style: mgp123\n") == seed
    assert resolved(SMALL, "style=nvlabs") == original
    epochs = resolved(SMALL + "style: nvlabs\ntraining_parameters: {epochs: 7}\n")
    assert epochs == original | {"training_parameters.epochs": 7}


@pytest.mark.parametrize("key", NVLABS)
def test_given_keys_win_over_the_style(key):
    """Every one of the keys, with the seed's value for it, in the file and as an override."""
    seed, original = resolved(SMALL), resolved(SMALL + "style: nvlabs\n")
    value = yaml.safe_dump(seed[key], default_flow_style=True).removesuffix("...\n").strip()
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {value}}}\n" if section else f"{name}: {value}\n"
    assert seed[key] != original[key]
    expected = original | {key: seed[key]}
    assert resolved(SMALL + "style: nvlabs\n" + line) == expected
    assert resolved(SMALL + "style: nvlabs\n", f"{key}={value}") == expected


@pytest.mark.parametrize("warm_up", ["warmup_epochs: 12.0", "warmup_steps: 500"])
def test_given_warmup_replaces_the_styles_portion(warm_up):
    key, _, value = warm_up.partition(": ")
    schedule = parse_config(SMALL + f"style: nvlabs\ntraining_parameters: {{{warm_up}}}\n").training_parameters
    assert schedule.warmup_portion is None
    assert getattr(schedule, key) == float(value)
    assert schedule.warmup_delay_portion == 1e-4, "the rest of the style stays"
    assert schedule == parse_config(SMALL, ["style=nvlabs", f"training_parameters.{key}={value}"]).training_parameters


def test_last_given_warmup_counts():
    """A file, such as that of an earlier run, gives the warm-up in one way; an override in another."""
    text = "style: nvlabs\n" + SMALL + "training_parameters: {warmup_epochs: 30.0, warmup_portion: 0.3}\n"
    assert parse_config(text).training_parameters.warmup_portion == 0.3, "both, as in a resolved config"
    for key, value in (("warmup_epochs", 5.0), ("warmup_steps", 7), ("warmup_portion", 0.1)):
        schedule = parse_config(text, [f"training_parameters.{key}={value}"]).training_parameters
        assert getattr(schedule, key) == value
        assert schedule.warmup_steps is None or key == "warmup_steps"
        assert schedule.warmup_portion is None or key == "warmup_portion"
    text = SMALL + "training_parameters: {learning_rate_warmup_steps: 100}\n"
    schedule = parse_config(text, ["training_parameters.learning_rate_warmup_epochs=2"]).training_parameters
    assert (schedule.learning_rate_warmup_epochs, schedule.learning_rate_warmup_steps) == (2, None)
    text = SMALL + "training_parameters: {learning_rate_warmup_epochs: 3}\n"
    schedule = parse_config(text, ["training_parameters.learning_rate_warmup_steps=null"]).training_parameters
    assert (schedule.learning_rate_warmup_epochs, schedule.learning_rate_warmup_steps) == (3, None)
    empty = "style: nvlabs\n" + SMALL + "training_parameters: {warmup_steps: }\n"
    assert parse_config(empty).training_parameters.warmup_portion == 0.3


def test_single_group_of_nvlabs_is_a_plain_vae_by_default():
    single = SMALL.replace("number_of_scales: 2", "number_of_scales: 1")
    assert parse_config(single, ["style=nvlabs"]).plain_vae
    assert not parse_config(single, ["style=nvlabs", "plain_vae=False"]).plain_vae
    assert not parse_config(SMALL, ["style=nvlabs"]).plain_vae
    assert not parse_config(single, ["style=nvlabs", "initial_splits_per_scale=2"]).plain_vae
    assert not parse_config(single).plain_vae


def test_styles_are_not_changed_by_loading():
    before = repr(STYLES)
    parse_config(SMALL + "style: nvlabs\ntraining_parameters: {warmup_steps: 3}\n", ["n_mix=3"])
    parse_config(SMALL + "style: nvlabs\n", ["number_of_scales=1"])
    assert repr(STYLES) == before


# ----------------------------------------------------------------------------------------------------- overrides


def test_override_sets_any_key():
    overrides = [
        "latent_size=6",
        "latent_size=7",  # the last one counts
        "training_parameters.epochs=3",
        "training_parameters.gradient_clipping=",
        "training_parameters.optimizer_betas=[0.5, 0.9]",
        "dataset.path=a=b",
        "fixed_flows=True",
    ]
    config = parse_config(SMALL + "training_parameters: {epochs: 9, batch_size: 5}\n", overrides)
    assert (config.latent_size, config.dataset.path, config.fixed_flows) == (7, "a=b", True)
    schedule = config.training_parameters
    assert (schedule.epochs, schedule.batch_size, schedule.optimizer_betas) == (3, 5, (0.5, 0.9))
    assert parse_config(SMALL, ["training_parameters={epochs: 3}"]).training_parameters.epochs == 3


@pytest.mark.parametrize(
    "text",
    ["photos #1", "2024", "2024-01-01", "~", "yes", "1e2", "1:30", "0x10", "a: b", "[x", "*x", "@x", '"q"', " x ", "="],
)
def test_override_of_a_key_for_any_text_takes_it_as_it_is(text):
    for section in ("", "dataset: {name: mnist}\n", "dataset: {path: other}\n"):
        assert parse_config(SMALL + section, [f"dataset.path={text}"]).dataset.path == text
    assert parse_config(SMALL, ["dataset.name=celeba", f"dataset.path={text}"]).dataset.path == text


def test_override_null_is_no_text_where_the_key_may_be_null():
    assert parse_config(SMALL + "dataset: {name: mnist, path: x}\n", ["dataset.path=null"]).dataset.path is None
    assert parse_config(SMALL, ["dataset.path=null"]).dataset.path == "null"


def test_override_of_the_background_may_be_its_hexadecimal_form():
    assert parse_config(SMALL, ["dataset.background=#ffffff"]).dataset.background == "#ffffff"


def test_override_does_not_reach_other_aliases_of_a_section():
    text = SMALL + "channel_towers: &a {encoder: 8, decoder: 8}\nnum_cells_per_block_prepost: *a\n"
    config = parse_config(text.removeprefix("channel_towers: 8\n"), ["channel_towers.encoder=4"])
    assert (config.channel_towers.encoder, config.num_cells_per_block_prepost.encoder) == (4, 8)


def test_override_of_the_family_wins_over_a_wrong_one_in_the_file():
    assert parse_config("family: x\n" + SMALL, ["latent_size=3", "family=nvae"]).latent_size == 3


# ------------------------------------------------------------------------------------- resolved and earlier files


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["training_parameters.warmup_steps=500"],
        ["training_parameters.warmup_epochs=5"],
        ["training_parameters.warmup_portion="],
        ["number_of_scales=1"],
        ["number_of_scales=1", "plain_vae=False"],
        ["num_cells_per_block_prepost={encoder: 3, decoder: 2}", "padding=2", "pixel_bits=5"],
        ["training_parameters.regularization_constant_initial=1", "sampling_method=gaussian"],
        ["dataset.name=toy_faces", "training_parameters.optimizer=adamw"],
    ],
    ids=str,
)
@pytest.mark.parametrize("style", STYLES)
def test_resolved_config_loads_as_the_same_config(style, overrides):
    config = parse_config(SMALL, [f"style={style}", *overrides])
    text = config_to_yaml(config)
    assert parse_config(text) == config
    assert config_from_dict(config.model_dump(), "a checkpoint", resolved=True) == config
    assert set(yaml.safe_load(text)) == {"resolved", *type(config).model_fields}


# Keys added after version 1, and the earlier behavior: the value of the key in a resolved config without the key. The
# defaults are these values. Who changes a default has to migrate the files without the key.
NEW_KEYS = {
    "groups_per_scale": None,
    "dataset.encoder_input": "binary",
    "dataset.validation_images": None,  # of the data sets of these files; toy_faces has another
    "dataset.validation_choice": "random",
    "dataset.split_seed": 0,
    "dataset.max_image_pixels": 64_000_000,  # earlier versions had no limit; the default lets their runs resume
    "dataset.random_crop": 0,
    "dataset.dequantize": False,
    "dataset.fit": "crop",
    "dataset.crop": None,
    "dataset.resampling": "lanczos",
    "dataset.background": "white",
    "dataset.percentiles": None,
    "dataset.sharpness": None,
    "dataset.color_jitter": None,
    "dataset.min_image_size": 1,
    "training_parameters.deterministic": False,
    "training_parameters.optimizer": "adamax",
    "training_parameters.optimizer_epsilon": 1e-3,
    "training_parameters.optimizer_betas": [0.9, 0.999],
    "training_parameters.kl_const_coeff": 1e-4,
    "training_parameters.beta_nll": 0,
    "training_parameters.gradient_skip_threshold": None,
    "training_parameters.ema_decay": None,
    "training_parameters.workers": None,
    "training_parameters.wandb": None,
    "training_parameters.learning_rate_schedule": "cosine",
    "training_parameters.learning_rate_update": "step",
    "training_parameters.plateau_patience": 10,
    "training_parameters.plateau_factor": 0.5,
    "training_parameters.early_stopping_patience": None,
    "training_parameters.gradient_accumulation": 1,
    "training_parameters.loss_scale": "nats",
    "training_parameters.learning_rate_warmup_steps": None,
    "encoder_bits": None,
    "training_parameters.max_recoveries": 3,  # of no effect on a model
    "training_parameters.sync_batch_norm": True,
    "training_parameters.keep_every": None,
    "training_parameters.evaluate_quality_every": None,
    "training_parameters.spectral_iterations": 1,
    "training_parameters.skip_high_losses": True,
    "training_parameters.max_steps_per_epoch": None,
    "training_parameters.learning_rate_period": 10.0,  # of no effect on the schedules of before
    "training_parameters.learning_rate_period_factor": 1,
    "training_parameters.compile": "auto",  # changes no number
    "training_parameters.keep_best": True,  # as the default: no number of a training depends on the key
}


def test_key_newer_than_a_resolved_config_does_not_take_the_styles_default():
    """A file of a version that did not know two of the style's keys, one of them in a section."""
    old = parse_config(SMALL, ["style=nvlabs"]).model_dump()
    del old["flow_columns"], old["training_parameters"]["spectral_exponent"]
    for config in (
        config_from_dict(old, "a checkpoint", resolved=True),
        parse_config(yaml.safe_dump({"resolved": True} | old)),
    ):
        assert (config.flow_columns, config.training_parameters.spectral_exponent) == ("right", 2)
    assert config_from_dict(old, "a new file").flow_columns == "left"


@pytest.mark.parametrize("family", ["nvae", "ladder"])
def test_resolved_config_without_a_key_has_the_earlier_default(family):
    text = SMALL if family == "nvae" else "family: ladder\nlatents_per_scale: [1]\n"
    new = parse_config(text)
    old = new.model_dump()
    del old["likelihood_tails"]
    assert new.likelihood_tails == parse_config(yaml.safe_dump(old)).likelihood_tails == "exact"
    assert config_from_dict(old, "a checkpoint", resolved=True).likelihood_tails == "original"
    assert parse_config(yaml.safe_dump({"resolved": True} | old)).likelihood_tails == "original"
    assert config_from_dict(new.model_dump(), "a checkpoint", resolved=True) == new


def test_with_default_changes_a_key_that_nobody_named():
    for given in (SMALL + "likelihood_tails: exact\n", config_to_yaml(parse_config(SMALL))):
        assert parse_config(given).with_default("likelihood_tails", "original").likelihood_tails == "exact"
    override = parse_config(SMALL, ["likelihood_tails=exact"])
    assert override.with_default("likelihood_tails", "original") is override
    unnamed = parse_config(SMALL, ["style=nvlabs"]).with_default("likelihood_tails", "original")
    assert unnamed.likelihood_tails == "original"


@pytest.mark.parametrize("style", ["seed", "nvlabs"])
@pytest.mark.parametrize("ending", ["checkpoint", "model"])
def test_config_of_a_version_1_checkpoint_keeps_its_meaning(root, style, ending):
    """Its keys are renamed, those of other data sets dropped, and every newer key is listed in NEW_KEYS."""
    path = root / "tests" / "data" / f"version1_{style}_style.{ending}"
    old = flat(migrations.migrate_config(torch.load(path, weights_only=True)["config"]))
    config = flat(load(path)["config"].model_dump())
    assert {key: config[key] for key in old} == old
    newer = {key: value for key, value in NEW_KEYS.items() if key in config}
    assert config.keys() - old.keys() == newer.keys()
    for key, value in newer.items():
        assert config[key] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize("name", migrations.OLD_DATASETS)
def test_dataset_section_with_the_keys_of_all_sets_is_migrated(name):
    section = {"name": name, "path": "x", "validation_fraction": 0.1, "training_images": 7, "validation_images": 8}
    dataset = config_from_dict(yaml.safe_load(SMALL) | {"dataset": section}, "an old config").dataset
    own = {"name": name} | {key: section[key] for key in migrations.OLD_DATASETS[name]}
    assert dataset == type(dataset)(**own)  # validation_images was a key of toy_faces alone


def test_renamed_keys_are_read_in_files_and_overrides():
    config = parse_config(SMALL + "halving_skip: shifted\npixel_range: centred\n")
    assert (config.downsample_skip, config.pixel_range) == ("shifted", "centered")
    assert parse_config(SMALL + "downsample_skip: aligned\n", ["halving_skip=shifted"]).downsample_skip == "shifted"
    with pytest.raises(ConfigError) as caught:
        parse_config(SMALL + "\nhalving_skip: x\n")
    assert (caught.value.key, caught.value.line, caught.value.got) == ("downsample_skip", 6, "x")
    with pytest.raises(ConfigError) as caught:
        parse_config(SMALL + "halving_skip: shifted\ndownsample_skip: shifted\n")
    assert (caught.value.kind, caught.value.key, caught.value.line) == ("unknown_key", "halving_skip", 5)


# ---------------------------------------------------------------------------------------------- finding the file


@pytest.mark.parametrize("ending", ["yml", "YAML", "Yml"])
def test_config_is_found_by_path(tmp_path, ending):
    file = tmp_path / f"elsewhere.{ending}"
    file.write_text(SMALL)
    assert config_path(str(file)) == file
    assert load_config(file, ["latent_size=9"]).latent_size == 9
    assert file.read_text() == SMALL


def test_working_directory_comes_before_the_package(tmp_path, monkeypatch):
    folder = tmp_path / "model_configs"
    folder.mkdir()
    (folder / "own.yaml").write_text(SMALL)
    (folder / "tiny.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert {"own", "penguin"} <= set(available_configs())
    assert load_config("own").latent_size == load_config("tiny").latent_size == 4
    assert load_config("penguin").latent_size == 20


@pytest.mark.slow
def test_configs_travel_in_the_package(root, tmp_path):
    """What setuptools puts into a wheel, used in an empty folder; torch stays unloaded."""
    pytest.importorskip("setuptools")
    setup = [sys.executable, "setup.py", "-q", "egg_info", "--egg-base", str(tmp_path), "build_py", "--build-lib"]
    subprocess.run([*setup, str(tmp_path / "installed")], cwd=root, check=True, capture_output=True)
    code = "import sys, nvae; print(nvae.load_config('quickstart').latent_size, 'torch' in sys.modules)"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed")}
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "elsewhere", env=environment, capture_output=True, text=True
    )
    assert result.stdout.split() == ["8", "False"], result.stderr
    assert (tmp_path / "installed" / "nvae" / "data" / "loaders" / "toy_face_attributes.yaml").is_file()


def test_beta_needs_a_likelihood_with_scales():
    overrides = ["training_parameters.beta_nll=0.5", "sampling_method=bernoulli", "dataset.binarize=false"]
    with pytest.raises(ConfigError) as error:
        load_config("nvae_small", [*overrides, "image_channels=1"])
    assert error.value.key == "training_parameters.beta_nll"
