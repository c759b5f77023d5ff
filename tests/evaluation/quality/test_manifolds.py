"""Precision, recall, density and coverage: known sets, and the numbers of the package prdc."""

import pytest
import torch

from nvae.evaluation.quality import manifolds as module
from nvae.evaluation.quality.manifolds import manifolds
from nvae.system.errors import InvalidValueError


def test_equal_sets(generator):
    features = torch.randn(60, 4, generator=generator)
    for manifold in manifolds(features, features, (1, 5)).values():
        assert (manifold.precision, manifold.recall, manifold.coverage) == (1, 1, 1)


def test_disjoint_sets(generator):
    features = torch.randn(60, 4, generator=generator)
    for manifold in manifolds(features, features + 100, (1, 5)).values():
        assert tuple(manifold) == (0, 0, 0, 0)


def test_samples_in_half_of_the_real_images(generator):
    """Two far clusters of real images, samples in one: precise, and half of the images are recalled and covered."""
    near = torch.randn(200, 2, generator=generator)
    real = torch.cat([near[:100], near[100:] + 1000])
    samples = near[:100] + 1e-3 * torch.randn(100, 2, generator=generator)
    manifold = manifolds(real, samples, (5,))[5]
    assert manifold.precision == 1
    assert manifold.recall == 0.5
    assert manifold.coverage == 0.5


def test_one_repeated_sample_has_no_recall(generator):
    real = torch.randn(80, 3, generator=generator)
    manifold = manifolds(real, real[:1].expand(80, 3).clone(), (3,))[3]
    assert manifold.precision == 1
    assert manifold.recall == 1 / 80  # the image itself
    assert manifold.coverage <= 0.1


@pytest.mark.parametrize("copies", [2, 7])
@pytest.mark.parametrize("far", [0, 1e4])
def test_duplicates_contain_each_other(generator, copies, far):
    """k duplicates of every image, in both sets: all radii are 0, and every sample is an image."""
    features = torch.randn(30, 8, generator=generator) + far
    real, samples = features.repeat(copies, 1), features.flip(0).repeat(copies, 1)
    manifold = manifolds(real, samples, (1,))[1]
    assert tuple(manifold) == (1, 1, copies, 1)


def test_the_distance_of_the_neighbor_is_within():
    """Images 0, 1, ..., 19 on a line in six dimensions: the nearest neighbor of every image is at distance 1."""
    direction = torch.tensor([3.0, 1.0, 4.0, 1.0, 5.0, 9.0])
    line = torch.arange(20.0)[:, None] * direction + 1000
    manifold = manifolds(line, line + direction, (1,))[1]  # the last sample is an image's neighbor at distance 1
    assert (manifold.precision, manifold.recall, manifold.coverage) == (1, 1, 1)
    # 18 samples have 3 images at distances 0, 1, 1; then 2; the last one has 1.
    assert manifold.density == pytest.approx((18 * 3 + 2 + 1) / 20)
    apart = manifolds(line, line + 20.01 * direction, (1,))[1]
    assert tuple(apart) == (0, 0, 0, 0)


@pytest.mark.parametrize("ratio", [0.9999, 1.0001])
def test_a_distance_near_the_radius_is_decided_exactly(ratio):
    real = torch.tensor([[0.0, 0.0], [1.0, 0.0], [100.0, 0.0], [103.0, 0.0]])
    samples = torch.tensor([[0.0, 0.0], [0.0, ratio], [50.0, 50.0], [0.0, -2000.0]])
    expected = (2 if ratio < 1 else 1) / 4
    assert manifolds(real, samples, (1,))[1].precision == expected


@pytest.mark.slow
@pytest.mark.parametrize("chunk", [7, 1000])
@pytest.mark.parametrize("k", [1, 3, 5])
def test_agrees_with_prdc(generator, k, chunk, monkeypatch, capsys):
    prdc = pytest.importorskip("prdc")
    monkeypatch.setattr(module, "CHUNK", chunk)
    real = torch.randn(90, 5, generator=generator)
    samples = 0.8 * torch.randn(70, 5, generator=generator) + 0.3
    theirs = prdc.compute_prdc(real.double().numpy(), samples.double().numpy(), k)
    ours = manifolds(real, samples, (k,))[k]
    for name, value in theirs.items():
        assert getattr(ours, name) == pytest.approx(float(value), abs=1e-9), name


def test_several_numbers_of_neighbors_are_those_of_one(generator):
    real, samples = torch.randn(50, 3, generator=generator), torch.randn(40, 3, generator=generator)
    together = manifolds(real, samples, (5, 2))
    assert together == {k: manifolds(real, samples, (k,))[k] for k in (5, 2)}


@pytest.mark.parametrize(("real", "samples"), [(5, 50), (50, 5)])
def test_sets_no_larger_than_the_number_of_neighbors_are_refused(real, samples):
    with pytest.raises(InvalidValueError):
        manifolds(torch.rand(real, 2), torch.rand(samples, 2), (5,))
