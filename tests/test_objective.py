"""What training minimizes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from nvae.models.hierarchy import Level
from nvae.models.nvae.convolutions import is_spectrally_normalized, normalized
from nvae.objective import (
    SpectralRegularization,
    balance_alphas,
    balanced_kl,
    balancing_weights,
    batch_norm_regularization,
    bound,
    kl_coefficient,
    regularization_coefficient,
    regularized_convolutions,
)


def level(groups: int) -> Level:
    return Level(groups, resolution=4, encoder_channels=4, decoder_channels=4, latent_size=2)


# ------------------------------------------------------------------------------------------------------- bound


@torch.no_grad()
def test_the_elbo_is_the_log_likelihood_minus_the_kl_of_all_groups(make_model, generator):
    images = torch.rand(3, 3, 8, 8, generator=generator)
    result = make_model()(images, generator)
    found = bound(result, images)
    log_likelihood = result.pixels.log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(found.log_likelihood, log_likelihood)
    assert torch.equal(found.kl, result.kl)
    torch.testing.assert_close(found.elbo, log_likelihood - sum(group.kl for group in result.groups.values()))


# ---------------------------------------------------------------------------------------------- KL and its balance


@pytest.mark.parametrize(
    ("epoch", "warmup", "expected"),
    [(0, 30, 1e-4), (0.001, 30, 1e-4), (15, 30, 0.5), (7.5, 30, 0.25), (30, 30, 1), (300, 30, 1), (0, 0, 1), (1, 0, 1)],
)
def test_the_kl_coefficient_rises_linearly_to_one(epoch, warmup, expected):
    assert kl_coefficient(epoch, warmup) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-4), (2, 1e-4), (2.001, 1e-4), (4.5, 0.25), (7, 0.5), (11.9, 0.99), (12, 1), (100, 1)],
)
def test_after_a_delay_the_kl_coefficient_rises_as_it_would_have(epoch, expected):
    assert kl_coefficient(epoch, 10, 2) == pytest.approx(expected)


@pytest.mark.parametrize("position", [0.0, 1e-4, 0.25, 0.5, 1.0])
def test_the_regularization_moves_geometrically_along_the_kls_warm_up(position):
    """Half-way between 100 and 1 lies 10."""
    found = regularization_coefficient(0.01, 1.0, position)
    assert found == pytest.approx(1.0 ** (1 - position) * 0.01**position)
    assert regularization_coefficient(1.0, 100.0, 0.5) == pytest.approx(10)


def test_the_regularization_is_constant_without_a_beginning_and_off_at_zero():
    assert [regularization_coefficient(0.05, None, position) for position in (0.0, 0.3, 1.0)] == [0.05] * 3
    assert [regularization_coefficient(0.0, 1.0, position) for position in (0.0, 0.3, 1.0)] == [0.0] * 3


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([1], [1]),
        ([3], [1, 1, 1]),
        ([1, 1, 1], [1, 4, 16]),
        ([2, 4], [1, 1, 2, 2, 2, 2]),  # 1/2 and 4/4
        ([1, 8], [2] + 8 * [1]),  # 1 and 4/8
    ],
)
def test_alphas_are_powers_of_four_over_the_groups_of_the_scale_and_the_smallest_is_one(groups, expected):
    assert balance_alphas([level(n) for n in groups]) == pytest.approx(expected)


@pytest.mark.parametrize("coefficient", [1.0, 1.5])
def test_after_the_warm_up_the_kl_is_the_plain_sum(coefficient, generator):
    kl = 10 * torch.rand(5, 6, generator=generator)
    assert torch.equal(balanced_kl(kl, [level(2), level(4)], coefficient), kl.sum(1))


def test_during_the_warm_up_groups_weigh_in_proportion_to_their_kl_over_alpha(generator):
    kl = (10 * torch.rand(5, 3, generator=generator)).double()
    weights = (kl.mean(0) + 0.01) / torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64) * kl.mean(0).sum()
    alphas = torch.tensor(balance_alphas([level(1), level(8)])[:3], dtype=torch.float64)
    assert alphas.tolist() == [2, 1, 1]
    found = balanced_kl(
        torch.cat([kl, kl[:, 1:2].expand(-1, 6)], 1), [level(1), level(8)], 0.3
    )  # nine groups, the last six like the second
    weights = torch.cat([weights, weights[1:2].expand(6)])
    expected = 0.3 * (torch.cat([kl, kl[:, 1:2].expand(-1, 6)], 1) * weights / weights.mean()).sum(1)
    torch.testing.assert_close(found, expected)


def test_balancing_weights_have_mean_one_and_carry_no_gradient(generator):
    kl = (10 * torch.rand(5, 6, generator=generator)).requires_grad_()
    balanced_kl(kl, [level(2), level(4)], 0.25).sum().backward()
    torch.testing.assert_close(kl.grad, kl.grad[:1].expand(5, 6), msg="a weight is the same for the whole batch")
    torch.testing.assert_close(kl.grad[0].mean().item(), 0.25)
    assert kl.grad[0].std() > 0.01
    assert kl.grad[0].argmax() == ((kl.mean(0) + 0.01) / torch.tensor([1.0, 1, 2, 2, 2, 2])).argmax()


def test_balancing_weights_are_the_formula_of_the_paper(generator):
    """Proportional to (mean |KL| + 0.01) * (the sum of these) / alpha, divided by their mean (NVAE's program)."""
    kl = (10 * torch.randn(5, 3, generator=generator)).double().requires_grad_()
    size = [kl[:, g].abs().mean().item() + 0.01 for g in range(3)]
    alphas = balance_alphas([level(1), level(2)])
    assert alphas == pytest.approx([1, 2, 2])
    raw = [size[g] * sum(size) / alphas[g] for g in range(3)]
    found = balancing_weights(kl, [level(1), level(2)])
    assert found.tolist() == pytest.approx([weight / (sum(raw) / 3) for weight in raw])
    assert not found.requires_grad


def test_a_group_with_a_negative_kl_is_weighed_by_its_size(generator):
    """With a flow on the posterior alone the KL is a sample's, which can be negative."""
    kl = torch.tensor([[-3.0, 3.0], [-3.0, 3.0]])
    torch.testing.assert_close(balanced_kl(kl, [level(2)], 0.5), torch.zeros(2))


# ---------------------------------------------------------------------------------------- spectral regularization


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
    (SpectralRegularization(regularized_convolutions(model, "all"))() + batch_norm_regularization(model)).backward()
    assert all(torch.equal(old, new) for old, new in zip(before, model.buffers(), strict=True))


def test_a_model_without_batch_norms_has_no_batch_norm_regularization(make_model):
    model = make_model(arch_instance="res_elu")
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    found = batch_norm_regularization(model)
    assert found.shape == ()
    assert found.item() == 0
    assert batch_norm_regularization(make_model(arch_instance="res_bnelu")).item() > 0


def test_the_batch_norm_regularization_sums_the_largest_gammas():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1), nn.Sequential(nn.BatchNorm2d(2)))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.5, -3.0, 2.0]))
        model[2][0].weight.copy_(torch.tensor([0.25, 0.125]))
    loss = batch_norm_regularization(model)
    assert loss.item() == 3.25
    loss.backward()
    assert model[0].weight.grad.tolist() == [0, -1, 0]
    assert model[2][0].weight.grad.tolist() == [1, 0]


def test_a_delay_without_a_rise_is_a_step():
    assert [kl_coefficient(epoch, 0, 2) for epoch in (1.99, 2, 3)] == [1e-4, 1, 1]
