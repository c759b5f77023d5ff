"""Spectral and batch-norm regularization."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from nvae.models.nvae.convolutions import is_spectrally_normalized, normalized
from nvae.models.nvae.regularization import BatchNormRegularization, SpectralRegularization, regularized_convolutions


@pytest.fixture
def convolutions() -> list[nn.Conv2d]:
    """Of several shapes, some shared, one weight-normalized, one depthwise."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [
            nn.Conv2d(3, 5, 3),
            nn.Conv2d(3, 5, 3),
            nn.Conv2d(4, 2, 1),
            nn.Conv2d(6, 6, 5, groups=6),
            parametrizations.weight_norm(nn.Conv2d(3, 5, 3), dim=0),
            nn.Conv2d(2, 7, 1),
            normalized(nn.Conv2d(3, 5, 3), "linear"),
            normalized(nn.Conv2d(6, 4, 3), "exponential"),
        ]


def true_values(convolutions: list[nn.Conv2d]) -> torch.Tensor:
    return torch.stack([torch.linalg.svdvals(c.weight.flatten(1))[0] for c in convolutions])


def test_every_spectral_term_is_the_largest_singular_value_of_its_weight(convolutions):
    for convolution in convolutions:
        (found,) = SpectralRegularization([convolution]).singular_values(2000)
        torch.testing.assert_close(found, true_values([convolution])[0], rtol=1e-4, atol=0)


def test_weights_of_one_shape_handled_together_keep_their_own_singular_values(convolutions):
    found = SpectralRegularization(convolutions).singular_values(2000)
    torch.testing.assert_close(found.sort().values, true_values(convolutions).sort().values, rtol=1e-4, atol=0)


def test_the_regularization_is_the_sum_of_the_squared_singular_values(convolutions):
    spectral = SpectralRegularization(convolutions)
    spectral.singular_values(2000)
    torch.testing.assert_close(spectral(), true_values(convolutions).square().sum(), rtol=1e-4, atol=0)


def test_or_the_sum_of_the_singular_values_themselves(convolutions):
    spectral = SpectralRegularization(convolutions, exponent=1)
    spectral.singular_values(2000)
    torch.testing.assert_close(spectral(), true_values(convolutions).sum(), rtol=1e-4, atol=0)
    assert abs(true_values(convolutions).sum() - true_values(convolutions).square().sum()) > 0.1


@pytest.mark.parametrize("exponent", [1, 2])
def test_its_gradient_is_that_of_the_singular_value_decomposition(convolutions, exponent):
    weights = [parameter for convolution in convolutions for parameter in convolution.parameters()]
    spectral = SpectralRegularization(convolutions, exponent)
    spectral.singular_values(5000)
    found = torch.autograd.grad(spectral(), weights, materialize_grads=True)
    expected = torch.autograd.grad(true_values(convolutions).pow(exponent).sum(), weights, materialize_grads=True)
    assert sum(gradient.abs().max() > 0.1 for gradient in expected) >= len(convolutions)
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_power_iteration_goes_on_where_the_last_step_stopped(convolutions):
    """Many steps of one iteration are as good as one step of many; and a checkpoint keeps the place."""
    stepwise, at_once = SpectralRegularization(convolutions), SpectralRegularization(convolutions)
    start = stepwise.singular_values(1)
    for _ in range(29):
        found = stepwise.singular_values()
    torch.testing.assert_close(found, at_once.singular_values(30), rtol=1e-6, atol=0)
    assert not torch.equal(found, start)
    resumed = SpectralRegularization(convolutions)
    resumed.load_state_dict(stepwise.state_dict())
    assert torch.equal(resumed.singular_values(), stepwise.singular_values())
    assert set(stepwise.state_dict()), "nothing was kept"
    assert list(stepwise.parameters()) == [], "the weights belong to the model"


def test_it_starts_near_the_truth_and_follows_the_weights(convolutions):
    spectral = SpectralRegularization(convolutions)
    truth = true_values(convolutions).square().sum()
    assert 0.9 * truth < spectral() <= truth * (1 + 1e-5)
    with torch.no_grad():
        for convolution in convolutions[:4]:
            convolution.weight.mul_(2)
        convolutions[4].parametrizations.weight.original0.mul_(2)  # g scales the effective weight
        convolutions[5].weight.mul_(2)
        convolutions[6].parametrizations.weight.original0.mul_(2)
        convolutions[7].parametrizations.weight.original0.add_(math.log(2))
    assert 0.9 * 4 * truth < spectral() <= 4 * truth * (1 + 1e-5)


STYLES = pytest.mark.parametrize("style", ["mgp123", "nvlabs"])


@STYLES
def test_cells_and_heads_are_regularized_and_nothing_else(make_model, style):
    model = make_model(num_flows=1, style=style)
    found = {id(convolution) for convolution in regularized_convolutions(model, "cells_and_heads")}
    outside = ("encoder.stem", "encoder.top", "encoder_combiner", "decoder_combiner", "output.head", "flow", ".skip.")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (id(module) in found) == (not any(part in name for part in outside)), name
    heads = [m for name, m in model.named_modules() if name.endswith(("prior_head", "posterior_head"))]
    assert len([m for m in heads if isinstance(m, nn.Conv2d)]) == 7  # the top group has no prior head


@STYLES
def test_or_every_convolution_once_flows_included(make_model, style):
    model = make_model(num_flows=1, style=style)
    found = [id(convolution) for convolution in regularized_convolutions(model, "all")]
    expected = [id(module) for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(found) == sorted(expected)
    flows = [id(m) for group in model.groups for m in group.flow.modules() if isinstance(m, nn.Conv2d)]
    assert len(flows) == 4 * 2 * 3
    assert set(flows) <= set(found)


@pytest.mark.parametrize("scope", ["all", "cells_and_heads"])
def test_spectrally_normalized_convolutions_are_left_out(make_model, scope):
    """Their singular value is one already."""
    model = make_model(num_flows=1, spectral_normalization=True)
    found = regularized_convolutions(model, scope)
    assert not any(is_spectrally_normalized(convolution) for convolution in found)
    assert len(found) == (4 * 2 * 3 if scope == "all" else 0)  # the flows'
    nothing = SpectralRegularization(regularized_convolutions(make_model(spectral_normalization=True), "all"))
    assert nothing().item() == 0


def test_regularizing_a_spectrally_normalized_model_does_not_move_its_power_iterations(make_model):
    model = make_model(spectral_normalization=True, num_flows=1).train()
    before = [buffer.clone() for buffer in model.buffers()]
    (SpectralRegularization(regularized_convolutions(model, "all"))() + BatchNormRegularization(model)()).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))


def test_a_model_without_batch_norms_has_no_batch_norm_regularization(make_model):
    model = make_model(arch_instance="res_elu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    found = BatchNormRegularization(model)()
    assert found.shape == ()
    assert found.item() == 0
    assert BatchNormRegularization(make_model(arch_instance="res_bnelu"))().item() > 0


def test_the_batch_norm_regularization_sums_the_largest_gammas():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.5, -3.0, 2.0]))
        model[2][0].weight.copy_(torch.tensor([0.25, 0.125]))
    loss = BatchNormRegularization(model)()
    assert loss.item() == 3.25
    loss.backward()
    assert model[0].weight.grad.tolist() == [0, -1, 0]
    assert model[2][0].weight.grad.tolist() == [1, 0]
