"""From uint8 pixels to what a network is trained on, and the ways to get pixels of the right size and channels."""

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data import images as images_module
from nvae.data.images import binarize, flip, resize, to_float, to_grayscale
from nvae.seeds import seeded

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def channels_last(images):
    return images.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def pixels():
    """uint8 (600, 3, 8, 8), more than a chunk."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (600, 3, 8, 8), np.uint8))


# --------------------------------------------------------------------------------------------------- to_float


@pytest.mark.parametrize("bits", range(1, 9))
def test_bits_follow_nvaes_formula(bits):
    """floor(255 x / 2^(8 - b)) / (2^b - 1), where 255 x is the pixel; in whole numbers, so that nothing is rounded."""
    expected = [value // 2 ** (8 - bits) / (2**bits - 1) for value in range(256)]
    found = to_float(EVERY_VALUE, "cpu", bits)
    assert found.dtype == torch.float32
    assert torch.equal(found.flatten(), torch.tensor(expected))
    assert len(found.unique()) == 2**bits
    assert (found.min(), found.max()) == (0, 1)


def test_eight_bits_are_the_pixels_themselves():
    found = to_float(EVERY_VALUE, "cpu")
    assert torch.equal(found, EVERY_VALUE.float() / 255)
    assert torch.equal(found, to_float(EVERY_VALUE, "cpu", 8))


@pytest.mark.parametrize("bits", [3, 8])
def test_the_callers_pixels_stay_as_they_are(pixels, bits):
    pixels = pixels.to(memory_format=torch.channels_last)
    before = pixels.clone()
    assert channels_last(to_float(pixels, "cpu", bits))
    assert torch.equal(pixels, before)


# ------------------------------------------------------------------------------------------------------ flipped


def turned(images, result):
    """Which images were turned round, (B,); the others must be as they were, bit for bit."""
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    is_mirror = (result == mirrored).flatten(1).all(1)
    assert (is_mirror ^ (result == images).flatten(1).all(1)).all()
    return is_mirror


def test_about_half_of_the_images_are_exact_mirror_images(pixels):
    images = to_float(pixels, "cpu")
    generator = seeded(0, "flips")
    once, again = (turned(images, flip(images, generator)) for _ in range(2))
    both = torch.cat([once, again]).double()
    # Two bounds of five standard deviations: how many are turned, and how often neighbors and repetitions agree.
    assert abs(both.mean() - 0.5) < 5 * 0.5 / len(both) ** 0.5
    for one, other in ((once[1:], once[:-1]), (once, again)):
        assert abs((one == other).double().mean() - 0.5) < 5 * 0.5 / len(one) ** 0.5


def test_a_seed_turns_the_same_images_round(pixels):
    images = to_float(pixels, "cpu")
    first, same, other = (flip(images, seeded(seed, "flips")) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# ---------------------------------------------------------------------------------------------------- binarized


def test_the_mean_of_binarized_images_is_the_grey_value():
    draws = 4000
    images = to_float(EVERY_VALUE, "cpu").expand(draws, -1, -1, -1)
    found = binarize(images, seeded(0, "draws"))
    assert found.dtype == torch.float32
    assert set(found.unique().tolist()) == {0, 1}
    p = torch.arange(256).double() / 255
    deviation = (p * (1 - p) / draws).sqrt()  # of the mean of as many draws; none for black and for white
    assert ((found.double().mean(0).flatten() - p).abs() <= 5 * deviation).all()
    # The 256 deviations in units of their own size are about standard Normal, not all to one side.
    scores = ((found.double().mean(0).flatten() - p) / deviation)[1:-1]
    assert abs(scores.mean()) < 5 / 254**0.5
    assert 0.7 < scores.square().mean() < 1.4


def test_black_stays_black_and_white_white():
    images = torch.cat([torch.zeros(200, 3, 32, 32), torch.ones(200, 3, 32, 32)])
    assert torch.equal(binarize(images, seeded(0, "draws")), images)


def test_every_subpixel_is_drawn_by_itself():
    found = binarize(torch.full((20_000, 3, 2, 2), 0.5), seeded(0, "draws")).flatten(1).double()
    correlation = torch.corrcoef(found.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / len(found) ** 0.5
    between_images = torch.corrcoef(torch.stack([found[1:].flatten(), found[:-1].flatten()]))[0, 1]
    assert abs(between_images) < 5 / found.numel() ** 0.5


def test_a_seed_draws_the_same_picture_and_a_generator_a_new_one_every_time(pixels):
    images = to_float(pixels, "cpu")
    generator = seeded(0, "draws")
    first, second = (binarize(images, generator) for _ in range(2))
    assert torch.equal(first, binarize(images, seeded(0, "draws")))
    assert not torch.equal(first, second)


# --------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("change", [flip, binarize])
def test_the_layout_in_memory_stays_and_means_nothing(pixels, change):
    images = to_float(pixels, "cpu")
    found = change(images, seeded(0, "layout"))
    assert channels_last(found)
    assert torch.equal(found, change(images.contiguous(), seeded(0, "layout")))


@pytest.mark.parametrize("change", [flip, binarize])
def test_the_images_stay_on_their_device_whatever_the_generators(change):
    """On `meta`, which computes nothing, mixing devices is the same error as on an accelerator."""
    images = torch.empty((4, 3, 8, 8), device="meta").to(memory_format=torch.channels_last)
    found = change(images, seeded(0, "device"))
    assert found.device.type == "meta"
    assert found.shape == images.shape
    assert channels_last(found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("change", [flip, binarize])
def test_a_generator_of_the_cpu_gives_the_same_images_on_a_gpu(pixels, change):
    images = to_float(pixels, "cpu")
    found = change(images.cuda(), seeded(0, "device"))
    assert torch.equal(found.cpu(), change(images, seeded(0, "device")))
    assert channels_last(change(images.cuda(), seeded(0, "device", device="cuda")))


# --------------------------------------------------------------------------------------------- sizes and channels


@pytest.mark.parametrize("size", [4, 12, 20])
def test_resampling_is_pillows(pixels, size):
    pixels = 64 + pixels // 2  # Pillow clips after the rows and after the columns: nothing to clip here
    found = resize(pixels, size)
    assert found.dtype == torch.uint8
    for image, result in zip(pixels[::50], found[::50], strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        difference = result.numpy().astype(int) - expected
        assert np.abs(difference).max() <= 1  # Pillow rounds between rows and columns
        assert abs(difference.mean()) < 0.2


def test_resampling_beyond_black_and_white_stays_there():
    """Bicubic overshoots at an edge; as a byte, a little below black would be white."""
    edge = torch.tensor([0, 0, 0, 0, 255, 255, 255, 255], dtype=torch.uint8).expand(1, 1, 8, 8)
    row = resize(edge, 16)[0, 0, 5].int()
    assert (row[0], row[-1]) == (0, 255)
    assert (row.diff() >= -10).all()
    assert (row[:8] < 128).all()
    assert (row[8:] > 128).all()


def test_images_of_the_right_size_are_not_copied(pixels):
    assert resize(pixels, 8) is pixels


def test_grey_is_the_luma_that_pillow_computes(pixels):
    found = to_grayscale(pixels)
    assert found.shape == (600, 1, 8, 8)
    for image, result in zip(pixels, found, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(result[0].numpy().astype(int) - expected).max() <= 1
    assert torch.equal(to_grayscale(EVERY_VALUE.expand(-1, 3, -1, -1)), EVERY_VALUE)


@pytest.mark.parametrize("change", [to_grayscale, lambda pixels: resize(pixels, 12)])
def test_chunks_leave_no_seam(pixels, change, monkeypatch):
    assert len(pixels) > images_module.CHUNK
    at_once = change(pixels)
    monkeypatch.setattr(images_module, "CHUNK", 7)
    assert torch.equal(change(pixels), at_once)
