"""The changes of colors and sharpness against torchvision's, and what they are by definition."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as torchvision

from nvae.data import colors
from nvae.data.images import to_float
from nvae.data.training_images import training_images
from nvae.system.seeds import seeded

JITTER = (0.3, 0.3, 0.1, 0.1)


@pytest.fixture(params=[1, 3])
def images(request):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, request.param, 8, 8, generator=generator)
    images[0], images[1], images[2, :, :4] = 0, 1, 0.25  # without a hue
    return images.contiguous(memory_format=torch.channels_last)


def each(images, function, factors):
    """Apply a function of one image and a number to every image."""
    return torch.stack([function(image, number) for image, number in zip(images, factors.tolist(), strict=True)])


@pytest.mark.parametrize("name", ["brightness", "contrast", "saturation", "hue"])
def test_adjust_equals_torchvision_for_a_factor_per_image(images, name):
    factors = torch.linspace(-0.5, 0.5, 40) if name == "hue" else torch.linspace(0, 2, 40)
    result = getattr(colors, f"adjust_{name}")(images, factors.view(-1, 1, 1, 1))
    expected = each(images, getattr(torchvision, f"adjust_{name}"), factors)
    torch.testing.assert_close(result, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_adjust_sharpness_equals_torchvision(images, factor):
    expected = torchvision.adjust_sharpness(images, factor)
    torch.testing.assert_close(colors.adjust_sharpness(images, factor), expected, rtol=0, atol=2e-6)


def test_adjust_of_a_constant_image_is_what_the_factors_say():
    constant, factors = torch.full((3, 3, 4, 4), 0.25), torch.tensor([0.5, 1.0, 3.0]).view(-1, 1, 1, 1)
    assert torch.equal(colors.adjust_brightness(constant, factors), constant * factors)
    for adjust in (colors.adjust_contrast, colors.adjust_saturation, colors.adjust_hue):
        torch.testing.assert_close(adjust(constant, factors), constant, rtol=0, atol=1e-4)  # luma: 0.9999 in all
    torch.testing.assert_close(colors.adjust_sharpness(constant, 2.0), constant)


def test_adjust_hue_of_a_third_of_a_turn_moves_the_channels():
    images, turn = torch.rand(5, 3, 4, 4), torch.full((5, 1, 1, 1), 1 / 3)
    torch.testing.assert_close(colors.adjust_hue(images, turn), images.roll(1, 1))
    torch.testing.assert_close(colors.adjust_hue(images, 0 * turn), images)


@pytest.mark.parametrize("operation", range(4))
def test_jitter_draws_every_factor_from_its_range(monkeypatch, operation):
    names = ("adjust_brightness", "adjust_contrast", "adjust_saturation", "adjust_hue")
    drawn = []
    monkeypatch.setattr(colors, names[operation], lambda images, factors: drawn.append(factors.flatten()) or images)
    colors.jitter_colors(torch.rand(4000, 3, 2, 2), JITTER, seeded(0, "colors"))
    factors, center = torch.cat(drawn), float(operation < 3)
    width = JITTER[operation]
    assert len(factors) == 4000  # one per image
    assert center - width <= factors.min() < center - 0.99 * width
    assert center + 0.99 * width < factors.max() <= center + width
    assert abs(factors.mean() - center) < 5 * width / (3 * 4000) ** 0.5
    places = torch.tensor([len(part) for part in drawn])  # of the operation in the order of an image
    assert ((places - 1000).abs() < 5 * (4000 * 3 / 16) ** 0.5).all()


def test_jitter_without_width_changes_nothing_and_keeps_the_memory_layout(images):
    result = colors.jitter_colors(images, (0.0, 0.0, 0.0, 0.0), seeded(0, "colors"))
    torch.testing.assert_close(result, images, rtol=0, atol=2e-6)
    assert result.is_contiguous(memory_format=torch.channels_last)


def test_sharpen_some_changes_half_of_the_images():
    images = torch.rand(400, 3, 4, 4)
    result = colors.sharpen_some(images, 2.0, seeded(0, "sharpness"))
    changed = (result != images).flatten(1).any(1)
    assert torch.equal(result[changed], colors.adjust_sharpness(images, 2.0)[changed])
    assert 150 < changed.sum() < 250


@pytest.mark.parametrize("bits", [5, 8])
def test_training_images_with_other_colors_have_the_values_of_images(make_config, bits):
    images_u8 = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    keys = {"sharpness": 2.0, "color_jitter": list(JITTER)}
    changed = training_images(images_u8, make_config(pixel_bits=bits, dataset={"name": "toy_faces"} | keys), 0).images
    values = changed * (2**bits - 1)
    torch.testing.assert_close(values, values.round(), rtol=0, atol=1e-4)
    still = {"sharpness": 1.0, "color_jitter": [0.0, 0.0, 0.0, 0.0]}
    config = make_config(pixel_bits=bits, dataset={"name": "toy_faces"} | still)
    assert torch.equal(training_images(images_u8, config, 0).images, to_float(images_u8, "cpu", bits))
