import math

import pytest
import torch

from nvae.inference.arguments import (
    check_count,
    check_images,
    check_images_u8,
    check_noise,
    check_seeds,
    format_values,
    per_group,
    with_number_above_scales,
)
from nvae.inference.sampling import Sampler
from nvae.system.errors import InvalidValueError, UserError


@pytest.fixture(scope="module")
def model(make_model):
    """One group at 2x2 and three at 4x4."""
    return make_model(initial_splits_per_scale=3, exponential_scaling=3)


def test_per_group_repeats_numbers_over_the_groups_of_a_scale(model):
    assert [shape[1] for shape in model.noise_shapes] == [2, 4, 4, 4]
    assert per_group(model, 0.7, "temperature") == per_group(model, [0.7], "temperature") == [0.7] * 4
    assert per_group(model, (0, 0.9), "temperature") == [0, 0.9, 0.9, 0.9]


def test_per_group_takes_one_number_per_group(model):
    assert per_group(model, [0.1, 0.2, 0.3, 0.4], "temperature") == [0.1, 0.2, 0.3, 0.4]


def test_per_group_of_as_many_groups_as_scales_has_one_reading(make_model):
    model = make_model(initial_splits_per_scale=1)
    assert len(model.groups) == len(model.scales) == 2
    assert per_group(model, [0.1, 0.2], "temperature") == [0.1, 0.2]


WRONG_NUMBERS = {
    "none": [],
    "too many": [0.5, 0.7, 0.9],
    "more than groups": [1.0] * 5,
    "text": "0.7",
    "texts": ["0.7"],
    "negative": -0.1,
    "NaN": [0.5, math.nan],
    "infinite": math.inf,
    "bool": True,
    "nothing": None,
}


@pytest.mark.parametrize("wrong", WRONG_NUMBERS.values(), ids=WRONG_NUMBERS)
def test_per_group_refuses_anything_but_numbers_of_an_expected_count(model, wrong):
    with pytest.raises(InvalidValueError) as error:
        per_group(model, wrong, "strength")
    assert error.value.name == "strength"


def test_per_group_error_names_the_scales_and_groups(model):
    with pytest.raises(InvalidValueError) as error:
        per_group(model, [1, 2, 3], "strength")
    assert error.value.got == "3 numbers"
    assert all(name in error.value.expected for name in ("2 scales", "(2x2, 4x4)", "4 latent groups"))


@pytest.mark.parametrize("wrong", [0, -1, 1.0, "3", None, True, 8])
def test_check_count_refuses_anything_but_an_integer_in_range(wrong):
    assert check_count("images", 7, least=1, most=7) == 7
    with pytest.raises(InvalidValueError):
        check_count("images", wrong, least=1, most=7)


@pytest.mark.parametrize("wrong", [[], 3, "3", ["3"], [-1], [1.5], [True], None])
def test_check_seeds_refuses_anything_but_natural_numbers(wrong):
    with pytest.raises(InvalidValueError):
        check_seeds(wrong)


def test_check_seeds_accepts_ranges_and_tensors_and_large_seeds():
    assert check_seeds(range(3)) == check_seeds(torch.arange(3)) == [0, 1, 2]
    assert check_seeds([2**70]) == [2**70]


WRONG_IMAGES = {
    "no tensor": [[0.5]],
    "no batch": torch.zeros(3, 8, 8),
    "no images": torch.zeros(0, 3, 8, 8),
    "other channels": torch.zeros(1, 1, 8, 8),
    "other size": torch.zeros(1, 3, 9, 9),
    "uint8": torch.zeros(1, 3, 8, 8, dtype=torch.uint8),
    "above 1": torch.full((1, 3, 8, 8), 1.1),
    "below 0": torch.full((1, 3, 8, 8), -0.1),
    "NaN": torch.full((1, 3, 8, 8), math.nan),
}


@pytest.mark.parametrize("wrong", WRONG_IMAGES.values(), ids=WRONG_IMAGES)
def test_check_images_refuses_other_types_shapes_and_ranges(model, wrong):
    with pytest.raises(InvalidValueError):
        check_images(model, wrong)


def test_check_images_u8_refuses_floats(model):
    check_images_u8(model, torch.zeros(1, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(InvalidValueError) as error:
        check_images_u8(model, torch.zeros(1, 3, 8, 8), "targets_u8")
    assert error.value.name == "targets_u8"


def test_check_noise_refuses_other_groups_and_shapes(model):
    noise = model.no_noise(2)
    check_noise(model, noise)
    for wrong in (noise[:-1], noise[::-1], [*noise[:-1], noise[-1][:1]], noise[0]):
        with pytest.raises(InvalidValueError):
            check_noise(model, wrong)
    with pytest.raises(InvalidValueError):
        check_noise(model, noise, count=1)


def test_format_values_writes_numbers_as_on_the_command_line():
    assert format_values([0.6, 1.0], "-") == "0.6-1"
    assert format_values(0.7) == "0.7"
    assert format_values([0.8] * 20 + [0.7] * 5 + [1.0] * 6) == "0.8x20,0.7,0.7,0.7,0.7,0.7,1x6"


# -------------------------------------------------------------------------------------------- models with a context


@pytest.fixture(scope="module")
def dvp(make_dvp):
    """A context at 3x3, one group at 2x2 and two at 4x4."""
    return make_dvp(latents_per_scale=[2, 1])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.7, [0.7] * 4),
        ([0.7], [0.7] * 4),
        ([0.5, 0.9], [0.5, 0.5, 0.9, 0.9]),  # the context takes the value of the top scale
        ([1.0, 0.5, 0.9], [1.0, 0.5, 0.9, 0.9]),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
    ],
)
def test_per_group_of_a_model_with_a_context(dvp, value, expected):
    assert [level.resolution for level in dvp.levels] == [3, 2, 4]
    assert [level.resolution for level in dvp.scales] == [2, 4]
    assert [group.level.name for group in dvp.groups] == ["context", "", "", ""]
    assert per_group(dvp, value, "temperature") == expected


@pytest.mark.parametrize("wrong", [[], [0.1] * 5, [1.0, -1.0, 1.0]])
def test_per_group_of_a_model_with_a_context_refuses_other_counts(dvp, wrong):
    with pytest.raises(InvalidValueError) as error:
        per_group(dvp, wrong, "strength")
    assert error.value.name == "strength"


def test_per_group_error_names_the_scales_and_the_context(dvp):
    with pytest.raises(InvalidValueError) as error:
        per_group(dvp, [0.1] * 5, "temperature")
    assert all(name in error.value.expected for name in ("2 scales", "(2x2, 4x4)", "context", "4 latent groups"))


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0.7, [0.2, 0.7, 0.7]),
        ([0.7], [0.2, 0.7, 0.7]),
        ([0.5, 0.9], [0.2, 0.5, 0.9]),
        ([1, 0.5, 0.9], [0.2, 0.5, 0.9]),
        ([1, 0.5, 0.8, 0.9], [0.2, 0.5, 0.8, 0.9]),
    ],
)
def test_number_of_the_context_comes_first(dvp, value, expected):
    assert with_number_above_scales(dvp, value, 0.2, "temperature") == expected


def test_number_of_the_context_above_one_scale(make_dvp):
    model = make_dvp(latents_per_scale=[2])
    assert with_number_above_scales(model, [0.7], 0.2, "temperature") == [0.2, 0.7]
    assert per_group(model, [0.2, 0.7], "temperature") == [0.2, 0.7, 0.7]


def test_number_of_the_context_is_refused_for_a_model_without_a_context_and_wrong_numbers(model, dvp):
    assert model.groups_above_scales == 0
    assert model.scales == model.levels
    with pytest.raises(UserError):
        with_number_above_scales(model, [0.7], 0.2, "temperature")
    for value, context in (([0.7], -0.2), ([0.1] * 5, 0.2)):
        with pytest.raises(InvalidValueError):
            with_number_above_scales(dvp, value, context, "temperature")


@pytest.mark.parametrize(
    ("value", "meant"), [(70, "0.7"), ([0.7, 65], "0.65"), (1e9, None), (math.nextafter(10, 11), None)]
)
def test_factor_far_above_any_use_is_refused(model, value, meant):
    with pytest.raises(InvalidValueError) as caught:
        per_group(model, value, "temperature")
    assert caught.value.expected == "at most 10"
    assert meant is None or f"mean {meant}?" in caught.value.advice
    assert per_group(model, 10, "temperature") == [10] * 4
    assert per_group(model, 15, "strength") == [15] * 4  # 3 times a temperature of 5, for example


def test_sampler_warns_of_a_high_temperature(make_model):
    assert [len(Sampler(make_model(), temperature, 0).warnings) for temperature in (1, 2, [0.7, 2.1])] == [0, 0, 1]
