"""The search for copies of training images."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from nvae.evaluation.quality import copies as module
from nvae.evaluation.quality.copies import find_copies, thumbnails, thumbnails_of


def pictures(count, generator, size=32, channels=3):
    """Return smooth random pictures with edges, uint8 (N, C, S, S)."""
    gray, colors = (torch.rand(count, c, 5, 5, generator=generator) for c in (1, channels))
    colors = 0.6 * gray + 0.4 * colors
    smooth = functional.interpolate(colors, (size, size), mode="bicubic").clamp(0, 1)
    edges = functional.interpolate(torch.rand(count, 1, 7, 7, generator=generator), (size, size)) > 0.7
    return (smooth * ~edges).mul(255).round().byte()


def noisy(images_u8, sigma, generator):
    noise = 255 * sigma * torch.randn(images_u8.shape, generator=generator)
    return (images_u8.float() + noise).round().clamp(0, 255).byte()


def jpeg(images_u8, quality):
    result = []
    for pixels in images_u8.permute(0, 2, 3, 1).numpy():
        Image.fromarray(pixels.squeeze()).save(file := io.BytesIO(), "JPEG", quality=quality)
        result.append(torch.from_numpy(np.array(Image.open(file))).reshape(pixels.shape).permute(2, 0, 1))
    return torch.stack(result)


@pytest.mark.parametrize(("size", "channels"), [(28, 1), (32, 3), (64, 3)])
def test_every_kind_of_copy_is_found_and_no_new_picture(size, channels, generator):
    training, new = (pictures(300, generator, size, channels) for _ in range(2))
    planted = training[:24]
    moved = [planted.roll((y, x), (2, 3)) for y in (-1, 0, 1) for x in (-1, 0, 1)]
    kinds = [*moved, noisy(planted, 0.02, generator), noisy(moved[0], 0.02, generator), jpeg(planted, 90)]
    for copies in kinds:
        found = find_copies(thumbnails_of(copies), training)
        assert found.count == 24 and found.nearest.tolist() == list(range(24))
    assert find_copies(thumbnails_of(new), training).difference.min() > 2


@pytest.mark.parametrize("duplicates", [0, 10, 49, 200])
def test_near_duplicates_in_the_training_set_hide_no_copy(duplicates, generator):
    base = pictures(300, generator)
    one = base[:1]
    training = torch.cat([base, noisy(one.expand(duplicates, -1, -1, -1), 0.005, generator)])
    found = find_copies(noisy(one.expand(20, -1, -1, -1), 0.02, generator), training)
    assert found.count == 20 and set(found.nearest.tolist()) <= {0, *range(300, 300 + duplicates)}
    assert find_copies(pictures(20, generator), training).count == 0


def simple(i):
    """Return a plain background with a rectangle and a stripe, as a drawing or a logo has, (1, 16, 16)."""
    rng = np.random.default_rng(i)
    image = np.full((16, 16), rng.integers(0, 255), np.uint8)
    image[3:10, 3:12] = rng.integers(0, 255)
    image[i % 12 : i % 12 + 2] = rng.integers(0, 255)
    return torch.from_numpy(image)[None]


@pytest.mark.parametrize(("count", "most"), [(10, 0), (29, 2), (100, 2), (1000, 10)])
def test_new_simple_pictures_and_gray_noise_are_no_copies(count, most, generator):
    # Of 1,000 pictures of four gray levels, some differ from a new one by 2 % of black to white.
    training = torch.stack([simple(i) for i in range(count)])
    assert find_copies(torch.stack([simple(i) for i in range(10**6, 10**6 + 200)]), training).count <= most
    gray = torch.full((20, 1, 16, 16), 128, dtype=torch.uint8)
    for sigma in (0, 0.02, 0.1, 0.3):
        assert find_copies(noisy(gray, sigma, generator), training).count == 0


def test_plain_picture_is_a_copy_of_an_equal_one_only():
    plain = torch.arange(0, 250, 50, dtype=torch.uint8)[:, None, None, None].expand(5, 1, 8, 8)
    assert find_copies(plain, plain).difference.tolist() == [0] * 5
    assert find_copies(plain + 1, plain).count == 0


@pytest.mark.parametrize("amount", [0.5, 0.9, 1.1, 2])
@pytest.mark.parametrize(("channel", "limit"), [(0, 0.025), (1, 0.06), (2, 0.06)])
def test_a_difference_of_brightness_or_color_is_over_the_largest_of_a_copy(channel, limit, amount, generator):
    training = pictures(3, generator) // 2 + 64  # no value is cut off
    to_rgb = torch.linalg.inv(torch.tensor(module.YCBCR, dtype=torch.float64))
    changed = training + 255 * amount * limit * to_rgb[:, channel, None, None]
    found = find_copies(changed.round().byte(), training)
    torch.testing.assert_close(found.difference, torch.full((3,), float(amount)), rtol=0, atol=0.5 / 255 / limit)


@pytest.mark.parametrize(("chunk", "rows"), [(7, 3), (120, 5), (4000, 1000)])
def test_nearest_is_that_of_all_pairs_whatever_the_chunks(chunk, rows, generator, monkeypatch):
    training, samples = pictures(120, generator, 10), pictures(11, generator, 10)
    whole = find_copies(samples, training)
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "SAMPLES", rows)
    parts = find_copies(samples, training)
    assert parts.nearest.tolist() == whole.nearest.tolist() and torch.equal(parts.difference, whole.difference)
    moved = [samples[..., 1 + y : 9 + y, 1 + x : 9 + x] for y in (-1, 0, 1) for x in (-1, 0, 1)]
    still = training[..., 1:9, 1:9].double().flatten(1)
    distances = torch.stack([torch.cdist(part.double().flatten(1), still) for part in moved]).amin(0)
    assert whole.nearest.tolist() == distances.argmin(1).tolist()


def test_large_images_are_compared_as_thumbnails(generator):
    training = pictures(10, generator, 64, 1)
    small = thumbnails(training.float() / 255)
    assert small.shape == (10, 1, 32, 32)
    copies = find_copies(small[:2], training)
    assert copies.difference.tolist() == [0, 0] and copies.equal == 2 and copies.nearest.tolist() == [0, 1]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 33, 48])
def test_images_of_any_size_are_compared(size, generator):
    training = torch.randint(0, 256, (9, 3, size, size), generator=generator, dtype=torch.uint8)
    copies = find_copies(thumbnails_of(training), training)
    assert copies.difference.tolist() == [0] * 9 and copies.nearest.tolist() == list(range(9))


def test_images_of_fewer_bits_are_compared_as_the_model_sees_them(generator):
    training = pictures(10, generator, 8)
    five_bits = (training[:3] >> 3).float() / 31
    copies = find_copies(thumbnails(five_bits), training, bits=5)
    assert copies.difference.tolist() == [0, 0, 0]


def test_most_alike_are_the_smallest_differences(generator):
    training, new = pictures(30, generator), pictures(10, generator)
    copies = find_copies(
        torch.cat([new[:5], training[[5, 7]], new[5:], noisy(training[3:4], 0.02, generator)]), training
    )
    assert copies.most_alike(3) == [5, 6, 12] and copies.nearest[[5, 6, 12]].tolist() == [5, 7, 3]


def test_held_out_images_that_equal_a_training_image_are_counted_apart(make_model, generator):
    from nvae.data.images import Data
    from nvae.evaluation.quality.measure import Settings, measure_quality
    from nvae.evaluation.quality.report import to_dict
    from nvae.inference.sampling import Sampler

    model, training = make_model(), pictures(40, generator, 8)
    near = noisy(training[:3], 0.01, generator)
    data = Data(training, torch.cat([training[:2], near, pictures(15, generator, 8)]))
    settings = Settings(("copies",), 20, (3,))
    quality = measure_quality(model, data, [], [Sampler(model, 0.7, iterations=0)], settings, keep_features=False)
    assert to_dict(quality)["copies_among_held_out_images"] == {"images": 20, "equal": 2, "copies": 3}
