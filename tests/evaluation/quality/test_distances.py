"""Frechet and kernel distance: closed forms, and the numbers of torch-fidelity on the same features."""

import math

import numpy as np
import pytest
import torch

from nvae.evaluation.quality.distances import FeatureStatistics, blocks, frechet_distance, kernel_distance
from nvae.system.errors import InvalidValueError


@pytest.fixture
def features(generator):
    """Two sets of features of six dimensions that depend on each other."""
    mixing = torch.randn(6, 6, generator=generator)
    a = torch.randn(400, 6, generator=generator) @ mixing
    b = torch.randn(300, 6, generator=generator) @ mixing * 1.3 + 0.5
    return a, b


def test_statistics_are_those_of_numpy(features):
    statistics = FeatureStatistics.of(features[0])
    a = features[0].double().numpy()
    np.testing.assert_allclose(statistics.mean, a.mean(0), atol=1e-12)
    np.testing.assert_allclose(statistics.covariance, np.cov(a, rowvar=False), atol=1e-12)


def test_frechet_distance_of_normals_with_diagonal_covariances():
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]).double(), torch.tensor([0.0, 1.0, 0.5]).double()
    sigma_a, sigma_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 2.0, 0.0]).double()
    a = FeatureStatistics(mean_a, torch.diag(sigma_a.square()), 10)
    b = FeatureStatistics(mean_b, torch.diag(sigma_b.square()), 10)
    expected = (mean_a - mean_b).square().sum() + (sigma_a - sigma_b).square().sum()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_does_not_depend_on_the_axes(features, generator):
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator).double()).Q
    a, b = (part.double() for part in features)
    before = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    after = frechet_distance(FeatureStatistics.of(a @ rotation), FeatureStatistics.of(b @ rotation))
    assert after == pytest.approx(before, rel=1e-9)


def test_frechet_distance_of_equal_sets_is_zero(features):
    a = FeatureStatistics.of(features[0])
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_of_sets_smaller_than_their_dimensions(generator):
    a, b = torch.randn(5, 20, generator=generator), torch.randn(5, 20, generator=generator)
    distance = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert math.isfinite(distance) and distance > 0


@pytest.mark.parametrize(("images", "expected"), [(5, True), (6, True), (7, False), (400, False)])
def test_statistics_of_no_more_images_than_features_have_too_few(features, images, expected):
    statistics = FeatureStatistics.of(features[0][:images])
    assert statistics.has_too_few_images is expected
    assert (torch.linalg.matrix_rank(statistics.covariance) < 6).item() is expected


def test_frechet_distance_agrees_with_torch_fidelity(features):
    metric_fid = pytest.importorskip("torch_fidelity.metric_fid")
    a, b = features
    theirs = metric_fid.fid_statistics_to_metric(
        metric_fid.fid_features_to_statistics(a), metric_fid.fid_features_to_statistics(b), verbose=False
    )
    ours = frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    assert ours == pytest.approx(theirs["frechet_inception_distance"], rel=1e-5)


def test_kernel_distance_agrees_with_torch_fidelity_on_every_block(features):
    metric_kid = pytest.importorskip("torch_fidelity.metric_kid")
    a, b = features[0][:300], features[1]
    theirs = [
        metric_kid.kid_features_to_metric(a[x], b[y], kid_subsets=1, kid_subset_size=30, verbose=False, rng_seed=0)
        for x, y in blocks(300, len(b))
    ]
    values = np.array([each["kernel_inception_distance_mean"] for each in theirs])
    ours = kernel_distance(a, b)
    assert ours.mean == pytest.approx(values.mean(), rel=1e-5)
    assert ours.standard_error == pytest.approx(values.std(ddof=1) / math.sqrt(10), rel=1e-5)


@pytest.mark.parametrize(("counts", "number"), [((300, 300), 10), ((25_000, 4_000), 25), ((9, 5), 2), ((2, 900), 1)])
def test_blocks_are_disjoint_and_small(counts, number):
    both = [torch.cat(of_a_set) for of_a_set in zip(*blocks(*counts), strict=True)]
    assert [sorted(indices.tolist()) for indices in both] == [list(range(count)) for count in counts]
    assert len(list(blocks(*counts))) == number
    assert max(len(part) for pair in blocks(*counts) for part in pair) <= 1000


def test_kernel_distance_of_a_set_in_the_order_of_its_classes(generator):
    """Consecutive blocks would compare different classes."""
    classes = torch.arange(10).repeat_interleave(40)[:, None] + 0.1 * torch.randn(400, 3, generator=generator)
    shuffled = classes[torch.randperm(400, generator=generator)]
    distance = kernel_distance(classes, shuffled)
    assert abs(distance.mean) < 4 * distance.standard_error
    assert distance.mean < 0.1 * kernel_distance(classes + 1, shuffled).mean


def test_kernel_distance_is_unbiased(generator):
    """Of two sets of one distribution, the mean over many draws is zero within its error."""
    draws = [
        kernel_distance(torch.randn(40, 3, generator=generator), torch.randn(40, 3, generator=generator)).mean
        for _ in range(200)
    ]
    draws = torch.tensor(draws)
    assert abs(draws.mean()) < 4 * draws.std() / math.sqrt(200)
    assert draws.min() < 0


def test_kernel_distance_grows_with_the_shift(features):
    a = features[0][:300]
    distances = [kernel_distance(a, a.roll(150, 0) + shift).mean for shift in (0, 1, 2)]
    assert distances == sorted(distances)


@pytest.mark.parametrize("count", [0, 1])
def test_too_few_features_are_refused(count):
    with pytest.raises(InvalidValueError):
        FeatureStatistics.of(torch.zeros(count, 4))
