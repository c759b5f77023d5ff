"""The training objective."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from nvae.models.hierarchy import Level
from nvae.models.likelihoods import build_likelihood
from nvae.objective import (
    ElboTerms,
    balance_alphas,
    balanced_kl,
    balancing_weights,
    elbo_terms,
    kl_coefficient,
    regularization_coefficient,
    weighted_negative_elbo,
)
from nvae.schema import TrainingParameters


def level(groups: int) -> Level:
    return Level(groups, resolution=4, encoder_channels=4, decoder_channels=4, latent_size=2)


# -------------------------------------------------------------------------------------------------- ELBO terms


@pytest.mark.parametrize("method", ["gaussian", "gaussian_mixture", "logistic_mixture", "coupled_logistic_mixture"])
def test_beta_weighs_gradients_by_the_scales_of_the_pixels_and_changes_no_value(make_config, generator, method):
    likelihood = build_likelihood(make_config(sampling_method=method, n_mix=1))
    images = torch.rand(2, 3, 4, 4, generator=generator)
    raw = torch.randn(2, likelihood.num_parameters, 4, 4, generator=generator)

    def gradient(beta):
        output = raw.clone().requires_grad_()
        px_z = likelihood(output)
        terms = elbo_terms(SimpleNamespace(px_z=px_z, kl=torch.zeros(2, 1)), images, beta)
        terms.log_likelihood.sum().backward()
        return terms.log_likelihood.detach(), output.grad, px_z.log_scale().detach()

    (value, plain, scales), (same, weighted, _) = gradient(None), gradient(torch.tensor(0.5))
    torch.testing.assert_close(value, same)
    expected = (0.5 * scales).exp()
    expected = expected / expected.mean((1, 2, 3), keepdim=True)
    if method == "coupled_logistic_mixture":  # one scale per pixel
        torch.testing.assert_close(weighted, expected * plain)
    else:
        channels = list(likelihood.mean_channels)
        means = channels if len(channels) == 3 else channels[1::2]  # logit and mean of every image channel
        torch.testing.assert_close(weighted[:, means], expected * plain[:, means])


@torch.no_grad()
def test_elbo_is_the_log_likelihood_minus_the_kl_of_all_groups(make_model, generator):
    images = torch.rand(3, 3, 8, 8, generator=generator)
    model = make_model()
    result = model(images, model.draw_noise(3, generator, posterior=True))
    terms = elbo_terms(result, images)
    log_likelihood = result.px_z.log_prob(images).sum((1, 2, 3))
    torch.testing.assert_close(terms.log_likelihood, log_likelihood)
    torch.testing.assert_close(terms.elbo, log_likelihood - sum(group.kl for group in result.groups.values()))


# ---------------------------------------------------------------------------------------------- KL and its balance


@pytest.mark.parametrize(
    ("epoch", "warmup", "expected"),
    [(0, 30, 1e-4), (0.001, 30, 1e-4), (15, 30, 0.5), (7.5, 30, 0.25), (30, 30, 1), (300, 30, 1), (0, 0, 1), (1, 0, 1)],
)
def test_kl_coefficient_rises_linearly_to_one(epoch, warmup, expected):
    assert kl_coefficient(epoch, warmup) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("epoch", "expected"),
    [(0, 1e-4), (2, 1e-4), (2.001, 1e-4), (4.5, 0.25), (7, 0.5), (11.9, 0.99), (12, 1), (100, 1)],
)
def test_kl_coefficient_with_a_delay_rises_linearly_after_it(epoch, expected):
    assert kl_coefficient(epoch, 10, 2) == pytest.approx(expected)


@pytest.mark.parametrize("minimum", [1e-9, 1e-4, 0.3, 1.0])
def test_kl_coefficient_is_never_below_its_minimum(minimum):
    """max(min((step - constant) / total, 1), minimum), as in the original."""
    for epoch in (0, 1.9, 2, 2.5, 4, 11.9, 12, 20):
        expected = max(min((epoch - 2) / 10, 1), minimum)
        assert kl_coefficient(epoch, 10, 2, minimum) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("position", [0.0, 1e-4, 0.25, 0.5, 1.0])
def test_regularization_coefficient_is_geometric_in_the_kl_coefficient(position):
    """From 100 to 1, the value at half of the warm-up is 10."""
    coefficient = regularization_coefficient(0.01, 1.0, position)
    assert coefficient == pytest.approx(1.0 ** (1 - position) * 0.01**position)
    assert regularization_coefficient(1.0, 100.0, 0.5) == pytest.approx(10)


def test_regularization_coefficient_is_constant_without_an_initial_value():
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
def test_balance_alphas_are_powers_of_four_over_the_groups_of_a_scale(groups, expected):
    assert balance_alphas([level(n) for n in groups]) == pytest.approx(expected)


def test_loss_balances_the_kl_with_a_mean_kl_alone(generator):
    terms = ElboTerms(torch.zeros(5), 10 * torch.rand(5, 6, generator=generator))
    levels, mean_kl = [level(2), level(4)], terms.kl.mean(0)
    for coefficient in (0.25, torch.tensor(0.25)):
        plain = weighted_negative_elbo(terms, levels, TrainingParameters(), coefficient, dimensions=12)
        balanced = weighted_negative_elbo(terms, levels, TrainingParameters(), coefficient, 12, mean_kl)
        assert plain.weighted_kl == 0.25 * terms.kl.sum(1).mean()
        assert balanced.weighted_kl == balanced_kl(terms.kl, levels, 0.25).mean()


def test_balancing_weights_have_mean_one_and_carry_no_gradient(generator):
    kl = (10 * torch.rand(5, 6, generator=generator)).requires_grad_()
    balanced_kl(kl, [level(2), level(4)], 0.25).sum().backward()
    torch.testing.assert_close(kl.grad, kl.grad[:1].expand(5, 6), msg="the weight of a group differs between images")
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
    weights = balancing_weights(kl.abs().mean(0), [level(1), level(2)])
    assert weights.tolist() == pytest.approx([weight / (sum(raw) / 3) for weight in raw])
    assert not weights.requires_grad


def test_balanced_kl_weighs_a_negative_kl_by_its_absolute_value(generator):
    """The KL of a posterior with a flow is estimated from a sample and can be negative."""
    kl = torch.tensor([[-3.0, 3.0], [-3.0, 3.0]])
    torch.testing.assert_close(balanced_kl(kl, [level(2)], 0.5), torch.zeros(2))


@pytest.mark.parametrize(
    ("loss_scale", "unit"), [("nats", 1), ("nats_per_dimension", 12), ("bits_per_dimension", 12 * math.log(2))]
)
def test_loss_is_in_the_unit_of_the_loss_scale(loss_scale, unit):
    terms = ElboTerms(torch.tensor([-30.0, -50.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    schedule = TrainingParameters(loss_scale=loss_scale)
    loss = weighted_negative_elbo(terms, [level(2)], schedule, 0.5, dimensions=12)
    assert loss.negative_elbo.item() == pytest.approx((40 + 2.5) / unit)
    assert loss.weighted_kl.item() == pytest.approx(2.5 / unit)


def test_kl_coefficient_with_a_delay_and_no_warmup_is_a_step():
    assert [kl_coefficient(epoch, 0, 2) for epoch in (1.99, 2, 3)] == [1e-4, 1, 1]
