"""The diagonal Normal of a latent group."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from nvae.config import config_from_dict
from nvae.models.distributions import (
    DiagonalNormal,
    SoftClampedNormal,
    at_least_float32,
    soft_clamp,
    standard_normal,
    standard_uniform,
)
from nvae.models.priors.diffusion import DiffusionPrior


@pytest.fixture
def two_normals(generator):
    mu, other_mu = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    sigma, other_sigma = torch.rand(2, 6, generator=generator, dtype=torch.float64) + 0.3
    return DiagonalNormal(mu, sigma), DiagonalNormal(other_mu, other_sigma)


def test_soft_clamp_is_five_tanh_of_a_fifth():
    x = torch.tensor([-100.0, -5.0, 0.0, 2.5, 5.0, 100.0], dtype=torch.float64)
    expected = torch.tensor([5 * math.tanh(v / 5) for v in x.tolist()], dtype=torch.float64)
    torch.testing.assert_close(soft_clamp(x), expected)


def test_soft_clamp_is_the_identity_near_zero_and_never_beyond_five():
    small = torch.linspace(-0.05, 0.05, 11, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(soft_clamp(small), small, rtol=1e-4, atol=0)
    (slope,) = torch.autograd.grad(soft_clamp(small).sum(), small)
    torch.testing.assert_close(slope, torch.ones_like(slope), rtol=1e-3, atol=0)
    assert soft_clamp(torch.tensor([1e30, -1e30])).tolist() == [5.0, -5.0]


def test_log_prob_is_the_density_of_a_normal(two_normals, generator):
    normal, _ = two_normals
    z = 3 * torch.randn(20, 6, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(normal.log_density(z), Normal(normal.mu, normal.sigma).log_prob(z))


def test_kl_is_the_mean_of_the_log_ratio(two_normals, generator):
    q, p = two_normals
    draws = 200_000
    z = q.sample(torch.randn(draws, 6, generator=generator, dtype=torch.float64))
    ratio = q.log_density(z) - p.log_density(z)  # (draws, 6)
    standard_error = ratio.std(0) / draws**0.5
    assert ((ratio.mean(0) - q.kl(p)).abs() < 5 * standard_error).all()
    assert (standard_error < 0.02 * q.kl(p).max()).all(), "the standard error is too large to test anything"


def test_kl_agrees_with_torch_and_is_not_symmetric(two_normals):
    q, p = two_normals
    torch.testing.assert_close(q.kl(p), kl_divergence(Normal(q.mu, q.sigma), Normal(p.mu, p.sigma)))
    assert (q.kl(p) - p.kl(q)).abs().max() > 0.1


def test_kl_of_equal_normals_is_zero_and_of_others_positive(two_normals):
    q, p = two_normals
    assert torch.equal(q.kl(q), torch.zeros(6, dtype=torch.float64))
    assert (q.kl(p) > 0).all()


@pytest.mark.parametrize("size", [1e-6, 1e-4, 1e-2, 1.0])
def test_small_kl_in_float32_agrees_with_float64(size, generator):
    """Of 100,000 units whose sigmas and means differ by `size`: with 1e-4, 0.0015 nats."""
    sigma, change, distance = torch.randn(3, 100_000, generator=generator, dtype=torch.float64)
    p = DiagonalNormal(torch.zeros(100_000), (0.3 * sigma).exp().float())
    q = DiagonalNormal((size * distance).float(), (0.3 * sigma + size * change).exp().float())
    excess, mu = q.sigma.double() / p.sigma.double() - 1, q.mu.double() / p.sigma.double()
    expected = (0.5 * (excess.square() + mu.square()) + (excess - excess.log1p())).sum()
    # Sigmas are rounded: where a difference is one unit in the last place, so is the error of a KL.
    assert q.kl(p).sum().item() == pytest.approx(expected.item(), rel=0.03 if size == 1e-6 else 1e-3)
    assert (q.kl(p) >= 0).double().mean() > 0.99


@pytest.mark.parametrize("ratio", [0.6, 0.5, 0.4, 1e-3, 1e-6, 1e-8, 1e-12])
def test_kl_of_a_narrow_posterior_in_float32_agrees_with_float64(ratio):
    sigma = torch.tensor([ratio], requires_grad=True)
    kl = DiagonalNormal(torch.zeros(1), sigma).kl(DiagonalNormal(torch.zeros(1), torch.ones(1)))
    kl.backward()
    assert kl.item() == pytest.approx((ratio**2 - 1) / 2 - math.log(ratio), rel=1e-6)
    assert sigma.grad.item() == pytest.approx(ratio - 1 / ratio, rel=1e-6)


@pytest.mark.parametrize("highest", [-3.0, 0.0, 7.0, 13.0, 20.0])
def test_end_of_a_diffusion_in_float32_agrees_with_float64(highest, generator):
    """KL(N(alpha z, sigma^2) || N(0, 1)), which for a large gamma at the end is about exp(-gamma) z^2 / 2."""
    config = config_from_dict(
        {"family": "ladder", "latents_per_scale": [1], "top_prior": "diffusion", "diffusion_min_gamma": -6.0}, "a test"
    ).model_copy(update={"diffusion_max_gamma": highest})
    prior = DiffusionPrior(config, (1, 4, 4), bounded=False)
    z = torch.randn(1000, 1, 4, 4, generator=generator)
    signal, noise = torch.tensor([-highest, highest], dtype=torch.float64).sigmoid()
    expected = 0.5 * (signal * z.double().square() - signal - torch.log1p(-signal)).flatten(1).sum(1)
    if highest == -3:
        expected = 0.5 * (signal * z.double().square() - signal - noise.log()).flatten(1).sum(1)
    torch.testing.assert_close(prior._end_term(z).double(), expected, rtol=1e-5, atol=1e-12)


def test_sample_is_mu_plus_sigma_times_noise(two_normals):
    normal, _ = two_normals
    noise = torch.arange(6, dtype=torch.float64) - 3
    torch.testing.assert_close(normal.sample(noise), normal.mu + normal.sigma * noise)


def test_sample_carries_the_gradient_of_its_parameters(two_normals):
    mu, sigma = (t.clone().requires_grad_() for t in (two_normals[0].mu, two_normals[0].sigma))
    noise = torch.arange(6, dtype=torch.float64) - 3
    DiagonalNormal(mu, sigma).sample(noise).sum().backward()
    assert torch.equal(mu.grad, torch.ones_like(noise))
    assert torch.equal(sigma.grad, noise)


def test_from_raw_takes_mu_then_log_sigma_both_clamped():
    raw = torch.tensor([1.0, -20.0, 0.5, 20.0], dtype=torch.float64).view(1, 4, 1, 1)  # two latents
    normal = SoftClampedNormal.from_raw(raw)
    clamped = [5 * math.tanh(v / 5) for v in (1.0, -20.0, 0.5, 20.0)]
    torch.testing.assert_close(normal.mu.flatten(), torch.tensor(clamped[:2], dtype=torch.float64))
    expected = torch.tensor([math.exp(clamped[2]) + 0.01, math.exp(clamped[3]) + 0.01], dtype=torch.float64)
    torch.testing.assert_close(normal.sigma.flatten(), expected)


@pytest.mark.parametrize("temperature", [0.0, 0.6, 1.0, 2.0])
@pytest.mark.parametrize(
    ("rule", "tempered"),
    [
        ("sigma", lambda sigma, t: sigma * t),  # NVAE's program: all of sigma
        ("sigma_above_minimum", lambda sigma, t: (sigma - 0.01) * t + 0.01),  # the seed: temperature 0 leaves 0.01
        ("variance", lambda sigma, t: sigma * t**0.5),  # Ladder VAE and DVP-VAE
    ],
)
def test_temperature_scales_sigma_by_its_rule_and_leaves_mu(rule, tempered, temperature, generator):
    raw = torch.randn(2, 6, 3, 3, generator=generator, dtype=torch.float64)
    normal, noise = SoftClampedNormal.from_raw(raw, rule), torch.randn(2, 3, 3, 3, generator=generator).double()
    expected = normal.mu + tempered(normal.sigma, temperature) * noise
    torch.testing.assert_close(normal.sample(noise, temperature), expected)


def test_to_noise_inverts_sample(two_normals):
    noise = torch.arange(6, dtype=torch.float64) - 3
    torch.testing.assert_close(two_normals[0].to_noise(two_normals[0].sample(noise)), noise)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_from_raw_converts_half_precision_to_float32(dtype):
    raw = torch.linspace(-3, 3, 8).to(dtype).view(1, 8, 1, 1)
    normal = SoftClampedNormal.from_raw(raw)
    assert normal.mu.dtype == normal.sigma.dtype == torch.float32
    torch.testing.assert_close(normal.mu, SoftClampedNormal.from_raw(raw.float()).mu, rtol=0, atol=0)
    assert at_least_float32(raw.double()).dtype == torch.float64


def test_standard_normal_depends_on_the_seed_and_not_on_the_dtype():
    def draw(dtype):
        return standard_normal(torch.empty(3, 4, dtype=dtype), torch.Generator().manual_seed(5))

    assert torch.equal(draw(torch.float32), draw(torch.float32))
    assert torch.equal(draw(torch.float32).double(), draw(torch.float64))
    assert not torch.equal(draw(torch.float32), standard_normal(torch.empty(3, 4), torch.Generator().manual_seed(6)))


def test_standard_noise_has_its_mean_and_variance(generator):
    draws = 100_000
    normal = standard_normal(torch.empty(draws), generator)
    assert abs(normal.mean()) < 5 / draws**0.5
    assert abs(normal.var() - 1) < 5 * (2 / draws) ** 0.5
    uniform = standard_uniform(torch.empty(draws), generator)
    assert abs(uniform.mean() - 0.5) < 5 / (12 * draws) ** 0.5
    assert abs(uniform.var() - 1 / 12) < 5 / (180 * draws) ** 0.5
    assert uniform.min() > 0
    assert uniform.max() < 1
