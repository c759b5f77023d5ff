"""The search for copies of training images."""

import pytest
import torch

from nvae.evaluation.quality import copies as module
from nvae.evaluation.quality.copies import find_copies, thumbnails


@pytest.fixture
def training(generator):
    return torch.randint(0, 256, (120, 3, 8, 8), generator=generator, dtype=torch.uint8)


def test_planted_images_are_found_and_no_others(training, generator):
    planted = training[[5, 77, 3]]
    new = torch.randint(0, 256, (20, 3, 8, 8), generator=generator, dtype=torch.uint8)
    copies = find_copies(torch.cat([new[:10], planted, new[10:]]), training)
    assert copies.count == 3
    assert copies.most_alike(3) == [10, 11, 12]
    assert copies.nearest[10:13].tolist() == [5, 77, 3]
    assert copies.ratio[10:13].tolist() == copies.distance[10:13].tolist() == [0, 0, 0]
    others = torch.cat([copies.ratio[:10], copies.ratio[13:]])
    assert others.min() > 0.7


def test_copy_with_a_little_noise_is_found(training, generator):
    noisy = (training[:4].float() + 5 * torch.randn(4, 3, 8, 8, generator=generator)).clamp(0, 255).byte()
    copies = find_copies(noisy, training)
    assert copies.count == 4 and copies.nearest.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("chunk", "rows"), [(7, 3), (120, 5), (4000, 1000)])
def test_ratio_and_distance_are_those_of_all_pairs(training, generator, chunk, rows, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", chunk)
    monkeypatch.setattr(module, "SAMPLES", rows)
    samples = torch.randint(0, 256, (11, 3, 8, 8), generator=generator, dtype=torch.uint8)
    distances = torch.cdist(samples.double().flatten(1), training.double().flatten(1)) / 255
    nearest = distances.sort().values[:, :50]
    copies = find_copies(samples, training)
    torch.testing.assert_close(copies.ratio.double(), nearest[:, 0] / nearest.mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(copies.distance.double(), nearest[:, 0] / 192**0.5, rtol=1e-4, atol=1e-4)
    assert copies.nearest.tolist() == distances.argmin(1).tolist()


def test_large_images_are_compared_as_thumbnails(generator):
    training = torch.randint(0, 256, (10, 1, 64, 64), generator=generator, dtype=torch.uint8)
    small = thumbnails(training.float() / 255)
    assert small.shape == (10, 1, 32, 32)
    copies = find_copies(small[:2], training)
    assert copies.count == 2 and copies.nearest.tolist() == [0, 1]


def test_images_of_fewer_bits_are_compared_as_the_model_sees_them(training):
    five_bits = (training[:3] >> 3).float() / 31
    copies = find_copies(thumbnails(five_bits), training, bits=5)
    assert copies.distance.tolist() == [0, 0, 0]


def test_equal_training_images_give_no_division_by_zero():
    training = torch.full((60, 1, 4, 4), 7, dtype=torch.uint8)
    assert find_copies(training[:1], training).ratio.tolist() == [0]
