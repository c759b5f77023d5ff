"""Errors of configs: the fields of ConfigError, one snapshot of the messages, and hostile files."""

from __future__ import annotations

import random

import pytest
import yaml

from nvae.config import ConfigError, config_from_dict, config_to_yaml, load_config, parse_config
from nvae.models.nvae.config import STYLES
from nvae.schema import ModelConfig

SMALL = """channel_towers: 8
number_of_scales: 2
initial_splits_per_scale: 1
latent_size: 4
"""


def error_of(text: str, *overrides: str) -> ConfigError:
    """Return the error of a refused text; check that the message is one printable line."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides, source="my.yaml")
    assert str(caught.value).isprintable()
    return caught.value


def test_messages_render_as_recorded(tmp_path):
    """The only test of wording: every kind of error once."""
    (tmp_path / "image.yaml").write_bytes(b"\xff\xfe\x00\x89PNG")
    with pytest.raises(ConfigError) as unreadable:
        load_config(tmp_path / "image.yaml")
    with pytest.raises(ConfigError) as unknown:
        load_config("pengiun")
    single = SMALL.replace("latent_size: 4\n", "")
    messages = {
        error.kind: str(error)
        for error in (
            unknown.value,
            unreadable.value,
            error_of(SMALL + "n_mix: 'three\n"),
            error_of(SMALL + "latent_size: 5\n"),
            error_of(SMALL + "latent_sise: 3\nn_mix: 0\n"),
            error_of(single),
            error_of(SMALL + "pixel_range: untit\n"),
            error_of(SMALL, "epochs"),
        )
    }
    assert messages == {
        "unknown_config": "unknown config 'pengiun'. Did you mean penguin?",
        "unreadable_file": f"{tmp_path / 'image.yaml'}: the file cannot be read: 'utf-8' codec can't decode byte 0xff "
        "in position 0: invalid start byte.",
        "invalid_yaml": "my.yaml, line 6: invalid YAML: found unexpected end of stream.",
        "duplicate_key": "my.yaml, line 5: duplicate key latent_size, first set on line 4. Remove one of the two.",
        "unknown_key": "my.yaml, line 5: unknown key latent_sise. Did you mean latent_size? (1 more after this one)",
        "missing_key": "my.yaml: missing required key latent_size. Add the key.",
        "invalid_value": "my.yaml, line 5: pixel_range: got 'untit', expected 'unit' or 'centered'. Did you mean unit?",
        "invalid_override": "got 'epochs', expected key=value, such as training_parameters.epochs=3.",
    }


# ---------------------------------------------------------------------------------------------- names of configs


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("tini", "tiny"),
        ("pengiun", "penguin"),
        ("model_configs/tiny", "tiny"),
        ("Pen-guin", "penguin"),
        ("qqqqqq", None),
        ("x\0", None),
    ],
)
def test_unknown_config_suggests_the_nearest_name(wrong, right):
    with pytest.raises(ConfigError) as caught:
        load_config(wrong)
    error = caught.value
    assert (error.kind, error.got, error.suggestion) == ("unknown_config", wrong, right)
    assert {"tiny", "penguin", "quickstart"} <= set(error.allowed.split(", "))


def test_config_name_may_be_of_any_length():
    with pytest.raises(ConfigError):
        load_config("x" * 5000)


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
        ("n_mix: \x07\n", 5),
        ("n_mix: !!float\n", 5),
        ("n_mix: !!int\n", 5),
        ("n_mix: !!bool maybe\n", 5),
        ("n_mix: !!timestamp x\n", 5),
        ("n_mix: " + "9" * 5000 + "\n", 5),
        ("n_mix: " + "[" * 5000 + "\n", None),
    ],
    ids=lambda value: str(value)[:30],
)
def test_malformed_yaml_is_refused_with_its_line(extra, line):
    error = error_of(SMALL + extra)
    assert (error.kind, error.file, error.line) == ("invalid_yaml", "my.yaml", line)


@pytest.mark.slow
@pytest.mark.parametrize(
    "value",
    ["!!float", "!!bool maybe", "2020-13-45", "1:" * 5000 + "1", "\x07", "[1, 2", "[" * 2000],
    ids=ascii,
)
def test_malformed_override_is_refused_with_its_text(value):
    error = error_of(SMALL, f"latent_size={value}")
    assert (error.kind, error.key, error.got) == ("invalid_value", "latent_size", value)


@pytest.mark.parametrize(
    "text", ["1:30", "2020-13-45", "2024-01-01", "0o8", "1__0", "1_", "1e", "0x", "1:" * 5000 + "1"]
)
def test_text_that_is_no_number_of_yaml_1_2_is_refused_as_a_text(text):
    error = error_of(SMALL + f"n_mix: {text}\n")
    assert (error.kind, error.key, error.line, error.got) == ("invalid_value", "n_mix", 5, text)
    assert error_of(SMALL, f"n_mix={text}").got == text


def test_yaml_aliases_cost_no_more_than_the_file():
    """Ten levels of ten aliases each: 10^10 paths to one key."""
    levels = "".join(f"x{i}: &x{i} {{{', '.join(f'a{j}: *x{i - 1}' for j in range(10))}}}\n" for i in range(1, 11))
    assert error_of(SMALL + "x0: &x0 {a: 1}\n" + levels).key == "x0"
    merges = "".join(f"x{i}: &x{i} {{<<: [{', '.join([f'*x{i - 1}'] * 10)}]}}\n" for i in range(1, 11))
    error_of(SMALL + "x0: &x0 {a: 1}\n" + merges)  # whether the file is malformed depends on PyYAML's version
    assert error_of(SMALL + "training_parameters: &a {epochs: *a}\n").key == "training_parameters.epochs"
    assert error_of("# " + "x" * 200_000).kind == "invalid_yaml"


@pytest.mark.parametrize(("text", "got"), [("- a\n- b\n", ["a", "b"]), ("hello", "hello"), ("3", 3)])
def test_file_without_keys_is_refused(text, got):
    error = error_of(text)
    assert (error.kind, error.key, error.got) == ("invalid_value", None, got)


@pytest.mark.parametrize(
    ("extra", "key", "line", "first"),
    [
        ("latent_size: 5\n", "latent_size", 5, 4),
        ("training_parameters:\n  epochs: 3\n  batch_size: 2\n  epochs: 4\n", "training_parameters.epochs", 8, 6),
    ],
)
def test_duplicate_key_is_refused_with_both_lines(extra, key, line, first):
    error = error_of(SMALL + extra)
    assert (error.kind, error.key, error.line, error.got) == ("duplicate_key", key, line, first)


# ---------------------------------------------------------------------------------------------------- wrong keys


@pytest.mark.parametrize(
    ("extra", "line", "key", "suggestion"),
    [
        ("latent_sise: 3\n", 5, "latent_sise", "latent_size"),
        ("n_mixes: 3\n", 5, "n_mixes", "n_mix"),
        ("training_parameters:\n  epohcs: 3\n", 6, "training_parameters.epohcs", "epochs"),
        ("style: nvlabs\ntraining_parameters: {epohcs: 3}\n", 6, "training_parameters.epohcs", "epochs"),
        ("\n\ndataset: {nam: folder}\n", 7, "dataset.nam", "name"),
        ("dataset: {test_images: 3}\n", 5, "dataset.test_images", None),  # of another data set
        ("trainingparameters: {epochs: 3}\n", 5, "trainingparameters", "training_parameters"),
        ("latent_size.x: 3\n", 5, "latent_size.x", "latent_size"),
        ("zzz: 3\n", 5, "zzz", None),
        ("3: 3\n", 5, "3", None),
        ('"a\\nb": 3\n', 5, "a\nb", None),
        ("resolved: 3\n", 5, "resolved", None),
    ],
)
def test_unknown_key_suggests_the_nearest_key(extra, line, key, suggestion):
    error = error_of(SMALL + extra)
    assert (error.kind, error.file, error.line, error.key) == ("unknown_key", "my.yaml", line, key)
    assert (error.suggestion, error.others) == (suggestion, 0)


def test_unknown_key_lists_the_keys_of_its_section():
    assert set(ModelConfig.model_fields) <= set(error_of(SMALL + "zzz: 3\n").allowed.split(", "))
    below = error_of(SMALL + "dataset: {zzz: 3}\n").allowed.split(", ")
    assert "path" in below
    assert "latent_size" not in below
    towers = error_of(SMALL.replace("towers: 8", "towers: {encoder: 8, decoder: 8, both: 8}"))
    assert (towers.key, towers.line, towers.allowed) == ("channel_towers.both", 1, "encoder, decoder")


@pytest.mark.parametrize("key", ["channel_towers", "number_of_scales", "initial_splits_per_scale", "latent_size"])
def test_required_key_is_reported_missing_or_misspelt(key):
    text = "".join(line for line in SMALL.splitlines(True) if not line.startswith(key))
    error = error_of(text)
    assert (error.kind, error.file, error.line, error.key, error.others) == ("missing_key", "my.yaml", None, key, 0)
    typo = error_of(text + f"{key[:-1]}: 1\n")
    assert (typo.kind, typo.key, typo.line) == ("unknown_key", key[:-1], 4)
    assert (typo.suggestion, typo.others) == (key, 0)


def test_other_problems_are_counted():
    assert (error_of("").key, error_of("").others) == ("channel_towers", 3)
    assert error_of(SMALL + "latent_sise: 3\nn_mixes: 3\n").others == 1
    assert error_of(SMALL + "n_mix: 0\nnum_flows: -1\n").others == 1
    assert error_of(SMALL.replace("channel_towers: 8", "channel_towers: {encoder: 8}")).key == "channel_towers.decoder"


# ------------------------------------------------------------------------------------------------- wrong values


@pytest.mark.parametrize(
    ("extra", "line", "key", "got", "allowed"),
    [
        ("n_mix: x\n", 5, "n_mix", "x", "a whole number from 1 to 1,000"),
        ("n_mix: '3'\n", 5, "n_mix", "3", "a whole number from 1 to 1,000"),
        ("n_mix: 3.5\n", 5, "n_mix", 3.5, "a whole number from 1 to 1,000"),
        ("n_mix: True\n", 5, "n_mix", True, "a whole number from 1 to 1,000"),
        ("n_mix:\n", 5, "n_mix", None, "a whole number from 1 to 1,000"),
        ("n_mix: [3]\n", 5, "n_mix", [3], "a whole number from 1 to 1,000"),
        ("n_mix: {a: 3}\n", 5, "n_mix", {"a": 3}, "a whole number from 1 to 1,000"),
        ("num_flows: -1\n", 5, "num_flows", -1, "a whole number from 0 to 100"),
        ("fixed_flows: 1\n", 5, "fixed_flows", 1, "True or False"),
        ("image_channels: 2\n", 5, "image_channels", 2, "1 or 3, or auto"),
        ("likelihood_tails: long\n", 5, "likelihood_tails", "long", "'original' or 'exact'"),
        ("family: nvea\n", 5, "family", "nvea", None),
        ("family: [nvae]\n", 5, "family", ["nvae"], None),
        ("style: nvidia\n", 5, "style", "nvidia", "'mgp123' or 'nvlabs'"),
        ("style: [nvlabs]\n", 5, "style", ["nvlabs"], "'mgp123' or 'nvlabs'"),
        ("dataset: {path: [3]}\n", 5, "dataset.path", [3], "a text"),
        ("dataset:\n  validation_fraction: 1.5\n", 6, "dataset.validation_fraction", 1.5, None),
        (
            "dataset: {validation_choice: last}\n",
            5,
            "dataset.validation_choice",
            "last",
            "'random', or a number of validation_images",
        ),
        (
            "dataset: {validation_images: 9, validation_choice: numpy_first, split_seed: 4294967296}\n",
            5,
            "dataset.split_seed",
            2**32,
            None,
        ),
        ("dataset: {validation_choice: first}\n", 5, "dataset.validation_choice", "first", None),
        ("dataset: faces\n", 5, "dataset", "faces", "a section of 'key: value' lines"),
        ("dataset: {name: [mnist]}\n", 5, "dataset.name", ["mnist"], None),
        ("training_parameters:\n", 5, "training_parameters", None, "a section of 'key: value' lines"),
        ("style: nvlabs\ntraining_parameters: 3\n", 6, "training_parameters", 3, "a section of 'key: value' lines"),
        ("num_cells_per_block_prepost: few\n", 5, "num_cells_per_block_prepost", "few", None),
        ("num_cells_per_block_prepost: 0\n", 5, "num_cells_per_block_prepost.encoder", 0, None),
    ],
)
def test_invalid_value_is_refused_with_its_place(extra, line, key, got, allowed):
    error = error_of(SMALL + extra)
    assert (error.kind, error.file, error.line, error.key) == ("invalid_value", "my.yaml", line, key)
    assert error.got == got
    assert error.allowed == allowed if allowed else error.allowed


LARGEST = 2**63 - 1


@pytest.mark.parametrize(
    ("key", "most"),
    [
        ("input_dimension", 4096),
        ("dataset.training_images", 10_000_000),
        ("dataset.validation_images", 10_000_000),
        ("training_parameters.seed", LARGEST),
        ("training_parameters.epochs", 1_000_000),
        ("training_parameters.batch_size", 1_000_000),
        ("training_parameters.warmup_steps", 10**9),
        ("training_parameters.images_per_checkpoint", 10**9),
        ("training_parameters.learning_rate", 1e6),
        ("training_parameters.weight_decay", 1e6),
        ("training_parameters.optimizer_epsilon", 1.0),
    ],
)
def test_numbers_have_a_largest_value(key, most):
    faces = ["dataset={name: toy_faces}", "input_dimension=4"]
    parse_config(SMALL, [*faces, f"{key}={most}"][(key == "input_dimension") * 2 :])
    for value in (most + 1, 10**30, "1e300", -1, ".inf", "-.inf", ".nan"):
        assert error_of(SMALL, *faces, f"{key}={value}").key == key


@pytest.mark.parametrize(
    "betas", ["[0.9]", "[0.9, 1.0]", "[-0.1, 0.9]", "[0.9, x]", "0.9", "[0.9, 0.9, 0.9]", "{a: 1}"]
)
def test_optimizer_betas_are_two_numbers_below_one(betas):
    key = "training_parameters.optimizer_betas"
    assert error_of(SMALL, f"{key}={betas}").key.startswith(key)


@pytest.mark.parametrize(
    ("value", "key", "got", "allowed"),
    [
        ("[0.3, 0.3, 0.1, 0.6]", "dataset.color_jitter.3", 0.6, "a number from 0 to 0.5"),
        ("[0.3, x, 0.1, 0.1]", "dataset.color_jitter.1", "x", "a number from 0 to 1"),
        ("[0.3, 0.3]", "dataset.color_jitter", [0.3, 0.3], None),  # None: that of the list
        ("[]", "dataset.color_jitter", [], None),
        ("[0, 0, 0, 0, 0]", "dataset.color_jitter", [0, 0, 0, 0, 0], None),
        ("0.3", "dataset.color_jitter", 0.3, None),
    ],
)
def test_error_in_a_list_or_null_is_of_the_number_or_of_the_whole_list(value, key, got, allowed):
    error = error_of(SMALL, f"dataset.color_jitter={value}")
    of_the_list = f"a list of 4: {3 * 'a number from 0 to 1, '}a number from 0 to 0.5, or null"
    assert (error.kind, error.key, error.allowed, error.others) == ("invalid_value", key, allowed or of_the_list, 0)
    assert error.got == got


@pytest.mark.parametrize(
    ("extra", "suggestion"),
    [
        ("sampling_method: bernouli\n", "bernoulli"),
        ("sampling_method: 3\n", None),
        ("dataset: {name: minst}\n", "mnist"),
        ("dataset: {name: MNIST}\n", "mnist"),
        ("dataset: {name: fashion-mnist}\n", "fashion_mnist"),
        ("dataset: {name: Fashion MNIST}\n", "fashion_mnist"),
        ("dataset: {name: cifar-10}\n", "cifar10"),
        ("dataset: {name: CIFAR 100}\n", "cifar100"),
        ("dataset: {name: CelebA}\n", "celeba"),
        ("dataset: {name: CelebA-HQ}\n", "celeba_hq"),
        ("dataset: {name: ImageNet-32}\n", "imagenet32"),
        ("dataset: {name: qqqqqq}\n", None),
        ("training_parameters: {optimizer: AdaMax}\n", "adamax"),
        ("family: NVAE\n", "nvae"),
        ("training_parameters: {optimizer: adammax}\n", "adamax"),
        ("family: nvea\n", "nvae"),
    ],
)
def test_invalid_word_suggests_the_nearest(extra, suggestion):
    error = error_of(SMALL + extra)
    assert (error.kind, error.suggestion) == ("invalid_value", suggestion)


@pytest.mark.parametrize("section", ["{name: [mnist]}", "{name: x}", "faces", "3", ""])
def test_invalid_dataset_of_a_resolved_config_is_refused(section):
    assert error_of(f"resolved: True\n{SMALL}dataset: {section}\n").key in ("dataset", "dataset.name")


@pytest.mark.parametrize("value", ["wide", "32.5", "True", "[8, 8]"])
def test_towers_are_a_number_or_a_section(value):
    text = SMALL.replace("channel_towers: 8", f"channel_towers: {value}")
    error = error_of(text)
    assert (error.key, error.line, error.got) == ("channel_towers", 1, yaml.safe_load(value))
    assert error_of(text, "channel_towers.encoder=8").key == "channel_towers"


# ------------------------------------------------------------------------------------------ impossible combinations

SINGLE = ["number_of_scales=1"]
DENSE = ["arch_instance=mbconv_den"]


@pytest.mark.parametrize(
    ("right", "wrong", "key", "got", "allowed"),
    [
        (["input_dimension=28"], ["input_dimension=30"], "input_dimension", 30, "multiple of 4"),
        (["input_dimension=28"], ["input_dimension=28", "num_blocks_prepost=2"], "input_dimension", 28, "of 8"),
        (["input_dimension=28", "padding=2"], ["input_dimension=28", "padding=1"], "input_dimension", 28, "of 4"),
        (["number_of_scales=6"], ["number_of_scales=7"], "input_dimension", 64, "of 128"),
        ([*SINGLE, "plain_vae=True"], ["plain_vae=True"], "plain_vae", True, "False"),
        (
            [*SINGLE, "plain_vae=True"],
            [*SINGLE, "plain_vae=True", "initial_splits_per_scale=3"],
            "plain_vae",
            True,
            "False",
        ),
        (["groups_per_scale=[2, 1]"], ["groups_per_scale=[2, 1, 1]"], "groups_per_scale", [2, 1, 1], "2 numbers"),
        (["groups_per_scale=[2, 1]"], ["groups_per_scale=[]"], "groups_per_scale", [], "2 numbers"),
        (["groups_per_scale=[2, 1]"], ["groups_per_scale=[300, 1]"], "groups_per_scale", [300, 1], "600"),
        (["latent_size=[4, 2]"], ["latent_size=[4]"], "latent_size", [4], "2 numbers"),
        ([*DENSE, "channel_towers=16"], [*DENSE, "channel_towers.encoder=12"], "channel_towers.encoder", 12, "of 8"),
        (
            [*DENSE, "channel_towers.decoder=12"],  # its grouped cells have 24 channels
            [*DENSE, "channel_towers.decoder=10"],
            "channel_towers.decoder",
            10,
            "of 8",
        ),
        (
            [*DENSE, "channel_towers.decoder=4", "postprocess_upsample=first", "num_cells_per_block_prepost=1"],
            [*DENSE, "channel_towers.decoder=4", "postprocess_upsample=first"],
            "channel_towers.decoder",
            4,
            "of 8",
        ),
        (
            [*DENSE, "channel_towers=10", "num_blocks_prepost=0"],
            [*DENSE, "channel_towers=10"],
            "channel_towers.encoder",
            10,
            "of 8",
        ),
        (["channel_towers=7", "channel_multiplier=4"], ["channel_towers=7"], "channel_towers.encoder", 7, "by 4"),
        ([*SINGLE, "channel_towers=7", "num_blocks_prepost=0"], ["channel_towers=7"], "channel_towers.encoder", 7, "4"),
        (
            ["image_channels=1", "style=nvlabs", "sampling_method=bernoulli"],
            ["image_channels=1", "style=nvlabs"],
            "sampling_method",
            "coupled_logistic_mixture",
            "bernoulli",
        ),
        (
            ["dataset.dequantize=True", "sampling_method=gaussian_mixture"],
            ["dataset.dequantize=True", "sampling_method=logistic_mixture"],
            "dataset.dequantize",
            True,
            "gaussian",
        ),
        (["dataset.random_crop=63"], ["dataset.random_crop=64"], "dataset.random_crop", 64, "64"),
        (
            ["dataset.binarize=True", "sampling_method=bernoulli"],
            ["dataset.binarize=True"],
            "dataset.binarize",
            True,
            "bernoulli",
        ),
        (
            ["dataset={binarize: True, encoder_input: gray}", "sampling_method=bernoulli"],
            ["dataset={binarize: False, encoder_input: gray}", "sampling_method=bernoulli"],
            "dataset.encoder_input",
            "gray",
            "binarize",
        ),
        (
            ["training_parameters={learning_rate: 1e-6, learning_rate_min: 0}"],
            ["training_parameters.learning_rate=1e-6"],
            "training_parameters.learning_rate_min",
            1e-5,
            "1e-06",
        ),
        (
            ["training_parameters.learning_rate_decay=nvlabs"],
            ["training_parameters={learning_rate_decay: nvlabs, learning_rate_schedule: cyclic}"],
            "training_parameters.learning_rate_decay",
            "nvlabs",
            "cyclic",
        ),
        (
            ["pixel_bits=5", "encoder_bits=8"],
            ["pixel_bits=5", "encoder_bits=4"],
            "encoder_bits",
            4,
            "5, the pixel_bits",
        ),
        (
            ["training_parameters={warmup_steps: 500}"],
            ["training_parameters={warmup_steps: 500, warmup_portion: 0.3}"],
            "training_parameters.warmup_steps",
            500,
            "0.3",
        ),
        (
            ["dataset={name: toy_faces, training_images: 300000}"],
            ["dataset={name: toy_faces, training_images: 400000}"],  # more than 4 GiB
            "dataset.training_images",
            400_000,
            "349525",
        ),
        (
            ["initial_splits_per_scale=20", "number_of_scales=3"],
            ["initial_splits_per_scale=1000", "number_of_scales=3", "cells_per_split_enc=100"],
            "initial_splits_per_scale",
            1000,
            "600",
        ),
        (["num_flows=20"], ["num_flows=100", "initial_splits_per_scale=10"], "initial_splits_per_scale", 10, "600"),
        (
            ["num_cells_per_block_prepost=100"],
            ["num_cells_per_block_prepost=10000"],
            "initial_splits_per_scale",
            1,
            "600",
        ),
        (
            ["channel_multiplier=16"],
            ["channel_multiplier=16", "number_of_scales=5"],
            "channel_multiplier",
            16,
            "131072",
        ),
    ],
)
def test_impossible_combination_is_refused(right, wrong, key, got, allowed):
    parse_config(SMALL, right)
    error = error_of(SMALL, *wrong)
    assert (error.kind, error.key, error.got) == ("invalid_value", key, got)
    assert allowed in error.allowed


@pytest.mark.parametrize(
    ("override", "key", "got"),
    [
        ("groups_per_scale=[2, 0]", "groups_per_scale.1", 0),
        ("groups_per_scale=[x, 2]", "groups_per_scale.0", "x"),
        ("groups_per_scale=3", "groups_per_scale", 3),
        ("latent_size=0", "latent_size", 0),
        ("latent_size=[4, 0]", "latent_size", [4, 0]),
        ("dataset.percentiles=[1, 200]", "dataset.percentiles.1", 200),
    ],
)
def test_wrong_value_in_a_list_is_one_problem_with_its_allowed_values(override, key, got):
    error = error_of(SMALL, override)
    assert (error.kind, error.key, error.got, error.others) == ("invalid_value", key, got, 0)
    assert "number" in error.allowed and "Input" not in error.allowed


def test_combination_of_a_given_key_has_its_line():
    error = error_of(SMALL + "training_parameters:\n  warmup_portion: 0.3\n  warmup_steps: 500\n", "style=nvlabs")
    assert (error.line, error.key) == (7, "training_parameters.warmup_steps")
    for style in STYLES:  # a default that does not fit has none
        assert error_of(SMALL.replace("scales: 2", "scales: 7"), f"style={style}").line is None


# ----------------------------------------------------------------------------------------------------- overrides


@pytest.mark.parametrize("override", ["epochs", "=3", " =3"])
def test_override_without_key_or_value_is_refused(override):
    error = error_of(SMALL, override)
    assert (error.kind, error.got) == ("invalid_override", override)


@pytest.mark.parametrize(
    ("override", "kind", "key", "got"),
    [
        ("training_parameters.epochs=0", "invalid_value", "training_parameters.epochs", 0),
        ("training_parameters={epochs: 0}", "invalid_value", "training_parameters.epochs", 0),
        ("training_parameters.epoch=3", "unknown_key", "training_parameters.epoch", 3),
        ("latent_size.more=3", "invalid_value", "latent_size", 4),
        ("training_parameters.epochs.more=3", "invalid_value", "training_parameters.epochs", 9),
        ("latent_size=", "invalid_value", "latent_size", None),
        ("channel_towers.middle=3", "unknown_key", "channel_towers.middle", 3),
        ("foo.bar=1", "unknown_key", "foo", {"bar": 1}),
        ("latent_size=\n", "invalid_value", "latent_size", None),
    ],
)
def test_wrong_override_is_named_as_the_place(override, kind, key, got):
    error = error_of(SMALL + "training_parameters:\n  epochs: 9\n", override)
    assert (error.file, error.line) == (f"override {override}", None)
    assert (error.kind, error.key, error.got) == (kind, key, got)


def test_wrong_config_of_a_checkpoint_names_the_checkpoint():
    with pytest.raises(ConfigError) as caught:
        config_from_dict(yaml.safe_load(SMALL) | {"latent_size": "x"}, "saved_weights/a.checkpoint", resolved=True)
    assert (caught.value.file, caught.value.key) == ("saved_weights/a.checkpoint", "latent_size")


# ------------------------------------------------------------------------------------------------- hostile files

SCALARS = ["3", "-1", "0", "1e300", ".nan", "1e-400", "''", "~", "yes", "0x1F", "1_000", "1:30", "2001-01-01", "1e9"]
SCALARS += ["!!float", "!!binary aGk=", "!!set {a}", "9" * 21, str(2**128), "[1, 2]", "{a: 1}", "*a", "&a 1", "4"]
SCALARS += ['"a\\nb"', '"\\x07"', '"\\ud800"', '"\\0"', "folder", "mnist", "toy_faces", "nvlabs", "adam", "True"]


@pytest.mark.slow
def test_random_files_load_or_are_refused_in_one_line():
    """Keys of every section with random values and some random damage, from a fixed seed."""
    draw = random.Random(0)
    base = yaml.safe_load(config_to_yaml(parse_config(SMALL, ["dataset.name=toy_faces"])))
    del base["resolved"]
    loaded = 0
    for _ in range(600):
        lines = []
        for key in draw.sample(sorted(base), draw.randint(0, 3)):
            section = base[key] if isinstance(base[key], dict) and draw.random() < 0.8 else None
            if section:
                below = draw.sample(sorted(section), min(len(section), draw.randint(1, 3)))
                lines += [f"{key}:", *(f"  {k}: {draw.choice(SCALARS)}" for k in below)]
            else:
                lines.append(f"{key}: {draw.choice(SCALARS)}")
        own = [line for line in SMALL.splitlines() if not any(x.startswith(line.partition(":")[0]) for x in lines)]
        text = "\n".join([*own, *lines]) + "\n"
        if draw.random() < 0.3:
            i = draw.randrange(len(text))
            text = text[:i] + draw.choice("\t\x00:{}[]&*!|>'\"%@`\u2028\ud800#-\n") + text[i + draw.randint(0, 2) :]
        try:
            config = parse_config(text, source="my\nfile.yaml")
        except ConfigError as error:
            assert str(error).isprintable(), error
        else:
            loaded += 1
            assert parse_config(config_to_yaml(config)) == config
    assert 50 < loaded < 550


def test_largest_whole_number_of_a_checkpoint_is_shown_shortened():
    """Of 255 bytes: torch reads no larger ones."""
    with pytest.raises(ConfigError) as raised:
        config_from_dict(load_config("tiny").model_dump() | {"latent_size": 2**2039}, "a.model")
    assert raised.value.key == "latent_size" and len(str(raised.value)) < 300
