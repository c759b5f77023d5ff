"""The value `auto`, and the config hvae that fits itself to a data set."""

from __future__ import annotations

import pytest
import torch

from nvae.config import ConfigError, config_from_dict, config_to_yaml, flat, load_config, parse_config
from nvae.models.families import build_model
from nvae.schema import AUTO_KEYS, DATASETS, NAMED_DATASETS

AUTOMATIC = """channel_towers: 4
number_of_scales: 1
initial_splits_per_scale: 1
latent_size: 2
input_dimension: auto
image_channels: auto
sampling_method: auto
pixel_bits: auto
padding: auto
dataset: {name: toy_faces, binarize: auto, horizontal_flip: auto}
"""


def values(overrides=(), text=AUTOMATIC):
    config = parse_config(text, overrides)
    dataset = config.dataset
    return (config.input_dimension, config.image_channels, config.sampling_method, config.pixel_bits), (
        dataset.binarize,
        dataset.horizontal_flip,
    )


def error_of(*overrides, text=AUTOMATIC):
    with pytest.raises(ConfigError) as caught:
        parse_config(text, overrides)
    return caught.value


@pytest.mark.parametrize("name", NAMED_DATASETS)
def test_auto_takes_the_facts_of_the_named_data_set(name):
    facts = NAMED_DATASETS[name]
    method = "bernoulli" if facts.binarize else "logistic_mixture"
    expected = (facts.size, facts.channels, method, facts.pixel_bits), (facts.binarize, facts.horizontal_flip)
    assert values([f"dataset.name={name}"]) == expected


@pytest.mark.parametrize(("name", "size"), [("toy_faces", 32), ("folder", 64), ("lmdb", 64), ("npz", 64)])
def test_auto_without_facts(name, size):
    assert values([f"dataset.name={name}"]) == ((size, 3, "logistic_mixture", 8), (False, False))
    text = AUTOMATIC.replace("name: toy_faces, ", "")
    assert values(text=text)[0][0] == 64  # a data set without a name is a folder


def test_auto_yields_to_an_override():
    digits = "dataset.name=mnist"
    assert values([digits, "input_dimension=16", "pixel_bits=5"])[0] == (16, 1, "bernoulli", 5)
    assert values([digits, "dataset.binarize=False"])[0][2] == "logistic_mixture"
    assert values(["dataset.binarize=True"])[0][2] == "bernoulli"
    assert values([digits, "dataset.horizontal_flip=True"])[1] == (True, True)
    assert values([digits, "sampling_method=bernoulli"])[1][0] is True


def test_auto_in_an_override():
    config = load_config("nvae_small", ["input_dimension=auto", "dataset.name=stl10", "image_channels=auto"])
    assert (config.input_dimension, config.image_channels) == (96, 3)


def test_auto_of_binarize_does_not_suit_another_likelihood():
    error = error_of("dataset.name=mnist", "sampling_method=gaussian")
    assert (error.kind, error.key, error.line, error.got) == ("invalid_value", "dataset.binarize", 10, True)
    assert "gaussian" in error.allowed


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("n_mix=auto", "n_mix"),
        ("dataset.encoder_input=auto", "dataset.encoder_input"),
        ("training_parameters.epochs=auto", "training_parameters.epochs"),
        ("dataset.name=minst", "dataset.name"),
        ("dataset=auto", "dataset"),
        ("dataset={name: [1], binarize: auto}", "dataset.name"),
        ("number_of_scales=many", "number_of_scales"),
        ("number_of_scales=1000000000", "number_of_scales"),
        ("padding=maximal", "padding"),
    ],
)
def test_auto_elsewhere_and_other_mistakes_name_their_key(override, key):
    assert error_of(override).key == key


@pytest.mark.parametrize("key", AUTO_KEYS)
def test_auto_is_among_the_allowed_values_of_a_wrong_one(key):
    assert error_of(f"{key}=nonsense").allowed.endswith("or auto")


def test_auto_is_resolved_in_what_a_checkpoint_and_a_run_keep():
    config = parse_config(AUTOMATIC, ["dataset.name=kmnist"])
    kept = flat(config.model_dump())
    assert [key for key in kept if kept[key] == "auto"] == ["training_parameters.compile"], "that of the device"
    assert parse_config(config_to_yaml(config)) == config
    assert config_from_dict(config.model_dump(), "a checkpoint", resolved=True) == config


@pytest.mark.parametrize(
    ("size", "scales", "padding"), [(28, 1, 0), (28, 3, 2), (28, 4, 2), (32, 4, 0), (30, 2, 1), (96, 5, 0), (100, 4, 6)]
)
def test_padding_auto_is_the_smallest_that_fits(size, scales, padding):
    config = parse_config(AUTOMATIC, [f"input_dimension={size}", f"number_of_scales={scales}"])  # and one block more
    assert config.padding == padding


def test_padding_auto_of_an_odd_size_that_must_be_even_is_refused():
    assert error_of("input_dimension=31").key == "input_dimension"


# ---------------------------------------------------------------------------------------------------------- hvae


@pytest.mark.slow
@pytest.mark.parametrize("name", DATASETS)
def test_hvae_fits_every_data_set(name):
    config = load_config("hvae", [f"dataset.name={name}"])
    with torch.device("meta"):
        model = build_model(config)
    assert 5e5 < sum(p.numel() for p in model.parameters()) < 2e6
    assert len(model.groups) == 6


LIKELIHOODS = [(1, "bernoulli"), (1, "logistic_mixture"), (3, "bernoulli"), (3, "logistic_mixture")]


@pytest.mark.slow
@pytest.mark.parametrize(("channels", "likelihood"), [*LIKELIHOODS, (3, "coupled_logistic_mixture")])
@pytest.mark.parametrize("size", [28, 32, 64, 96, 128])
def test_hvae_of_every_size_gives_images_of_that_size(size, channels, likelihood):
    sizes = [f"input_dimension={size}", f"image_channels={channels}", f"sampling_method={likelihood}"]
    with torch.device("meta"):
        model = build_model(load_config("hvae", sizes))
        noise = [torch.zeros(2, *group.posterior_noise_shape) for group in model.groups]
        output = model(torch.zeros(2, channels, size, size), noise)
        assert output.px_z.mean().shape == (2, channels, size, size)
