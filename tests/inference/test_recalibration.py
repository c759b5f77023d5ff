import re

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from nvae.inference.recalibration import (
    PASS_IMAGES,
    Moments,
    measure,
    prior_batch_norms,
)
from nvae.models.batch_norms import restored_batch_norms
from nvae.models.hierarchy import FromNoise
from nvae.system.errors import UserError
from nvae.system.seeds import seeded


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_unchanged(model, before, momenta):
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(module.training for module in model.modules())
    assert [norm.momentum for norm in prior_batch_norms(model).values()] == momenta


def momenta_of(model):
    return [norm.momentum for norm in prior_batch_norms(model).values()]


# --------------------------------------------------------------------------------------------- which batch norms


@pytest.mark.parametrize("style", ["mgp123", "nvlabs"])
def test_prior_batch_norms_are_the_decoders(make_model, style):
    model = make_model(style=style)
    names = [name for name, module in model.named_modules() if isinstance(module, _BatchNorm)]
    assert list(prior_batch_norms(model)) == [name for name in names if not name.startswith("encoder")]


def test_prior_batch_norms_exclude_posterior_heads(make_model):
    """A family may have batch norms in posterior heads, which a pass from the prior does not use."""
    model = make_model()
    before = list(prior_batch_norms(model))
    head = model.groups[1].posterior_head
    model.groups[1].posterior_head = nn.Sequential(head, nn.BatchNorm2d(head.out_channels))
    assert list(prior_batch_norms(model)) == before
    statistics = measure(model.eval(), 0.7, 2)
    assert list(statistics.means) == before


def test_measure_of_a_model_without_batch_norms_is_none(make_model, monkeypatch):
    model = make_model()
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, nn.Identity())
    assert measure(model, 0.7) is None


# ---------------------------------------------------------------------------------------------------- statistics


def test_measure_averages_the_passes_exactly(make_model):
    """Compare with moments from hooks: the mean of the means; the mean variance plus the variance of the means."""
    model, iterations = make_model(), 5
    name = "groups.3.cells.0.norm3"
    inputs = []
    hook = model.get_submodule(name).register_forward_pre_hook(lambda module, args: inputs.append(args[0].double()))
    model.train()
    generator = seeded(0, "batch-norm readjustment")
    for module in model.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 0.0  # these passes must not change the statistics
    with torch.no_grad():
        for _ in range(iterations):
            model.top_down(FromNoise(model.draw_noise(PASS_IMAGES, generator), 0.7), PASS_IMAGES)
    hook.remove()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    statistics = measure(model.eval(), 0.7, iterations)
    torch.testing.assert_close(statistics.means[name].double(), means.mean(0), rtol=1e-5, atol=1e-6)
    expected = variances.mean(0) + means.var(0, correction=0)
    torch.testing.assert_close(statistics.variances[name].double(), expected, rtol=1e-5, atol=1e-6)


def test_measure_is_deterministic(make_model):
    one, other = (measure(make_model(), 0.7, 3) for _ in range(2))
    assert all(torch.equal(one.means[name], other.means[name]) for name in one.means)
    assert all(torch.equal(one.variances[name], other.variances[name]) for name in one.variances)


def test_measure_restores_the_model_and_the_random_state(make_model):
    model = make_model()
    before, momenta, random_state = state(model), momenta_of(model), torch.get_rng_state()
    statistics = measure(model, 0.7, 2)
    assert_unchanged(model, before, momenta)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert not any(torch.equal(before[f"{name}.running_mean"], mean) for name, mean in statistics.means.items())


def test_measure_leaves_the_model_as_it_is_between_the_passes_and_can_be_ended_there(make_model):
    """So that another thread can use the model, and an interface can drop a measurement."""
    model = make_model()
    before, momenta, noise = state(model), momenta_of(model), model.draw_noise(1)
    expected = model.top_down(FromNoise(noise), 1).parameters
    seen = []

    def progress(items, description):
        for item in items:
            assert_unchanged(model, before, momenta)
            seen.append(model.top_down(FromNoise(noise), 1).parameters)
            if item == 2:
                raise KeyboardInterrupt
            yield item

    with pytest.raises(KeyboardInterrupt):
        measure(model, 0.7, 5, progress)
    assert_unchanged(model, before, momenta)
    assert len(seen) == 3 and all(torch.equal(parameters, expected) for parameters in seen)


def test_measure_refuses_statistics_that_are_not_finite(make_model):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    before, momenta = state(model), momenta_of(model)
    with pytest.raises(UserError, match="recalibration"):
        measure(model, 0.7, 3)
    assert_unchanged(model, before, momenta)


def test_restored_batch_norms_keep_the_same_tensors():
    norm = nn.BatchNorm2d(2)
    own = norm.running_mean
    with restored_batch_norms([norm]):
        norm.running_mean = torch.ones(2)
        norm.momentum = 1.0
    assert norm.running_mean is own
    assert norm.momentum == 0.1


# --------------------------------------------------------------------------------------------------- uncertainty


def test_uncertainty_is_the_relative_standard_error_of_variance_and_mean():
    norm = nn.BatchNorm2d(3)
    moments = Moments(norm.running_mean, norm.eps)
    generator = torch.Generator().manual_seed(0)
    means = 10 * torch.randn(6, 3, generator=generator)
    variances = torch.rand(6, 3, generator=generator) + 0.5
    for mean, variance in zip(means, variances, strict=True):
        moments.add(mean, variance)
    scale = variances.mean(0) + norm.eps
    errors = variances.var(0) / 6 / scale.square() + means.var(0) / 6 / scale
    assert moments.uncertainty() == pytest.approx(errors.mean().sqrt().item(), rel=1e-5)
    torch.testing.assert_close(moments.mean, means.mean(0))
    torch.testing.assert_close(moments.variance(), variances.mean(0) + means.var(0, correction=0))


def test_uncertainty_is_one_where_a_single_pass_dominates():
    norm = nn.BatchNorm2d(1)
    moments = Moments(norm.running_mean, norm.eps)
    for variance in [1.0] * 99 + [1e6]:
        moments.add(torch.zeros(1), torch.tensor([variance]))
    assert moments.uncertainty() == pytest.approx(1, abs=0.01)


def test_measure_with_default_iterations_converges(make_model):
    statistics = measure(make_model(), 0.7)
    assert statistics.warning is None
    assert 0 < statistics.uncertainty < measure(make_model(), 0.7, 2).uncertainty


def test_warning_after_one_pass(make_model):
    statistics = measure(make_model(), 0.7, 1)
    assert statistics.warning


def test_warning_of_different_passes_has_the_uncertainty(make_model, monkeypatch):
    """The learned constant of this model changes with every pass."""
    model = make_model()
    top_down, steps = type(model).top_down, iter([0, 0, 30, -60, 90])

    def wandering(*args, **options):
        model.constant.data += next(steps)
        return top_down(*args, **options)

    monkeypatch.setattr(type(model), "top_down", wandering)
    statistics = measure(model, 0.7, 4)
    assert statistics.uncertainty > 0.5
    assert statistics.warning
    assert f"{statistics.uncertainty:.0%}" in statistics.warning


@pytest.mark.parametrize("moment", ["means", "variances"])
def test_digest_differs_between_different_statistics(make_model, moment):
    model = make_model()
    one, other = measure(model, 0.7, 2), measure(model, 0.7, 2)
    assert one.digest == other.digest
    assert re.fullmatch("[0-9a-f]{16}", one.digest)
    list(getattr(other, moment).values())[-1][0] += 1e-3
    assert one.digest != other.digest
