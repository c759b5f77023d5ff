"""Random crops, dequantization, and what a training step makes of its images."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from nvae.data.images import dequantize, random_crop, to_float, with_bits
from nvae.data.training_images import training_images
from nvae.system.seeds import seeded

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


@pytest.fixture
def images_u8():
    return torch.randint(0, 256, (400, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


# ------------------------------------------------------------------------------------------------------------- crops


@pytest.mark.parametrize("margin", [1, 3, 7])
def test_random_crop_is_a_crop_of_the_reflected_image_at_every_place(images_u8, margin):
    images = to_float(images_u8, "cpu")
    result = random_crop(images, margin, seeded(0, "crops"))
    padded, places = functional.pad(images, (margin,) * 4, mode="reflect"), range(2 * margin + 1)
    crops = torch.stack([padded[..., y : y + 8, x : x + 8] for y in places for x in places])  # (places, N, C, S, S)
    matches = (crops == result).flatten(2).all(2)
    assert matches.any(0).all()
    if margin == 1:
        counts = matches.sum(1).double()  # 400 images at nine places: five standard deviations of the binomial
        assert ((counts - 400 / 9).abs() < 5 * (400 * 8 / 81) ** 0.5).all()


def test_random_crop_is_a_function_of_the_seed_and_keeps_the_memory_layout(images_u8):
    images = to_float(images_u8, "cpu")
    first, same, other = (random_crop(images, 2, seeded(seed, "crops")) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert first.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------ dequantization


@pytest.mark.parametrize("bits", range(1, 9))
def test_dequantize_stays_in_the_bin_of_the_value(bits):
    images = to_float(EVERY_VALUE, "cpu", bits)
    for seed in range(20):
        result = dequantize(images, bits, seeded(seed, "noise"))
        assert torch.equal((result * 2**bits).floor(), (EVERY_VALUE >> (8 - bits)).float())


def test_dequantize_is_uniform_in_the_bin_and_keeps_the_memory_layout(images_u8):
    images = to_float(images_u8, "cpu")
    result = dequantize(images, 8, seeded(0, "noise"))
    noise = (result * 256 - images_u8).double().flatten()
    count = len(noise)
    assert abs(noise.mean() - 0.5) < 5 * (1 / 12 / count) ** 0.5
    assert abs(noise.var() - 1 / 12) < 5 * (1 / 180 / count) ** 0.5
    correlation = torch.corrcoef(torch.stack([noise[1:], noise[:-1]]))[0, 1]
    assert abs(correlation) < 5 / count**0.5
    assert result.is_contiguous(memory_format=torch.channels_last)


# ------------------------------------------------------------------------------------------------------ a step's images


def test_training_images_without_augmentation_are_the_data(make_config, images_u8):
    images, targets = training_images(images_u8, make_config(), 5)
    assert torch.equal(images, to_float(images_u8, "cpu"))
    assert torch.equal(targets, images)


@pytest.mark.parametrize("bits", [1, 3, 5, 7])
def test_with_bits_is_the_quantization_of_the_pixels(images_u8, bits):
    assert torch.equal(with_bits(to_float(images_u8, "cpu"), 8, bits), to_float(images_u8, "cpu", bits))
    assert torch.equal(with_bits(to_float(images_u8, "cpu", 7), 7, bits), to_float(images_u8, "cpu", bits))


def test_encoder_bits_are_those_of_the_encoder_alone(make_config, images_u8):
    keys = {"pixel_bits": 5, "sampling_method": "logistic_mixture"}
    plain, (images, targets) = make_config(**keys), training_images(images_u8, make_config(**keys, encoder_bits=8), 5)
    assert torch.equal(images, to_float(images_u8, "cpu"))
    assert torch.equal(targets, training_images(images_u8, plain, 5).targets)
    flipped = {"dataset": {"name": "toy_faces", "horizontal_flip": True, "random_crop": 2}}
    images, targets = training_images(images_u8, make_config(**keys, **flipped, encoder_bits=8), 5)
    assert torch.equal(with_bits(images, 8, 5), targets)


@pytest.mark.parametrize(
    "keys",
    [
        {"random_crop": 2},
        {"random_crop": 1, "horizontal_flip": True},
        {"sharpness": 2.0},
        {"color_jitter": [0.3, 0.3, 0.1, 0.1]},
    ],
)
def test_training_images_are_augmented_anew_at_every_step(make_config, images_u8, keys):
    config = make_config(dataset={"name": "toy_faces"} | keys)
    first, same, other = (training_images(images_u8, config, step) for step in (3, 3, 4))
    assert torch.equal(first.images, same.images)
    assert torch.equal(first.images, first.targets)
    assert not torch.equal(first.images, other.images)


def test_training_images_dequantized_are_for_the_likelihood_alone(make_config, images_u8):
    config = make_config(dataset={"name": "toy_faces", "dequantize": True, "random_crop": 1})
    plain = make_config(dataset={"name": "toy_faces", "random_crop": 1})
    first, same, other = (training_images(images_u8, config, step) for step in (3, 3, 4))
    assert torch.equal(first.images, training_images(images_u8, plain, 3).images)
    assert torch.equal((first.targets * 256).floor(), (first.images * 255).round())
    assert torch.equal(first.targets, same.targets)
    assert not torch.equal(first.targets % (1 / 256), other.targets % (1 / 256))
