"""The YAML schema: what loads, and the one sentence that says what is wrong with what does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from nvae.config import (
    ConfigError,
    available_configs,
    config_from_dict,
    config_path,
    config_to_yaml,
    flat,
    load_config,
    parse_config,
)
from nvae.models.nvae.config import STYLES, groups_per_scale
from nvae.schema import ModelConfig

SMALL = """channel_towers: 8
number_of_scales: 2
initial_splits_per_scale: 1
latent_size: 4
"""

# The table of shared/reference/seed_configs.md; what it leaves out has the seed's default.
EVERY_SEED = {
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
SEEDS = {
    "big_logistic_mixture20latentnoflows": {
        "channel_towers": 32,
        "number_of_scales": 3,
        "initial_splits_per_scale": 3,
        "latent_size": 20,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 1,
        "sampling_method": "logistic_mixture",
        "n_mix": 10,
        "fixed_flows": True,
        "learning_rate": 0.01,
        "regularization_constant": 0.1,
        "kl_constant": 1,
        "warmup_epochs": 50,
        "batch_size": 40,
        "write_reconstruction": False,
        "epochs_per_checkpoint": 2,
        "epochs": 200,
    },
    "gaussian_mixture": {
        "channel_towers": 32,
        "number_of_scales": 3,
        "initial_splits_per_scale": 1,
        "latent_size": 2,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 1,
        "sampling_method": "gaussian_mixture",
        "n_mix": 3,
    },
    "gaussian_mixture5latent": {
        "channel_towers": 32,
        "number_of_scales": 4,
        "initial_splits_per_scale": 1,
        "latent_size": 10,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 1,
        "sampling_method": "gaussian_mixture",
        "n_mix": 5,
        "learning_rate": 0.01,
        "regularization_constant": 0.05,
        "kl_constant": 1,
        "warmup_epochs": 30,
        "batch_size": 16,
        "write_reconstruction": True,
        "epochs_per_checkpoint": 2,
    },
    "large_logistic_mixture20latentnoflows": {
        "channel_towers": 32,
        "number_of_scales": 3,
        "initial_splits_per_scale": 10,
        "latent_size": 20,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 2,
        "min_splits": 5,
        "sampling_method": "logistic_mixture",
        "n_mix": 10,
        "fixed_flows": True,
        "learning_rate": 0.01,
        "regularization_constant": 0.1,
        "kl_constant": 1,
        "warmup_epochs": 50,
        "batch_size": 16,
        "write_reconstruction": True,
        "epochs_per_checkpoint": 1,
        "epochs": 100,
    },
    "logistic_mixture10latent": {
        "channel_towers": 32,
        "number_of_scales": 4,
        "initial_splits_per_scale": 1,
        "latent_size": 10,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 1,
        "sampling_method": "logistic_mixture",
        "n_mix": 10,
        "fixed_flows": True,
        "learning_rate": 0.01,
        "regularization_constant": 0.05,
        "kl_constant": 1,
        "warmup_epochs": 60,
        "batch_size": 32,
        "write_reconstruction": False,
        "epochs_per_checkpoint": 2,
        "epochs": 400,
    },
    "penguin": {
        "channel_towers": 32,
        "number_of_scales": 3,
        "initial_splits_per_scale": 6,
        "latent_size": 20,
        "num_flows": 0,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "exponential_scaling": 1,
        "sampling_method": "logistic_mixture",
        "n_mix": 10,
        "fixed_flows": False,
        "learning_rate": 0.01,
        "regularization_constant": 0.1,
        "kl_constant": 1,
        "warmup_epochs": 50,
        "batch_size": 32,
        "write_reconstruction": False,
        "epochs_per_checkpoint": 1,
        "epochs": 200,
        "half_precision": True,
        "use_tensor_checkpoints": False,
    },
    "tiny": {
        "channel_towers": 64,
        "number_of_scales": 3,
        "initial_splits_per_scale": 1,
        "latent_size": 1,
        "num_flows": 1,
        "cells_per_split_enc": 3,
        "cells_per_input_dec": 3,
        "exponential_scaling": 1,
        "fixed_flows": True,
    },
}


def message_of(text: str, *overrides: str) -> str:
    """What a person reads when the text is refused."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, source="my.yaml")
    message = str(caught.value)
    assert "\n" not in message
    assert re.search(r"[.?)]$", message), "not a sentence"
    assert ".." not in message
    assert "??" not in message
    return message


# -------------------------------------------------------------------------------------------- the seed's files


@pytest.mark.parametrize("name", SEEDS)
def test_the_seeds_files_have_the_seeds_values(name):
    config = load_config(name)
    training = dict(config.training_parameters)
    for key, expected in (EVERY_SEED | SEEDS[name]).items():
        if key in ("channel_towers", "num_cells_per_block_prepost"):
            assert dict(getattr(config, key)) == {"encoder": expected, "decoder": expected}
        else:
            assert (training[key] if key in training else getattr(config, key)) == expected, key
    assert (config.style, config.image_channels, config.likelihood_tails) == ("mgp123", 3, "original")
    assert (config.dataset.name, config.dataset.path) == ("folder", "dataset")


def test_every_file_in_model_configs_loads_and_is_listed(root):
    files = sorted((root / "model_configs").glob("*.yaml"))
    assert {file.stem for file in files} >= set(SEEDS)
    assert {file.stem for file in files} <= set(available_configs())
    for file in files:
        assert load_config(file) == load_config(file.stem)


# -------------------------------------------------------------------------------------------------- what loads


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
    ],
    ids=str,
)
def test_groups_per_scale_are_divided_from_the_finest_on_down_to_the_minimum(make_config, changes, expected):
    assert groups_per_scale(make_config(**changes)) == expected


def test_one_number_of_channels_is_for_both_towers():
    assert dict(parse_config(SMALL).channel_towers) == {"encoder": 8, "decoder": 8}
    both = SMALL.replace("channel_towers: 8", "channel_towers: {encoder: 8, decoder: 16}")
    assert dict(parse_config(both).channel_towers) == {"encoder": 8, "decoder": 16}


@pytest.mark.parametrize(
    ("text", "number"), [("1e-2", 0.01), ("1.5E-3", 0.0015), ("2e+1", 20.0), ("1e1", 10.0), ("0.5", 0.5), ("3", 3.0)]
)
def test_numbers_may_be_written_with_an_exponent(text, number):
    """YAML 1.1, which PyYAML reads, takes 1e-2 for a text."""
    in_file = parse_config(SMALL + f"training_parameters:\n  learning_rate: {text}\n")
    on_command_line = parse_config(SMALL, [f"training_parameters.learning_rate={text}"])
    assert in_file.training_parameters.learning_rate == number
    assert on_command_line.training_parameters.learning_rate == number


def test_texts_that_only_look_like_numbers_stay_texts():
    config = parse_config(SMALL + "dataset: {path: e5}\n")
    assert config.dataset.path == "e5"


def test_a_config_survives_being_written_and_read(make_config):
    config = make_config(
        channel_towers={"encoder": 8, "decoder": 12},
        sampling_method="logistic_mixture",
        training_parameters={"learning_rate": 3e-4, "gradient_clipping": 200.0, "epochs_per_checkpoint": None},
    )
    text = config_to_yaml(config)
    assert parse_config(text) == config
    assert config_from_dict(yaml.safe_load(text), "a checkpoint") == config
    assert config != make_config()
    assert set(yaml.safe_load(text)) == set(type(config).model_fields), "defaults are spelled out"


def test_a_validated_config_cannot_be_changed(config):
    with pytest.raises(ValueError, match="frozen"):
        config.latent_size = 3


def test_flat_turns_sections_into_dotted_keys():
    nested = {"a": 1, "b": {"c": 2, "d": {"e": [3]}}}
    assert flat(nested) == {"a": 1, "b.c": 2, "b.d.e": [3]}


def test_cells_per_block_may_differ_between_the_two_ends():
    assert dict(parse_config(SMALL + "num_cells_per_block_prepost: 3\n").num_cells_per_block_prepost) == {
        "encoder": 3,
        "decoder": 3,
    }
    both = parse_config(SMALL + "num_cells_per_block_prepost: {encoder: 3, decoder: 1}\n")
    assert dict(both.num_cells_per_block_prepost) == {"encoder": 3, "decoder": 1}
    assert message_of(SMALL + "num_cells_per_block_prepost: few\n") == (
        "my.yaml, line 5: num_cells_per_block_prepost is the text 'few'; allowed: a whole number, or a list of "
        "'key: value' lines."
    )
    assert "num_cells_per_block_prepost.decoder is 0; allowed: more than 0" in message_of(
        SMALL + "num_cells_per_block_prepost: {encoder: 3, decoder: 0}\n"
    )


# --------------------------------------------------------------------------------------------------------- styles

# What DESIGN.md and shared/reference/README.md say of the original NVAE, where it differs from the seed.
NVLABS = {
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
    "training_parameters.spectral_scope": "all",
}


def resolved(text: str, *overrides: str) -> dict:
    return flat(parse_config(text, overrides).model_dump())


def test_the_style_fills_in_what_the_file_does_not_say():
    seed, original = resolved(SMALL), resolved(SMALL + "style: nvlabs\n")
    different = {key: value for key, value in original.items() if value != seed[key]}
    assert different == {"style": "nvlabs"} | NVLABS
    assert resolved(SMALL + "style: mgp123\n") == seed
    assert resolved(SMALL, "style=nvlabs") == original


def test_the_style_fills_in_sections_that_the_file_has():
    original = resolved(SMALL + "style: nvlabs\n")
    epochs = resolved(SMALL + "style: nvlabs\ntraining_parameters: {epochs: 7}\n")
    assert epochs == original | {"training_parameters.epochs": 7}


@pytest.mark.parametrize("key", NVLABS)
def test_what_the_file_says_wins_over_the_style(key):
    """Every one of the keys, with the seed's value for it, in the file and on the command line."""
    seed, original = resolved(SMALL), resolved(SMALL + "style: nvlabs\n")
    value = yaml.safe_dump(seed[key], default_flow_style=True).removesuffix("...\n").strip()
    section, _, name = key.rpartition(".")
    line = f"{section}: {{{name}: {value}}}\n" if section else f"{name}: {value}\n"
    assert seed[key] != original[key]
    expected = original | {key: seed[key]}
    assert resolved(SMALL + "style: nvlabs\n" + line) == expected
    assert resolved(SMALL + "style: nvlabs\n", f"{key}={value}") == expected


@pytest.mark.parametrize("warm_up", ["warmup_epochs: 12.0", "warmup_steps: 500"])
def test_another_warm_up_in_the_file_silences_the_styles_portion(warm_up):
    key, _, value = warm_up.partition(": ")
    schedule = parse_config(SMALL + f"style: nvlabs\ntraining_parameters: {{{warm_up}}}\n").training_parameters
    assert schedule.warmup_portion is None
    assert getattr(schedule, key) == float(value)
    assert schedule.warmup_delay_portion == 1e-4, "the rest of the style stays"
    assert schedule == parse_config(SMALL, ["style=nvlabs", f"training_parameters.{key}={value}"]).training_parameters


def test_a_portion_in_the_file_stands_beside_epochs_in_the_file():
    """As in a resolved config, which has both: the portion is what counts."""
    schedule = "training_parameters: {warmup_epochs: 12.0, warmup_portion: 0.5}\n"
    assert parse_config(SMALL + "style: nvlabs\n" + schedule).training_parameters.warmup_portion == 0.5


def test_a_styles_single_group_is_a_plain_vae_unless_the_file_says_no():
    single = SMALL.replace("number_of_scales: 2", "number_of_scales: 1")
    assert parse_config(single, ["style=nvlabs"]).plain_vae
    assert not parse_config(single, ["style=nvlabs", "plain_vae=False"]).plain_vae
    assert not parse_config(SMALL, ["style=nvlabs"]).plain_vae
    assert not parse_config(single, ["style=nvlabs", "initial_splits_per_scale=2"]).plain_vae
    assert not parse_config(single).plain_vae


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
    ],
    ids=str,
)
@pytest.mark.parametrize("style", STYLES)
def test_a_resolved_config_of_any_style_loads_as_the_same_config(style, overrides):
    config = parse_config(SMALL, [f"style={style}", *overrides])
    assert parse_config(config_to_yaml(config)) == config
    assert config_from_dict(config.model_dump(), "a checkpoint") == config


def test_a_styles_own_values_are_never_changed_by_a_config():
    before = repr(STYLES)
    parse_config(SMALL + "style: nvlabs\ntraining_parameters: {warmup_steps: 3}\n", ["n_mix=3"])
    parse_config(SMALL + "style: nvlabs\n", ["number_of_scales=1"])
    assert repr(STYLES) == before


def test_an_unknown_style_is_answered_with_those_there_are():
    assert message_of(SMALL + "style: nvidia\n") == (
        "my.yaml, line 5: style is the text 'nvidia'; allowed: 'mgp123' or 'nvlabs'."
    )
    assert message_of(SMALL + "style: [nvlabs]\n") == (
        "my.yaml, line 5: style is a list; allowed: 'mgp123' or 'nvlabs'."
    )


def test_a_wrong_section_is_told_in_any_style():
    assert message_of(SMALL + "style: nvlabs\ntraining_parameters: 3\n") == (
        "my.yaml, line 6: training_parameters is 3; allowed: a list of 'key: value' lines."
    )
    assert "line 6: training_parameters.epohcs is not a key" in message_of(
        SMALL + "style: nvlabs\ntraining_parameters: {epohcs: 3}\n"
    )


def test_a_config_of_an_older_checkpoint_loads_as_the_seeds_style():
    """What the program saved before it knew the original NVAE: fewer keys, one number of cells for both ends."""
    older = {
        "family": "nvae",
        "style": "mgp123",
        "channel_towers": {"encoder": 8, "decoder": 8},
        "number_of_scales": 2,
        "initial_splits_per_scale": 1,
        "exponential_scaling": 1,
        "min_splits": 1,
        "latent_size": 4,
        "input_dimension": 64,
        "image_channels": 3,
        "num_flows": 1,
        "fixed_flows": True,
        "num_blocks_prepost": 1,
        "num_cells_per_block_prepost": 3,
        "cells_per_split_enc": 2,
        "cells_per_input_dec": 2,
        "channel_multiplier": 2,
        "sampling_method": "logistic_mixture",
        "n_mix": 3,
        "likelihood_tails": "exact",
        "dataset": {
            "name": "toy_faces",
            "path": "dataset",
            "validation_fraction": 0.05,
            "training_images": 6000,
            "validation_images": 300,
        },
        "training_parameters": {
            "learning_rate": 0.01,
            "learning_rate_min": 1e-05,
            "learning_rate_warmup_epochs": 1.0,
            "regularization_constant": 0.05,
            "kl_constant": 1.0,
            "warmup_epochs": 30.0,
            "epochs": 100,
            "batch_size": 20,
            "write_reconstruction": True,
            "images_per_checkpoint": None,
            "epochs_per_checkpoint": 2,
            "gradient_clipping": None,
            "half_precision": False,
            "use_tensor_checkpoints": False,
            "seed": 0,
        },
    }
    config = config_from_dict(older, "a checkpoint")
    expected = flat(older) | dict.fromkeys(
        ("num_cells_per_block_prepost.encoder", "num_cells_per_block_prepost.decoder"), 3
    )
    del expected["num_cells_per_block_prepost"]
    found = flat(config.model_dump())
    assert {key: found[key] for key in expected} == expected
    seed = resolved(SMALL)
    assert {key: found[key] for key in found if key not in expected} == {
        key: seed[key] for key in found if key not in expected
    }


# ---------------------------------------------------------------------------------------------- finding the file


@pytest.mark.parametrize(("wrong", "right"), [("tini", "tiny"), ("pengiun", "penguin"), ("model_configs/tiny", "tiny")])
def test_an_unknown_config_is_answered_with_the_nearest_names(wrong, right):
    with pytest.raises(ConfigError) as caught:
        load_config(wrong)
    found, _, nearest = str(caught.value).partition("did you mean")
    assert f"'{wrong}'" in found
    assert right in nearest
    assert "large_logistic" not in nearest


def test_a_name_like_no_other_is_answered_with_all_names():
    with pytest.raises(ConfigError) as caught:
        load_config("qqqqqq")
    assert all(name in str(caught.value) for name in SEEDS)


def test_a_config_is_found_by_path_and_in_the_working_directory(tmp_path, monkeypatch):
    file = tmp_path / "elsewhere.yml"
    file.write_text(SMALL)
    assert load_config(file).latent_size == 4
    assert config_path(str(file)) == file
    folder = tmp_path / "model_configs"
    folder.mkdir()
    (folder / "own.yaml").write_text(SMALL)
    (folder / "tiny.yaml").write_text(SMALL)
    monkeypatch.chdir(tmp_path)
    assert "own" in available_configs()
    assert "penguin" in available_configs()
    assert load_config("own").latent_size == 4
    assert load_config("tiny").latent_size == 4, "the working directory comes first"
    assert load_config("penguin").latent_size == 20


def test_a_file_that_is_not_text_is_refused_in_one_sentence(tmp_path):
    file = tmp_path / "image.yaml"
    file.write_bytes(b"\xff\xfe\x00\x89PNG")
    with pytest.raises(ConfigError, match=r"image\.yaml cannot be read as a text file"):
        load_config(file)


def test_messages_name_the_file(tmp_path):
    file = tmp_path / "broken.yaml"
    file.write_text(SMALL + "latent_sice: 3\n")
    with pytest.raises(ConfigError, match=re.escape(f"{file}, line 5: ")):
        load_config(file)


# ------------------------------------------------------------------------------------------------- malformed YAML


@pytest.mark.parametrize(
    ("extra", "line"),
    [
        ("n_mix: [1, 2\n", 6),  # the list has no end, which shows on the line after
        ("n_mix: 3\n  n_flows: 2\n", 6),
        ("\tn_mix: 3\n", 5),
        ("n_mix: 'three\n", 6),
        ("n_mix: !!python/object:os.system x\n", 5),
        ("? [1]\n: 2\n", 5),
        ("---\nn_mix: 3\n", 5),
    ],
)
def test_malformed_yaml_is_refused_with_its_line(extra, line):
    assert message_of(SMALL + extra).startswith(f"my.yaml, line {line}: this is not valid YAML (")


def test_a_character_that_yaml_forbids_is_refused():
    assert message_of(SMALL + "n_mix: \x07\n").startswith("my.yaml: this is not valid YAML (")


def test_a_section_that_contains_itself_is_refused():
    assert "contains itself" in message_of(SMALL + "training_parameters: &a {epochs: *a}\n")


@pytest.mark.parametrize(("text", "held"), [("- a\n- b\n", "a list"), ("hello", "the text 'hello'"), ("3", "3")])
def test_a_file_that_is_not_a_list_of_keys_is_refused(text, held):
    assert message_of(text) == f"my.yaml: a config is a list of 'key: value' lines, but this file holds {held}."


def test_an_empty_file_is_told_its_first_missing_key():
    assert message_of("") == (
        "my.yaml: the key channel_towers is missing; every config must say it (3 more after this one)."
    )


@pytest.mark.parametrize("key", ["channel_towers", "number_of_scales", "initial_splits_per_scale", "latent_size"])
def test_a_key_that_every_config_needs_is_missed_by_name(key):
    text = "".join(line for line in SMALL.splitlines(True) if not line.startswith(key))
    assert message_of(text) == f"my.yaml: the key {key} is missing; every config must say it."


def test_a_key_that_stands_twice_is_refused_with_its_second_line():
    assert message_of(SMALL + "latent_size: 5\n") == (
        "my.yaml, line 5: latent_size stands here a second time; keep one of the two."
    )
    assert message_of(SMALL + "training_parameters:\n  epochs: 3\n  batch_size: 2\n  epochs: 4\n") == (
        "my.yaml, line 8: training_parameters.epochs stands here a second time; keep one of the two."
    )


# ---------------------------------------------------------------------------------------------------- wrong keys


@pytest.mark.parametrize(
    ("extra", "line", "found", "nearest"),
    [
        ("latent_sise: 3\n", 5, "latent_sise", "latent_size"),
        ("n_mixes: 3\n", 5, "n_mixes", "n_mix"),
        ("training_parameters:\n  epohcs: 3\n", 6, "training_parameters.epohcs", "epochs"),
        ("\n\ndataset: {nam: folder}\n", 7, "dataset.nam", "name"),
        ("trainingparameters: {epochs: 3}\n", 5, "trainingparameters", "training_parameters"),
    ],
)
def test_an_unknown_key_is_answered_with_the_nearest_key(extra, line, found, nearest):
    expected = f"my.yaml, line {line}: {found} is not a key of a config; did you mean {nearest}?"
    assert message_of(SMALL + extra) == expected


def test_an_unknown_key_like_no_other_is_answered_with_the_keys_of_its_section():
    top = message_of(SMALL + "zzz: 3\n")
    assert top.startswith("my.yaml, line 5: zzz is not a key of a config; the keys here are family, ")
    assert all(key in top for key in ModelConfig.model_fields)
    below = message_of(SMALL + "dataset: {zzz: 3}\n")
    assert "dataset.zzz is not a key of a config; the keys here are name, path, " in below
    assert "latent_size" not in below
    towers = message_of(SMALL.replace("towers: 8", "towers: {encoder: 8, decoder: 8, both: 8}"))
    assert towers.startswith("my.yaml, line 1: channel_towers.both is not a key")
    assert "the keys here are encoder, decoder." in towers


def test_a_dotted_key_in_a_file_is_an_unknown_key():
    """Dots are for the command line; a key with dots must not be looked up as a section."""
    assert message_of(SMALL + "foo.bar: 3\n").startswith("my.yaml, line 5: foo.bar is not a key of a config; ")


def test_of_several_problems_the_first_is_told_and_the_others_counted():
    message = message_of(SMALL + "latent_sise: 3\nn_mixes: 3\n")
    assert message.endswith("latent_sise is not a key of a config; did you mean latent_size? (1 more after this one)")
    message = message_of(SMALL + "n_mix: 0\nnum_flows: -1\n")
    assert "(1 more after this one)" in message


# ------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("extra", "line", "key", "found", "allowed"),
    [
        ("n_mix: x\n", 5, "n_mix", "the text 'x'", "a whole number"),
        ("n_mix: '3'\n", 5, "n_mix", "the text '3'", "a whole number"),
        ("n_mix: 3.0\n", 5, "n_mix", "3.0", "a whole number"),
        ("n_mix: True\n", 5, "n_mix", "True", "a whole number"),
        ("n_mix:\n", 5, "n_mix", "empty", "a whole number"),
        ("n_mix: [3]\n", 5, "n_mix", "a list", "a whole number"),
        ("n_mix: {a: 3}\n", 5, "n_mix", "a section", "a whole number"),
        ("n_mix: 0\n", 5, "n_mix", "0", "more than 0"),
        ("num_flows: -1\n", 5, "num_flows", "-1", "at least 0"),
        ("fixed_flows: 1\n", 5, "fixed_flows", "1", "True or False"),
        ("fixed_flows: 'yes'\n", 5, "fixed_flows", "the text 'yes'", "True or False"),
        ("image_channels: 2\n", 5, "image_channels", "2", "1 or 3"),
        ("likelihood_tails: long\n", 5, "likelihood_tails", "the text 'long'", "'original' or 'exact'"),
        ("dataset: {path: 3}\n", 5, "dataset.path", "3", "a text"),
        ("dataset:\n  validation_fraction: 1.5\n", 6, "dataset.validation_fraction", "1.5", "less than 1.0"),
        ("dataset: faces\n", 5, "dataset", "the text 'faces'", "a list of 'key: value' lines"),
        ("training_parameters: 3\n", 5, "training_parameters", "3", "a list of 'key: value' lines"),
        ("training_parameters:\n", 5, "training_parameters", "empty", "a list of 'key: value' lines"),
        (
            "training_parameters:\n  epochs: 3\n  learning_rate: fast\n",
            7,
            "training_parameters.learning_rate",
            "the text 'fast'",
            "a number",
        ),
        ("training_parameters: {epochs: 1e2}\n", 5, "training_parameters.epochs", "100.0", "a whole number"),
        ("training_parameters: {learning_rate: 0}\n", 5, "training_parameters.learning_rate", "0", "more than 0.0"),
        ("training_parameters: {seed: -1}\n", 5, "training_parameters.seed", "-1", "at least 0"),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_what_is_allowed(extra, line, key, found, allowed):
    assert message_of(SMALL + extra) == f"my.yaml, line {line}: {key} is {found}; allowed: {allowed}."


@pytest.mark.parametrize("method", ["bernouli", "Gaussian", 3])
def test_an_unknown_likelihood_is_answered_with_those_there_are(method):
    message = message_of(SMALL + f"sampling_method: {method}\n")
    assert message.startswith("my.yaml, line 5: sampling_method is ")
    assert all(f"'{name}'" in message for name in ("gaussian", "gaussian_mixture", "logistic", "logistic_mixture"))


@pytest.mark.parametrize(("text", "shown"), [(".nan", "nan"), (".inf", "inf"), ("-.inf", "-inf")])
def test_numbers_that_are_not_finite_are_refused(text, shown):
    for key in ("learning_rate", "kl_constant", "gradient_clipping"):
        message = message_of(SMALL + f"training_parameters:\n  {key}: {text}\n")
        assert message == f"my.yaml, line 6: training_parameters.{key} is {shown}; allowed: a finite number."


@pytest.mark.parametrize("value", ["wide", "32.5", "True", "[8, 8]"])
def test_channel_towers_may_be_a_number_or_a_section_and_nothing_else(value):
    message = message_of(SMALL.replace("channel_towers: 8", f"channel_towers: {value}"))
    assert message.startswith("my.yaml, line 1: channel_towers is ")
    assert message.endswith("; allowed: a whole number, or a list of 'key: value' lines.")


def test_a_tower_without_channels_is_refused():
    message = message_of(SMALL.replace("channel_towers: 8", "channel_towers: {encoder: 8}"))
    assert message == "my.yaml, line 1: the key channel_towers.decoder is missing; every config must say it."
    message = message_of(SMALL.replace("channel_towers: 8", "channel_towers: 0"))
    assert message.startswith("my.yaml, line 1: channel_towers.encoder is 0; allowed: more than 0")


# ------------------------------------------------------------------------------------------ impossible combinations


def test_a_resolution_that_does_not_halve_evenly_is_refused():
    assert message_of(SMALL + "input_dimension: 30\n") == (
        "my.yaml, line 5: input_dimension is 30, which num_blocks_prepost 1 and number_of_scales 2 halve 2 times; "
        "allowed: a multiple of 4 in all."
    )
    assert parse_config(SMALL + "input_dimension: 28\n").input_dimension == 28
    assert "a multiple of 8" in message_of(SMALL + "input_dimension: 28\nnum_blocks_prepost: 2\n")


def test_padding_counts_on_both_sides_of_a_resolution_that_must_halve():
    assert message_of(SMALL + "input_dimension: 28\npadding: 1\n") == (
        "my.yaml, line 5: input_dimension is 28 plus 2 of padding, which num_blocks_prepost 1 and number_of_scales 2 "
        "halve 2 times; allowed: a multiple of 4 in all."
    )
    deep = SMALL.replace("number_of_scales: 2", "number_of_scales: 4") + "num_blocks_prepost: 2\ninput_dimension: 28\n"
    assert "input_dimension is 28, which" in message_of(deep)
    assert "input_dimension is 28 plus 6 of padding" in message_of(deep + "padding: 3\n")
    assert parse_config(deep + "padding: 2\n").padding == 2


def test_a_plain_vae_of_several_groups_is_refused():
    assert message_of(SMALL + "plain_vae: True\n") == (
        "my.yaml, line 5: plain_vae is True with 2 scales of 1 groups; allowed: one scale of one group, or False."
    )
    single = SMALL.replace("number_of_scales: 2", "number_of_scales: 1")
    assert parse_config(single + "plain_vae: True\n").plain_vae
    assert "plain_vae is True with 1 scales of 3 groups" in message_of(
        single + "plain_vae: True\n", "initial_splits_per_scale=3"
    )


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_channels_that_do_not_divide_into_eight_groups_are_refused(tower):
    """mbconv_den's convolutions are of three times the channels."""
    towers = {"encoder": 8, "decoder": 8} | {tower: 10}
    text = SMALL.replace("channel_towers: 8", f"channel_towers: {towers}".replace("'", ""))
    assert parse_config(text.replace("10", "12")).channel_towers
    assert message_of(text + "arch_instance: mbconv_den\n") == (
        f"my.yaml, line 1: channel_towers has 10 channels in the {tower}, which mbconv_den puts into 8 groups; "
        "allowed: a multiple of 8."
    )
    for fits in ("16", "8"):
        parse_config(text.replace("10", fits) + "arch_instance: mbconv_den\n")
    parse_config(text + "arch_instance: mbconv_den\nnum_blocks_prepost: 0\n")


def test_a_coupled_mixture_of_grey_images_is_refused():
    expected = (
        "sampling_method is coupled_logistic_mixture with image_channels 1; allowed: 3 channels, or bernoulli or "
        "logistic_mixture for gray images."
    )
    extra = "image_channels: 1\nsampling_method: coupled_logistic_mixture\n"
    assert message_of(SMALL + extra) == f"my.yaml, line 6: {expected}"
    assert message_of(SMALL + "style: nvlabs\nimage_channels: 1\n") == f"my.yaml: {expected}", "the style's own choice"
    assert parse_config(SMALL + "style: nvlabs\nimage_channels: 1\nsampling_method: bernoulli\n").image_channels == 1


def test_black_and_white_images_without_coins_are_refused():
    assert message_of(SMALL + "dataset: {binarize: True}\n") == (
        "my.yaml, line 5: dataset.binarize is True with sampling_method gaussian; allowed: bernoulli, or False."
    )
    assert parse_config(SMALL + "dataset: {binarize: True}\nsampling_method: bernoulli\n").dataset.binarize


def test_a_warm_up_in_steps_and_as_a_portion_at_once_is_refused():
    both = "training_parameters:\n  warmup_portion: 0.3\n  warmup_steps: 500\n"
    for style in STYLES:
        assert message_of(SMALL + both, f"style={style}") == (
            "my.yaml, line 7: training_parameters.warmup_steps is 500 beside warmup_portion 0.3; allowed: one of the "
            "two."
        )


def test_a_default_that_does_not_fit_is_refused_without_a_line():
    text = SMALL.replace("number_of_scales: 2", "number_of_scales: 7")
    assert message_of(text).startswith("my.yaml: input_dimension is 64, which num_blocks_prepost 1 and ")


def test_channels_that_do_not_divide_among_the_four_convolutions_of_a_skip_are_refused():
    odd = SMALL.replace("channel_towers: 8", "channel_towers: 7")
    assert message_of(odd) == (
        "my.yaml, line 1: channel_towers has 7 channels in the encoder, times channel_multiplier 2 at each halving; "
        "allowed: a product that divides by 4."
    )
    assert parse_config(odd + "channel_multiplier: 4\n").channel_multiplier == 4
    nothing_halves = odd.replace("number_of_scales: 2", "number_of_scales: 1") + "num_blocks_prepost: 0\n"
    assert parse_config(nothing_halves).channel_towers.encoder == 7


def test_a_last_learning_rate_above_the_first_is_refused():
    extra = "training_parameters:\n  learning_rate: 0.001\n  learning_rate_min: 0.01\n"
    assert message_of(SMALL + extra) == (
        "my.yaml, line 7: training_parameters.learning_rate_min is 0.01; allowed: at most learning_rate, "
        "which is 0.001."
    )
    lower = "training_parameters: {learning_rate: 1e-6}\n"
    assert "learning_rate_min is 1e-05" in message_of(SMALL + lower), "the default does not fit"


# ------------------------------------------------------------------------------------------------ the command line


def test_set_overrides_any_key():
    overrides = [
        "latent_size=7",
        "training_parameters.epochs=3",
        "training_parameters.gradient_clipping=",
        "dataset.name=toy_faces",
        "fixed_flows=True",
        "channel_towers.decoder=16",
        "num_cells_per_block_prepost.encoder=3",
    ]
    text = SMALL + "training_parameters: {epochs: 9, batch_size: 5}\nnum_cells_per_block_prepost: 4\n"
    config = parse_config(text, overrides)
    assert (config.latent_size, config.dataset.name, config.fixed_flows) == (7, "toy_faces", True)
    assert dict(config.channel_towers) == {"encoder": 8, "decoder": 16}
    assert dict(config.num_cells_per_block_prepost) == {"encoder": 3, "decoder": 4}
    assert (config.training_parameters.epochs, config.training_parameters.batch_size) == (3, 5)


def test_the_last_of_two_overrides_counts_and_a_value_may_hold_an_equals_sign():
    assert parse_config(SMALL, ["latent_size=7", "latent_size=6"]).latent_size == 6
    assert parse_config(SMALL, ["dataset.path=a=b"]).dataset.path == "a=b"
    assert parse_config(SMALL, ["training_parameters={epochs: 3}"]).training_parameters.epochs == 3


@pytest.mark.parametrize("override", ["epochs", "=3", " =3"])
def test_an_override_without_key_or_value_is_told_how_to_write_it(override):
    assert message_of(SMALL, override) == (
        f"--set {override}: write it as key=value, such as training_parameters.epochs=3."
    )


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("training_parameters.epochs=0", "training_parameters.epochs is 0; allowed: more than 0."),
        ("training_parameters.epochs=many", "training_parameters.epochs is the text 'many'; allowed: a whole number."),
        ("training_parameters={epochs: 0}", "training_parameters.epochs is 0; allowed: more than 0."),
        ("training_parameters.epoch=3", "training_parameters.epoch is not a key of a config; did you mean epochs?"),
        ("latent_sise=3", "latent_sise is not a key of a config; did you mean latent_size?"),
        ("latent_size.more=3", "latent_size is a single value."),
        ("training_parameters.epochs.more=3", "training_parameters.epochs is a single value."),
        ("latent_size=[1", "the value after '=' is not valid YAML."),
        ("latent_size=", "latent_size is empty; allowed: a whole number."),
        ("number_of_scales=8", None),
        (
            "channel_towers.middle=3",
            "channel_towers.middle is not a key of a config; the keys here are encoder, decoder.",
        ),
        (
            "training_parameters.learning_rate=.nan",
            "training_parameters.learning_rate is nan; allowed: a finite number.",
        ),
    ],
)
def test_a_wrong_override_is_told_like_a_wrong_line(override, expected):
    message = message_of(SMALL + "training_parameters:\n  epochs: 9\n", override)
    if expected is None:  # the combination with the file's own lines is what is wrong
        assert message.startswith("my.yaml: input_dimension is 64, which num_blocks_prepost 1 and number_of_scales 8")
    else:
        assert message == f"--set {override}: {expected}"


def test_an_override_in_a_section_nobody_knows_is_told_where_it_was_written():
    assert message_of(SMALL, "foo.bar=1").startswith("--set foo.bar=1: foo is not a key of a config; ")


@pytest.mark.parametrize("value", ["wide", "32.5", "True", "[8, 8]"])
def test_an_override_of_one_tower_does_not_hide_that_the_file_is_wrong(value):
    text = SMALL.replace("channel_towers: 8", f"channel_towers: {value}")
    assert message_of(text, "channel_towers.encoder=8").startswith("--set channel_towers.encoder=8: channel_towers is ")


def test_a_wrong_config_in_a_checkpoint_is_told_by_the_checkpoints_name():
    with pytest.raises(ConfigError, match=re.escape("a.checkpoint: latent_size is the text")):
        config_from_dict(yaml.safe_load(SMALL) | {"latent_size": "x"}, "saved_weights/a.checkpoint")


def test_reading_a_config_leaves_the_file_as_it_is(tmp_path):
    file: Path = tmp_path / "a.yaml"
    file.write_text(SMALL)
    load_config(file, ["latent_size=9"])
    assert file.read_text() == SMALL


def test_post_processing_that_doubles_first_needs_channels_for_eight_groups_at_full_resolution_too():
    text = (
        SMALL.replace("channel_towers: 8", "channel_towers: {encoder: 8, decoder: 4}") + "arch_instance: mbconv_den\n"
    )
    parse_config(text)  # doubles last: its grouped cells have 8 channels
    parse_config(text, ["postprocess_upsample=first", "num_cells_per_block_prepost=1"])
    with pytest.raises(ConfigError, match="has 4 channels in the decoder, which mbconv_den puts into 8 groups"):
        parse_config(text, ["postprocess_upsample=first"])


def test_one_end_may_be_set_where_the_file_says_neither():
    config = parse_config(SMALL, ["num_cells_per_block_prepost.encoder=3"])
    assert dict(config.num_cells_per_block_prepost) == {"encoder": 3, "decoder": 2}


def test_the_newest_way_to_say_how_long_the_kl_warms_up_counts():
    """A file, such as that of an earlier run, says one way; --set says another."""
    text = "style: nvlabs\n" + SMALL + "training_parameters: {warmup_epochs: 30.0, warmup_portion: 0.3}\n"
    assert parse_config(text).training_parameters.warmup_portion == 0.3
    for key, value in (("warmup_epochs", 5.0), ("warmup_steps", 7), ("warmup_portion", 0.1)):
        schedule = parse_config(text, [f"training_parameters.{key}={value}"]).training_parameters
        assert getattr(schedule, key) == value
        assert schedule.warmup_steps is None or key == "warmup_steps"
        assert schedule.warmup_portion is None or key == "warmup_portion"
    empty = "style: nvlabs\n" + SMALL + "training_parameters: {warmup_steps: }\n"
    assert parse_config(empty).training_parameters.warmup_portion == 0.3  # nothing was said
