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
    """Convolutions of several shapes, some of them equal; some weight-normalized, one depthwise."""
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


def test_singular_values_match_the_singular_value_decomposition(convolutions):
    for convolution in convolutions:
        (value,) = SpectralRegularization([convolution]).singular_values(2000)
        torch.testing.assert_close(value, true_values([convolution])[0], rtol=1e-4, atol=0)


def test_singular_values_of_weights_of_one_shape_are_separate(convolutions):
    values = SpectralRegularization(convolutions).singular_values(2000)
    torch.testing.assert_close(values.sort().values, true_values(convolutions).sort().values, rtol=1e-4, atol=0)


def test_spectral_regularization_sums_squared_singular_values(convolutions):
    spectral = SpectralRegularization(convolutions)
    spectral.singular_values(2000)
    torch.testing.assert_close(spectral(), true_values(convolutions).square().sum(), rtol=1e-4, atol=0)


def test_spectral_regularization_with_exponent_one_sums_singular_values(convolutions):
    spectral = SpectralRegularization(convolutions, exponent=1)
    spectral.singular_values(2000)
    torch.testing.assert_close(spectral(), true_values(convolutions).sum(), rtol=1e-4, atol=0)
    assert abs(true_values(convolutions).sum() - true_values(convolutions).square().sum()) > 0.1


@pytest.mark.parametrize("exponent", [1, 2])
def test_spectral_regularization_gradient_matches_the_singular_value_decomposition(convolutions, exponent):
    weights = [parameter for convolution in convolutions for parameter in convolution.parameters()]
    spectral = SpectralRegularization(convolutions, exponent)
    spectral.singular_values(5000)
    gradients = torch.autograd.grad(spectral(), weights, materialize_grads=True)
    expected = torch.autograd.grad(true_values(convolutions).pow(exponent).sum(), weights, materialize_grads=True)
    assert sum(gradient.abs().max() > 0.1 for gradient in expected) >= len(convolutions)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-3)


def test_spectral_regularization_continues_its_power_iteration(convolutions):
    """30 steps of one iteration equal one step of 30, and a state dictionary keeps the vectors."""
    stepwise, at_once = SpectralRegularization(convolutions), SpectralRegularization(convolutions)
    start = stepwise.singular_values(1)
    for _ in range(29):
        values = stepwise.singular_values()
    torch.testing.assert_close(values, at_once.singular_values(30), rtol=1e-6, atol=0)
    assert not torch.equal(values, start)
    resumed = SpectralRegularization(convolutions)
    resumed.load_state_dict(stepwise.state_dict())
    assert torch.equal(resumed.singular_values(), stepwise.singular_values())
    assert set(stepwise.state_dict()), "no vector is saved"
    assert list(stepwise.parameters()) == [], "the weights belong to the model"


def test_spectral_regularization_starts_with_40_power_iterations():
    """Of a diagonal matrix S, k iterations turn a vector r into S^2k r, up to its length."""
    convolution, values = nn.Conv2d(3, 3, 1), torch.tensor([1.0, 0.99, 0.97])
    with torch.no_grad():
        convolution.weight.copy_(values.diag()[:, :, None, None])
    (vectors,) = SpectralRegularization([convolution]).buffers()
    start = torch.randn(1, 3, 1, generator=torch.Generator().manual_seed(0)).flatten()
    torch.testing.assert_close(vectors.flatten(), nn.functional.normalize(values**80 * start, dim=0))


def test_spectral_regularization_starts_near_the_exact_value_and_follows_the_weights(convolutions):
    spectral = SpectralRegularization(convolutions)
    exact = true_values(convolutions).square().sum()
    assert 0.9 * exact < spectral() <= exact * (1 + 1e-5)
    with torch.no_grad():
        for convolution in convolutions[:4]:
            convolution.weight.mul_(2)
        convolutions[4].parametrizations.weight.original0.mul_(2)  # g scales the effective weight
        convolutions[5].weight.mul_(2)
        convolutions[6].parametrizations.weight.original0.mul_(2)
        convolutions[7].parametrizations.weight.original0.add_(math.log(2))
    assert 0.9 * 4 * exact < spectral() <= 4 * exact * (1 + 1e-5)


STYLES = pytest.mark.parametrize("style", ["mgp123", "nvlabs"])


@STYLES
def test_regularized_convolutions_cells_and_heads(make_model, style):
    model = make_model(num_flows=1, style=style)
    regularized = {id(convolution) for convolution in regularized_convolutions(model, "cells_and_heads")}
    outside = ("encoder.stem", "encoder.top", "encoder_combiner", "decoder_combiner", "output.head", "flow", ".skip.")
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            assert (id(module) in regularized) == (not any(part in name for part in outside)), name
    heads = [m for name, m in model.named_modules() if name.endswith(("prior_head", "posterior_head"))]
    assert len([m for m in heads if isinstance(m, nn.Conv2d)]) == 7  # the top group has no prior head


@STYLES
def test_regularized_convolutions_all_include_flows_once(make_model, style):
    model = make_model(num_flows=1, style=style)
    regularized = [id(convolution) for convolution in regularized_convolutions(model, "all")]
    expected = [id(module) for module in model.modules() if isinstance(module, nn.Conv2d)]
    assert sorted(regularized) == sorted(expected)
    flows = [id(m) for group in model.groups for m in group.flow.modules() if isinstance(m, nn.Conv2d)]
    assert len(flows) == 4 * 2 * 3
    assert set(flows) <= set(regularized)


@pytest.mark.parametrize("scope", ["all", "cells_and_heads"])
def test_regularized_convolutions_leave_out_spectral_normalization(make_model, scope):
    """Their largest singular value is always one."""
    model = make_model(num_flows=1, spectral_normalization=True)
    regularized = regularized_convolutions(model, scope)
    assert not any(is_spectrally_normalized(convolution) for convolution in regularized)
    assert len(regularized) == (4 * 2 * 3 if scope == "all" else 0)  # in flows
    nothing = SpectralRegularization(regularized_convolutions(make_model(spectral_normalization=True), "all"))
    assert nothing().item() == 0


def test_regularization_does_not_iterate_spectral_normalization(make_model):
    model = make_model(spectral_normalization=True, num_flows=1).train()
    before = [buffer.clone() for buffer in model.buffers()]
    (SpectralRegularization(regularized_convolutions(model, "all"))() + BatchNormRegularization(model)()).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))


def test_batch_norm_regularization_without_batch_norms_is_zero(make_model):
    model = make_model(arch_instance="res_elu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    loss = BatchNormRegularization(model)()
    assert loss.shape == ()
    assert loss.item() == 0
    assert BatchNormRegularization(make_model(arch_instance="res_bnelu"))().item() > 0


def test_batch_norm_regularization_sums_the_largest_gammas():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.5, -3.0, 2.0]))
        model[2][0].weight.copy_(torch.tensor([0.25, 0.125]))
    loss = BatchNormRegularization(model)()
    assert loss.item() == 3.25
    loss.backward()
    assert model[0].weight.grad.tolist() == [0, -1, 0]
    assert model[2][0].weight.grad.tolist() == [1, 0]


def test_parts_of_several_processes_add_up_to_the_regularization(make_model):
    model = make_model(style="nvlabs", num_flows=1)
    terms, shared = model.regularization_terms(), model.regularization_terms()
    assert any(len(list(term.buffers())) > 3 for term in terms.values())
    for name, term in terms.items():
        before = [buffer.clone() for buffer in shared[name].buffers()]
        parts = [shared[name](slice(index, None, 3)) for index in range(2)]
        kept = [torch.equal(*pair) for pair in zip(shared[name].buffers(), before, strict=True)]
        assert all(kept[2::3]) and (not before or not all(kept))
        parts.append(shared[name](slice(2, None, 3)))
        torch.testing.assert_close(sum(parts), term())
        assert all(map(torch.equal, shared[name].buffers(), term.buffers()))
