import os

import pytest
import torch

from nvae.inference import sampling
from nvae.inference.recalibration import Statistics, measure, prior_batch_norms
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.system.errors import UserError
from nvae.system.torch_files import write_whole

T = [0.7] * 4  # per group


def equal(one, other):
    pairs = [(one.means, other.means), (one.variances, other.variances)]
    same = all(list(a) == list(b) and all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs)
    return same and one.uncertainty == other.uncertainty


def made_up(model, seed=0):
    """Return statistics with arbitrary values."""
    generator = torch.Generator().manual_seed(seed)
    norms = prior_batch_norms(model)
    means, variances = (
        {name: torch.rand(norm.num_features, generator=generator) for name, norm in norms.items()} for _ in range(2)
    )
    return Statistics(means, variances, 0.1 + seed)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(autouse=True)
def weights(tmp_path, monkeypatch):
    """An empty saved_weights/ of the root folder, and an empty cache folder."""
    monkeypatch.setenv("NVAE_ROOT", str(tmp_path))
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "saved_weights").mkdir()
    return tmp_path / "saved_weights"


@pytest.fixture
def cache(model, weights):
    """A cache beside a model in an empty folder."""
    return StatisticsCache(model, weights / "a.model")


def test_kept_statistics_are_found_bit_for_bit(make_model, model, weights):
    statistics = measure(model, T, 2)
    StatisticsCache(model, weights / "a.model").keep(T, 2, statistics)
    again = StatisticsCache(make_model(), weights / "a.model").find(T, 2)
    assert equal(statistics, again)
    assert again.digest == statistics.digest
    assert os.listdir(weights) == ["a.model.statistics"]


@pytest.mark.parametrize(
    "path", ["elsewhere/a.model", "saved_weights/../elsewhere/a.model", "saved_weights/sub/a.model"]
)
def test_statistics_of_a_model_elsewhere_are_in_the_cache_folder(make_model, model, tmp_path, path):
    """A JSON file can name any model, so nothing is written beside the model."""
    folder = (tmp_path / path).parent
    folder.mkdir()
    StatisticsCache(model, tmp_path / path).keep(T, 2, made_up(model))
    assert os.listdir(folder) == [] and len(os.listdir(tmp_path / "cache" / "statistics")) == 1
    assert equal(StatisticsCache(make_model(), tmp_path / path).find(T, 2), made_up(model))
    assert StatisticsCache(other_weights(make_model), tmp_path / path).find(T, 2) is None


def test_sampler_measures_only_what_the_cache_lacks(model, weights, monkeypatch):
    measured = []

    def spy(model, temperature, iterations, progress):
        measured.append((temperature, iterations))
        return measure(model, temperature, iterations, progress)

    monkeypatch.setattr(sampling, "measure", spy)
    images = [Sampler(model, 0.7, 2, StatisticsCache(model, weights / "a.model")).sample(2) for _ in range(2)]
    assert measured == [(T, 2)]
    assert torch.equal(*images)
    assert Sampler(model, 0.7, 3, StatisticsCache(model, weights / "a.model")).statistics
    assert measured == [(T, 2), (T, 3)]


def test_no_iterations_leave_no_file(model, cache):
    assert Sampler(model, 0.7, 0, cache).statistics is None
    assert not cache.path.exists()


def test_statistics_belong_to_one_temperature_and_one_number_of_iterations(model, cache):
    keys = [(T, 2), (T, 3), ([0.7, 0.7, 0.7, 0.5], 2), ([0.5, 0.7, 0.7, 0.7], 2), ([0.70001] * 4, 2)]
    for seed, key in enumerate(keys):
        assert cache.find(*key) is None
        cache.keep(*key, made_up(model, seed))
    assert all(equal(cache.find(*key), made_up(model, seed)) for seed, key in enumerate(keys))
    cache.keep(T, 2, made_up(model, 9))
    assert equal(cache.find(T, 2), made_up(model, 9))


def other_weights(make_model):
    model = make_model()
    model.groups[0].posterior_head.bias.data[0] += 1e-3
    return model


OTHERS = {
    "weights": other_weights,
    "architecture": lambda make_model: make_model(temperature_scales_min_sigma=True),  # with the same weights
}


@pytest.mark.parametrize("other", OTHERS)
def test_statistics_of_another_model_are_ignored_and_replaced(make_model, model, cache, other):
    cache.keep(T, 2, made_up(model))
    other_cache = StatisticsCache(OTHERS[other](make_model), cache.path.with_suffix(""))
    assert other_cache.path == cache.path
    assert other_cache.find(T, 2) is None
    other_cache.keep([0.8] * 4, 2, made_up(model))
    assert equal(other_cache.find([0.8] * 4, 2), made_up(model))
    assert cache.find(T, 2) is None


def test_statistics_do_not_depend_on_the_training_schedule_and_data_set(make_model, model, cache):
    cache.keep(T, 2, made_up(model))
    longer = make_model(training_parameters={"epochs": 7}, dataset={"name": "toy_faces"})
    assert equal(StatisticsCache(longer, cache.path.with_suffix("")).find(T, 2), made_up(model))


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def text(path):
    path.write_bytes(b"hello")


def foreign(path):
    torch.save([torch.zeros(3)], path)


def overwritten(path):
    """Set some bytes of a tensor to zero."""
    content = torch.load(path, weights_only=True)
    (entry,) = content["statistics"].values()
    whole = bytearray(path.read_bytes())
    middle = whole.index(next(iter(entry["means"].values())).numpy().tobytes())
    whole[middle : middle + 16] = bytes(16)
    path.write_bytes(whole)


def edited(change):
    """Write the file with its one entry changed."""

    def edit(path):
        content = torch.load(path, weights_only=True)
        (entry,) = content["statistics"].values()
        change(entry)
        write_whole(content, path, keep_previous=False)

    return edit


DAMAGES = {
    "cut off": cut_off,
    "text": text,
    "foreign": foreign,
    "overwritten": overwritten,
    "a NaN": edited(lambda entry: list(entry["means"].values())[3].fill_(float("nan"))),
    "infinite": edited(lambda entry: list(entry["variances"].values())[-1].fill_(float("inf"))),
    "one lacks": edited(lambda entry: entry["means"].popitem()),
    "all lack": edited(lambda entry: entry.pop("variances")),
    "no tensors": edited(lambda entry: entry.update(means=dict.fromkeys(entry["means"], 5.0))),
    "no dictionary": edited(lambda entry: entry.update(variances=5)),
    "no uncertainty": edited(lambda entry: entry.update(uncertainty=None)),
    "lists, as in version 1": edited(
        lambda entry: entry.update(means=list(entry["means"].values()), variances=list(entry["variances"].values()))
    ),
    "another name": edited(lambda entry: entry["means"].update(other=entry["means"].popitem()[1])),
    "another shape": edited(lambda entry: entry.update(means=dict.fromkeys(entry["means"], torch.zeros(1)))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_cache_damaged_or_foreign_file_counts_as_empty_and_is_replaced(model, cache, damage):
    kept = made_up(model)
    cache.keep(T, 2, kept)
    DAMAGES[damage](cache.path)
    assert cache.find(T, 2) is None
    cache.keep(T, 2, kept)
    assert equal(cache.find(T, 2), kept)
    assert os.listdir(cache.path.parent) == ["a.model.statistics"]


def test_cache_file_that_cannot_be_written_is_skipped(model, tmp_path):
    (tmp_path / "cache").write_text("")
    cache = StatisticsCache(model, tmp_path / "elsewhere" / "a.model")
    assert equal(Sampler(model, 0.7, 2, cache).statistics, measure(model, T, 2))
    assert cache.find(T, 2) is None
    assert sorted(os.listdir(tmp_path)) == ["cache", "saved_weights"]


def test_cache_does_not_keep_statistics_that_are_not_finite(make_model, weights):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    cache = StatisticsCache(model, weights / "a.model")
    with pytest.raises(UserError):
        Sampler(model, 0.7, 3, cache).sample(1)
    assert not cache.path.exists()


@pytest.mark.slow
def test_cache_keeps_the_newest_entries(model, cache):
    kept, most = made_up(model), cache.max_entries
    cache.keep([0.0], 2, kept)
    content = torch.load(cache.path, weights_only=True)
    ((key, entry),) = content["statistics"].items()
    content["statistics"] = {key.replace("0.0", f"{t}.0"): entry for t in range(most)}
    write_whole(content, cache.path, keep_previous=False)
    assert equal(cache.find([0.0], 2), kept)
    for t in (most, most + 1):
        cache.keep([float(t)], 2, kept)
    is_kept = [cache.find([float(t)], 2) is not None for t in (0, 1, 2, most, most + 1)]
    assert is_kept == [False, False, True, True, True]
    assert len(torch.load(cache.path, weights_only=True)["statistics"]) == most
    assert os.listdir(cache.path.parent) == ["a.model.statistics"]  # and no previous file
