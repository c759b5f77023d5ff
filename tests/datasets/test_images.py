import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data import images as images_module
from nvae.data.images import binarize, flip, resize, to_float, to_grayscale
from nvae.system.seeds import seeded

EVERY_VALUE = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)


def channels_last(images):
    return images.is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def images_u8():
    """uint8 (600, 3, 8, 8), more than a chunk."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, (600, 3, 8, 8), np.uint8))


# ------------------------------------------------------------------------------------------------------------- to_float


@pytest.mark.parametrize("bits", range(1, 9))
def test_to_float_bits_follow_nvaes_formula(bits):
    """floor(255 x / 2^(8 - b)) / (2^b - 1), where 255 x is the pixel; in whole numbers, to avoid rounding."""
    expected = [value // 2 ** (8 - bits) / (2**bits - 1) for value in range(256)]
    result = to_float(EVERY_VALUE, "cpu", bits)
    assert result.dtype == torch.float32
    assert torch.equal(result.flatten(), torch.tensor(expected))
    assert len(result.unique()) == 2**bits
    assert (result.min(), result.max()) == (0, 1)


def test_to_float_eight_bits_divide_by_255():
    result = to_float(EVERY_VALUE, "cpu")
    assert torch.equal(result, EVERY_VALUE.float() / 255)
    assert torch.equal(result, to_float(EVERY_VALUE, "cpu", 8))


@pytest.mark.parametrize("bits", [3, 8])
def test_to_float_leaves_its_input_unchanged(images_u8, bits):
    images_u8 = images_u8.to(memory_format=torch.channels_last)
    before = images_u8.clone()
    assert channels_last(to_float(images_u8, "cpu", bits))
    assert torch.equal(images_u8, before)


# ----------------------------------------------------------------------------------------------------------------- flip


def which_are_flipped(images, result):
    """Return which images are mirrored, (B,); the others must be unchanged, bit for bit."""
    mirrored = torch.from_numpy(images.numpy()[..., ::-1].copy())
    is_mirror = (result == mirrored).flatten(1).all(1)
    assert (is_mirror ^ (result == images).flatten(1).all(1)).all()
    return is_mirror


def test_flip_mirrors_about_half_of_the_images_exactly(images_u8):
    images = to_float(images_u8, "cpu")
    generator = seeded(0, "flips")
    once, again = (which_are_flipped(images, flip(images, generator)) for _ in range(2))
    both = torch.cat([once, again]).double()
    # Two bounds of five standard deviations: how many are flipped, and how often neighbors and repetitions agree.
    assert abs(both.mean() - 0.5) < 5 * 0.5 / len(both) ** 0.5
    for one, other in ((once[1:], once[:-1]), (once, again)):
        assert abs((one == other).double().mean() - 0.5) < 5 * 0.5 / len(one) ** 0.5


def test_flip_is_a_function_of_the_seed(images_u8):
    images = to_float(images_u8, "cpu")
    first, same, other = (flip(images, seeded(seed, "flips")) for seed in (0, 0, 1))
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


# ------------------------------------------------------------------------------------------------------------- binarize


def test_binarize_mean_is_the_gray_value():
    draws = 4000
    images = to_float(EVERY_VALUE, "cpu").expand(draws, -1, -1, -1)
    result = binarize(images, seeded(0, "draws"))
    assert result.dtype == torch.float32
    assert set(result.unique().tolist()) == {0, 1}
    p = torch.arange(256).double() / 255
    deviation = (p * (1 - p) / draws).sqrt()  # of the mean of as many draws; none for black and for white
    assert ((result.double().mean(0).flatten() - p).abs() <= 5 * deviation).all()
    # The 256 deviations in units of their own size are about standard Normal, not all to one side.
    scores = ((result.double().mean(0).flatten() - p) / deviation)[1:-1]
    assert abs(scores.mean()) < 5 / 254**0.5
    assert 0.7 < scores.square().mean() < 1.4


def test_binarize_keeps_black_and_white():
    images = torch.cat([torch.zeros(200, 3, 32, 32), torch.ones(200, 3, 32, 32)])
    assert torch.equal(binarize(images, seeded(0, "draws")), images)


def test_binarize_draws_subimages_u8_independently():
    result = binarize(torch.full((20_000, 3, 2, 2), 0.5), seeded(0, "draws")).flatten(1).double()
    correlation = torch.corrcoef(result.T) - torch.eye(12)
    assert correlation.abs().max() < 5 / len(result) ** 0.5
    between_images = torch.corrcoef(torch.stack([result[1:].flatten(), result[:-1].flatten()]))[0, 1]
    assert abs(between_images) < 5 / result.numel() ** 0.5


def test_binarize_is_a_function_of_the_seed_and_draws_anew_at_every_call(images_u8):
    images = to_float(images_u8, "cpu")
    generator = seeded(0, "draws")
    first, second = (binarize(images, generator) for _ in range(2))
    assert torch.equal(first, binarize(images, seeded(0, "draws")))
    assert not torch.equal(first, second)


# ----------------------------------------------------------------------------------------------------------------- both


@pytest.mark.parametrize("change", [flip, binarize])
def test_flip_and_binarize_keep_the_memory_layout(images_u8, change):
    images = to_float(images_u8, "cpu")
    result = change(images, seeded(0, "layout"))
    assert channels_last(result)
    assert torch.equal(result, change(images.contiguous(), seeded(0, "layout")))


@pytest.mark.parametrize("change", [flip, binarize])
def test_flip_and_binarize_keep_the_device(change):
    """On `meta`, which computes nothing, mixing devices is the same error as on an accelerator."""
    images = torch.empty((4, 3, 8, 8), device="meta").to(memory_format=torch.channels_last)
    result = change(images, seeded(0, "device"))
    assert result.device.type == "meta"
    assert result.shape == images.shape
    assert channels_last(result)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("change", [flip, binarize])
def test_flip_and_binarize_with_a_cpu_generator_match_on_a_gpu(images_u8, change):
    images = to_float(images_u8, "cpu")
    result = change(images.cuda(), seeded(0, "device"))
    assert torch.equal(result.cpu(), change(images, seeded(0, "device")))
    assert channels_last(change(images.cuda(), seeded(0, "device", device="cuda")))


# --------------------------------------------------------------------------------------------------- sizes and channels


@pytest.mark.parametrize("size", [4, 12, 20])
def test_resize_matches_pillow(images_u8, size):
    images_u8 = 64 + images_u8 // 2  # Pillow clips after the rows and after the columns: nothing to clip here
    result = resize(images_u8, size)
    assert result.dtype == torch.uint8
    for image, resized in zip(images_u8[::50], result[::50], strict=True):
        picture = Image.fromarray(image.permute(1, 2, 0).numpy())
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
        difference = resized.numpy().astype(int) - expected
        assert np.abs(difference).max() <= 1  # Pillow rounds between rows and columns
        assert abs(difference.mean()) < 0.2


def test_resize_clips_overshoot():
    """Bicubic filters overshoot at an edge; a value below 0 would wrap around to 255."""
    edge = torch.tensor([0, 0, 0, 0, 255, 255, 255, 255], dtype=torch.uint8).expand(1, 1, 8, 8)
    row = resize(edge, 16)[0, 0, 5].int()
    assert (row[0], row[-1]) == (0, 255)
    assert (row.diff() >= -10).all()
    assert (row[:8] < 128).all()
    assert (row[8:] > 128).all()


def test_resize_does_not_copy_images_of_the_right_size(images_u8):
    assert resize(images_u8, 8) is images_u8


def test_to_grayscale_matches_pillow(images_u8):
    result = to_grayscale(images_u8)
    assert result.shape == (600, 1, 8, 8)
    for image, gray in zip(images_u8, result, strict=True):
        expected = np.asarray(Image.fromarray(image.permute(1, 2, 0).numpy()).convert("L"))
        assert np.abs(gray[0].numpy().astype(int) - expected).max() <= 1
    assert torch.equal(to_grayscale(EVERY_VALUE.expand(-1, 3, -1, -1)), EVERY_VALUE)


@pytest.mark.parametrize("change", [to_grayscale, lambda images_u8: resize(images_u8, 12)])
def test_map_chunks_result_does_not_depend_on_the_chunk_size(images_u8, change, monkeypatch):
    assert len(images_u8) > images_module.CHUNK
    at_once = change(images_u8)
    monkeypatch.setattr(images_module, "CHUNK", 7)
    assert torch.equal(change(images_u8), at_once)
