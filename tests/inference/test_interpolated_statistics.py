"""Predicted statistics against measured ones."""

import pytest
import torch

from nvae.inference.interpolated_statistics import HIGH, LOW, MIDDLE, InterpolatedStatistics
from nvae.inference.recalibration import measure
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.system.errors import InvalidValueError

PASSES = 3
GRAY_LEVEL = 1 / 255
NINE_GROUPS = {"number_of_scales": 3, "initial_splits_per_scale": 3}
MODELS = [
    pytest.param({}, id="seed"),
    pytest.param({"style": "nvlabs"}, id="original"),
    pytest.param(NINE_GROUPS, id="nine groups", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def interpolated(model):
    return InterpolatedStatistics(model, PASSES)


@pytest.mark.parametrize("changes", MODELS)
def test_images_are_within_two_gray_levels_of_the_exact_ones_between_the_nodes(make_model, changes):
    """The 99th percentile of all pixels. The statistics at MIDDLE are farther away, so the test would notice."""
    model = make_model(**changes)
    count = len(model.groups)
    interpolated = InterpolatedStatistics(model, PASSES)

    def error(temperature, statistics, exact):
        images = Sampler(model, temperature, PASSES, statistics=statistics).sample(32)
        return (images - exact).abs().flatten().quantile(0.99).item() / GRAY_LEVEL

    middle = []
    for temperature in ([0.5] * count, [0.9] * count, [(LOW, 0.85)[i % 2] for i in range(count)]):
        exact = Sampler(model, temperature, PASSES).sample(32)
        assert error(temperature, interpolated.at(temperature), exact) <= 2
        middle.append(error(temperature, interpolated.at(MIDDLE), exact))
    assert max(middle) > 1


def test_prediction_is_the_measurement_at_the_nodes(model, interpolated):
    for temperature in (MIDDLE, [MIDDLE, LOW, MIDDLE, MIDDLE], [MIDDLE, MIDDLE, MIDDLE, HIGH]):
        predicted = interpolated.at(temperature)
        measured = measure(model, [temperature] * 4 if temperature == MIDDLE else temperature, PASSES)
        assert predicted.means.keys() == measured.means.keys()
        for name, mean in measured.means.items():
            assert torch.equal(predicted.means[name], mean)
            assert torch.equal(predicted.variances[name], measured.variances[name])


def test_prediction_is_quadratic_and_additive(interpolated):
    """Third differences in the temperature of one group, and mixed differences of two groups, are zero."""

    def mean(*temperatures):
        return torch.cat(list(interpolated.at([*temperatures, 0.8, 0.8]).means.values())).double()

    a, b, c, d = (mean(t, 0.6) for t in (0.5, 0.6, 0.7, 0.8))
    assert (a - 3 * b + 3 * c - d).abs().max() < 1e-5 < (a - d).abs().max()
    mixed = mean(0.5, 0.5) - mean(0.9, 0.5) - mean(0.5, 0.9) + mean(0.9, 0.9)
    assert mixed.abs().max() < 1e-5


@pytest.mark.parametrize("temperature", [0.0, 3.0])
def test_variances_far_outside_the_nodes_are_positive(model, interpolated, temperature):
    statistics = interpolated.at(temperature)
    assert min(variance.min().item() for variance in statistics.variances.values()) > 0
    assert Sampler(model, temperature, statistics=statistics).sample(2).isfinite().all()


@pytest.mark.slow
def test_interrupted_measurements_are_kept_and_a_second_program_measures_none(model, tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path))
    done = []

    def until(most):
        def progress(items, description):
            for item in items:
                if description == "measuring statistics" and len(done) == most:
                    raise KeyboardInterrupt
                if description != "measuring statistics":
                    done.append(item)
                yield item

        return progress

    with pytest.raises(KeyboardInterrupt):
        InterpolatedStatistics(model, 1, StatisticsCache(model, "a.model"), until(4))
    InterpolatedStatistics(model, 1, StatisticsCache(model, "a.model"), until(None))
    assert len(done) == 1 + 2 * 4
    again = InterpolatedStatistics(model, 1, StatisticsCache(model, "a.model"), until(None))
    assert len(done) == 1 + 2 * 4
    assert again.at(0.8).digest == InterpolatedStatistics(model, 1).at(0.8).digest


def test_no_batch_norms_need_no_statistics(make_dvp):
    assert InterpolatedStatistics(make_dvp(), PASSES).at(0.8) is None


def test_temperature_is_checked(interpolated):
    with pytest.raises(InvalidValueError):
        interpolated.at([0.7] * 3)
