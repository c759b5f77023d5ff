import pytest
import torch
from torch import nn

from nvae.errors import UserError
from nvae.model.hierarchy import FromPrior
from nvae.sampling.batch_norm import PASS_IMAGES, decoder_norms, readjusted
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
            model.top_down(FromPrior(0.7, generator), PASS_IMAGES)
    hook.remove()
    model.eval()
    means = torch.stack([x.mean((0, 2, 3)) for x in inputs])
    variances = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs])
    with readjusted(model, 0.7, iterations):
        torch.testing.assert_close(norm.running_mean.double(), means.mean(0), rtol=1e-5, atol=1e-6)
        expected = variances.mean(0) + means.var(0, correction=0)
        torch.testing.assert_close(norm.running_var.double(), expected, rtol=1e-5, atol=1e-6)


def test_everything_is_as_before_afterwards(make_model):
    model = make_model()
    before = state(model)
    momenta = [norm.momentum for norm in decoder_norms(model)]
    with readjusted(model, 0.7, 2):
        during = state(model)
    after = state(model)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(not torch.equal(before[name], during[name]) for name in before)
    assert not any(module.training for module in model.modules())
    assert [norm.momentum for norm in decoder_norms(model)] == momenta


def test_the_encoder_is_left_alone(make_model):
    model = make_model()
    before = state(model.encoder)
    with readjusted(model, 0.7, 2):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.encoder.state_dict().items())


def test_no_iterations_leave_the_statistics_of_training(make_model):
    model = make_model()
    before = state(model)
    with readjusted(model, 0.7, 0):
        assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_the_same_temperature_has_the_same_statistics(make_model):
    results = []
    for _ in range(2):
        model = make_model()
        with readjusted(model, 0.7, 3):
            results.append(state(model))
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_statistics_that_are_not_finite_are_refused_and_undone(make_model):
    model = make_model()
    model.groups[-1].decoder_combiner.bias.data.fill_(float("inf"))
    before = state(model)
    with pytest.raises(UserError, match="not finite at temperature 0.7"), readjusted(model, 0.7, 3):
        pass
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
