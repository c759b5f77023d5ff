import os
import re

import pytest
import torch
from torch import nn

from nvae.errors import UserError
from nvae.inference import recalibration
from nvae.inference.recalibration import (
    PASS_IMAGES,
    Statistics,
    StatisticsCache,
    _Moments,
    decoder_norms,
    measure,
    recalibrated,
)
from nvae.models.hierarchy import FromNoise
from nvae.seeds import seeded


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_the_statistics_are_the_exact_averages_of_the_passes(make_model):
    """Against moments collected with hooks: the mean of the passes' means, mean variance plus variance of means."""
    model, iterations = make_model(), 5
    norm = model.groups[-1].cells[0].norm3
    inputs = []
    hook = norm.register_forward_pre_hook(lambda module, args: inputs.append(args[0].double()))
    model.train()
    generator = seeded(0, "batch-norm readjustment")
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.0  # so that looking changes nothing
    with torch.no_grad():
        for _ in range(iterations):
            model.top_down(FromNoise(model.draw_noise(PASS_IMAGES, generator), 0.7), PASS_IMAGES)
    hook.remove()
    model.eval()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    with recalibrated(model, 0.7, iterations):
        torch.testing.assert_close(norm.running_mean.double(), means.mean(0), rtol=1e-5, atol=1e-6)
        expected = variances.mean(0) + means.var(0, correction=0)
        torch.testing.assert_close(norm.running_var.double(), expected, rtol=1e-5, atol=1e-6)


def test_everything_is_as_before_afterwards(make_model):
    model = make_model()
    before = state(model)
    momenta = [norm.momentum for norm in decoder_norms(model)]
    with recalibrated(model, 0.7, 2):
        during = state(model)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], during[name]) for name in before)
    assert not any(module.training for module in model.modules())
    assert [norm.momentum for norm in decoder_norms(model)] == momenta


def test_the_encoder_is_left_alone(make_model):
    model = make_model()
    before = state(model.encoder)
    with recalibrated(model, 0.7, 2):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.encoder.state_dict().items())


def test_no_iterations_leave_the_statistics_of_training(make_model):
    model = make_model()
    before = state(model)
    with recalibrated(model, 0.7, 0):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_temperature_has_the_same_statistics(make_model):
    results = []
    for _ in range(2):
        model = make_model()
        with recalibrated(model, 0.7, 3):
            results.append(state(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_statistics_that_are_not_finite_are_refused_and_undone(make_model):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    before = state(model)
    with pytest.raises(UserError, match="not finite at temperature 0.7"), recalibrated(model, 0.7, 3):
        pass
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# ------------------------------------------------------------------------------------------- measured, and settled


def test_measuring_leaves_the_model_as_it_was(make_model):
    model = make_model()
    before, random_state = state(model), torch.get_rng_state()
    momenta = [norm.momentum for norm in decoder_norms(model)]
    found = measure(model, 0.7, 2)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert [norm.momentum for norm in decoder_norms(model)] == momenta
    assert torch.equal(torch.get_rng_state(), random_state)
    own = [norm.running_mean for norm in decoder_norms(model)]
    assert not any(torch.equal(mean, other) for mean, other in zip(found.means, own, strict=True))


def test_measuring_that_is_interrupted_leaves_the_model_as_it_was(make_model, monkeypatch):
    model = make_model()
    before, passes, top_down = state(model), [], model.top_down

    def interrupted(*args):
        passes.append(args)
        if len(passes) == 3:
            raise KeyboardInterrupt
        return top_down(*args)

    monkeypatch.setattr(model, "top_down", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure(model, 0.7, 5)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())


def test_no_iterations_are_no_statistics(make_model, tmp_path):
    model = make_model()
    cache = StatisticsCache(model, tmp_path / "a.model")
    with recalibrated(model, 0.7, 0, cache=cache) as found:
        assert found is None
    assert not cache.path.exists()


def test_readjusting_yields_what_it_sets(make_model):
    model = make_model()
    with recalibrated(model, 0.7, 2) as found:
        for norm, mean, variance in zip(decoder_norms(model), found.means, found.variances, strict=True):
            assert torch.equal(norm.running_mean, mean)
            assert torch.equal(norm.running_var, variance)


def test_the_uncertainty_is_the_relative_standard_error_of_variance_and_mean():
    norm = nn.BatchNorm2d(3)
    moments = _Moments(norm)
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(6, 3, generator=generator)
    variances = torch.rand(6, 3, generator=generator) + 0.5
    for mean, variance in zip(means, variances, strict=True):
        norm.running_mean.copy_(mean)
        norm.running_var.copy_(variance)
        moments.add(norm)
    scale = variances.mean(0) + norm.eps
    errors = variances.var(0) / 6 / scale.square() + means.var(0) / 6 / scale
    assert moments.uncertainty() == pytest.approx(errors.mean().sqrt().item(), rel=1e-5)
    torch.testing.assert_close(moments.mean, means.mean(0))
    torch.testing.assert_close(moments.variance(), variances.mean(0) + means.var(0, correction=0))


def test_one_pass_that_explodes_is_never_outweighed():
    norm = nn.BatchNorm2d(1)
    moments = _Moments(norm)
    for variance in [1.0] * 99 + [1e6]:
        norm.running_mean.zero_()
        norm.running_var.fill_(variance)
        moments.add(norm)
    assert moments.uncertainty() == pytest.approx(1, abs=0.01)


def test_the_usual_passes_settle(make_model):
    found = measure(make_model(), 0.7)
    assert found.settled
    assert found.notice is None
    assert 0 < found.uncertainty < measure(make_model(), 0.7, 2).uncertainty


def test_one_pass_cannot_tell(make_model):
    found = measure(make_model(), 0.7, 1)
    assert not found.settled
    assert "one pass cannot tell" in found.notice
    assert "give more ITERATIONS" in found.notice


def test_passes_that_differ_wildly_are_reported(make_model, monkeypatch):
    """A network that comes to something else at every pass: its constant at the top wanders."""
    model = make_model()
    top_down, steps = model.top_down, iter([0, 30, -60, 90])

    def wandering(*args):
        model.constant.data += next(steps)
        return top_down(*args)

    monkeypatch.setattr(model, "top_down", wandering)
    found = measure(model, 0.7, 4)
    assert found.uncertainty > 0.5
    assert not found.settled
    assert "have not settled" in found.notice
    assert f"uncertain by {found.uncertainty:.0%}" in found.notice
    assert "give more ITERATIONS" in found.notice


@pytest.mark.parametrize("moment", ["means", "variances"])
def test_the_digest_tells_statistics_from_others(make_model, moment):
    model = make_model()
    found, again = measure(model, 0.7, 2), measure(model, 0.7, 2)
    assert found.digest == again.digest
    assert re.fullmatch("[0-9a-f]{16}", found.digest)
    getattr(again, moment)[-1][0] += 1e-3
    assert found.digest != again.digest


# ------------------------------------------------------------------------------------------------------ the cache


def same(one, other):
    tensors = zip((*one.means, *one.variances), (*other.means, *other.variances), strict=True)
    return all(torch.equal(a, b) for a, b in tensors) and one.uncertainty == other.uncertainty


def made_up(model, seed=0):
    """Statistics that nobody measured."""
    generator = torch.Generator().manual_seed(seed)
    norms = decoder_norms(model)
    means, variances = ([torch.rand(norm.num_features, generator=generator) for norm in norms] for _ in range(2))
    return Statistics(means, variances, 0.1 + seed)


@pytest.fixture(scope="module")
def model_of_cache(make_model):
    return make_model()


@pytest.fixture
def cache(model_of_cache, tmp_path):
    """Of a model in a folder that holds nothing."""
    return StatisticsCache(model_of_cache, tmp_path / "a.model")


def test_the_second_use_finds_what_the_first_kept_bit_for_bit(make_model, tmp_path):
    model = make_model()
    found = measure(model, 0.7, 2)
    StatisticsCache(model, tmp_path / "a.model").keep(0.7, 2, found)
    again = StatisticsCache(make_model(), tmp_path / "a.model").find(0.7, 2)
    assert same(found, again)
    assert again.digest == found.digest
    assert os.listdir(tmp_path) == ["a.model.statistics"]


def test_only_the_first_use_measures(make_model, tmp_path, monkeypatch):
    measured = []

    def spy(model, temperature, iterations, progress):
        measured.append((temperature, iterations))
        return measure(model, temperature, iterations, progress)

    monkeypatch.setattr(recalibration, "measure", spy)
    states = []
    for _ in range(2):
        model = make_model()
        with recalibrated(model, 0.7, 2, cache=StatisticsCache(model, tmp_path / "a.model")):
            states.append(state(model))
    assert measured == [(0.7, 2)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    with recalibrated(model, 0.7, 1, cache=StatisticsCache(model, tmp_path / "a.model")):
        pass
    assert measured == [(0.7, 2), (0.7, 1)]


def test_statistics_are_of_one_temperature_and_one_number_of_passes(cache):
    kept = made_up(cache.model)
    cache.keep(0.7, 2, kept)
    assert cache.find(0.7, 3) is None
    assert cache.find(0.70001, 2) is None
    assert cache.find([0.7] * 4, 2) is None
    assert same(cache.find(0.7, 2), kept)


def test_temperatures_per_group_are_a_key_of_their_own(cache):
    keys = [1, [1, 1, 1, 1], [1, 1, 1, 0.5], [0.5, 1, 1, 1]]
    kept = [made_up(cache.model, seed) for seed in range(len(keys))]
    for key, statistics in zip(keys, kept, strict=True):
        cache.keep(key, 2, statistics)
    assert all(same(cache.find(key, 2), statistics) for key, statistics in zip(keys, kept, strict=True))
    assert same(cache.find(1.0, 2), kept[0])
    assert same(cache.find((0.5, 1.0, 1.0, 1.0), 2), kept[3])


def test_what_is_kept_anew_takes_the_place_of_what_was(cache):
    cache.keep(0.7, 2, made_up(cache.model, 0))
    cache.keep(0.7, 2, made_up(cache.model, 1))
    assert same(cache.find(0.7, 2), made_up(cache.model, 1))


def other_weights(make_model):
    model = make_model()
    model.groups[0].posterior_head.bias.data[0] += 1e-3
    return model


OTHERS = {
    "weights": other_weights,
    "architecture": lambda make_model: make_model(temperature_scales_min_sigma=True),  # with the very same weights
}


@pytest.mark.parametrize("other", OTHERS)
def test_another_model_does_not_find_them_and_takes_their_place(make_model, cache, other):
    kept = made_up(cache.model)
    cache.keep(0.7, 2, kept)
    others = StatisticsCache(OTHERS[other](make_model), cache.path.with_suffix(""))
    assert others.path == cache.path
    assert others.find(0.7, 2) is None
    others.keep(0.8, 2, kept)
    assert same(others.find(0.8, 2), kept)
    assert others.find(0.7, 2) is None
    assert cache.find(0.7, 2) is None


def test_how_a_model_was_trained_does_not_matter(make_model, cache):
    cache.keep(0.7, 2, made_up(cache.model))
    longer = make_model(training_parameters={"epochs": 7}, dataset={"name": "toy_faces"})
    assert same(StatisticsCache(longer, cache.path.with_suffix("")).find(0.7, 2), made_up(longer))


def test_a_file_is_of_the_model_file_beside_it(cache):
    cache.keep(0.7, 2, made_up(cache.model))
    assert StatisticsCache(cache.model, cache.path.with_name("b.model")).find(0.7, 2) is None


def cut_off(path):
    path.write_bytes(path.read_bytes()[:-1000])


def text(path):
    path.write_bytes(b"hello")


def foreign(path):
    torch.save([torch.zeros(3)], path)


def overwritten(path):
    """As by a disk that forgets: some bytes within the tensors."""
    content = torch.load(path, weights_only=True)
    (entry,) = content["statistics"].values()
    whole = bytearray(path.read_bytes())
    middle = whole.index(entry["means"][0].numpy().tobytes())
    whole[middle : middle + 16] = bytes(16)
    path.write_bytes(whole)


def edited(change):
    """The file with its one entry changed."""

    def edit(path):
        content = torch.load(path, weights_only=True)
        (entry,) = content["statistics"].values()
        change(entry)
        torch.save(content, path)

    return edit


DAMAGES = {
    "cut off": cut_off,
    "text": text,
    "foreign": foreign,
    "overwritten": overwritten,
    "a NaN": edited(lambda entry: entry["means"][3].fill_(float("nan"))),
    "infinite": edited(lambda entry: entry["variances"][-1].fill_(float("inf"))),
    "one lacks": edited(lambda entry: entry["means"].pop()),
    "all lack": edited(lambda entry: entry.pop("variances")),
    "no tensors": edited(lambda entry: entry.update(means=[5.0] * len(entry["means"]))),
    "no list": edited(lambda entry: entry.update(variances=5)),
    "no uncertainty": edited(lambda entry: entry.update(uncertainty=None)),
    "another shape": edited(lambda entry: entry.update(means=[torch.zeros(1)] * len(entry["means"]))),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_counts_as_empty_and_is_replaced(cache, damage):
    kept = made_up(cache.model)
    cache.keep(0.7, 2, kept)
    DAMAGES[damage](cache.path)
    assert cache.find(0.7, 2) is None
    cache.keep(0.7, 2, kept)
    assert same(cache.find(0.7, 2), kept)
    assert os.listdir(cache.path.parent) == ["a.model.statistics"]


def test_where_nothing_can_be_written_nothing_is_kept(make_model, tmp_path):
    (tmp_path / "file").write_text("")
    model = make_model()
    cache = StatisticsCache(model, tmp_path / "file" / "a.model")
    with recalibrated(model, 0.7, 2, cache=cache) as found:
        assert same(found, measure(make_model(), 0.7, 2))
    assert cache.find(0.7, 2) is None
    assert os.listdir(tmp_path) == ["file"]


def test_statistics_that_are_not_finite_are_not_kept(make_model, tmp_path):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    cache = StatisticsCache(model, tmp_path / "a.model")
    with pytest.raises(UserError), recalibrated(model, 0.7, 3, cache=cache):
        pass
    assert not cache.path.exists()


def test_the_newest_fifty_are_kept(cache):
    kept = made_up(cache.model)
    cache.keep(0, 2, kept)
    content = torch.load(cache.path, weights_only=True)
    ((key, entry),) = content["statistics"].items()
    content["statistics"] = {key.replace("0.0", f"{t}.0"): entry for t in range(50)}  # what 50 calls would leave
    torch.save(content, cache.path)
    assert same(cache.find(0, 2), kept)
    assert same(cache.find(49, 2), kept)
    cache.keep(50, 2, kept)
    cache.keep(51, 2, kept)
    assert [cache.find(t, 2) is None for t in (0, 1, 2, 49, 50, 51)] == [True, True, False, False, False, False]
    assert len(torch.load(cache.path, weights_only=True)["statistics"]) == 50
    assert os.listdir(cache.path.parent) == ["a.model.statistics"], "no file before is kept"
