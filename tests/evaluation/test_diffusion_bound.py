"""Bounds on log p(x) with a diffusion prior, against densities that are known or integrated numerically."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from nvae.config import config_from_dict
from nvae.evaluation.likelihood import evaluate
from nvae.models.distributions import DiagonalNormal
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, GroupOutput, HierarchicalVAE, LatentSource, Level
from nvae.models.likelihoods import Likelihood
from nvae.models.priors.diffusion import DiffusionPrior
from nvae.models.priors.top_priors import LeadingNoiseNormal, TopPriorGroup

SIDE = 7
DVP = {
    "family": "dvp",
    "input_dimension": 2,
    "image_channels": 1,
    "sampling_method": "bernoulli",
    "latents_per_scale": [1],
    "latent_size": 1,
    "channels": 4,
    "encoder_blocks_per_scale": 1,
    "context_size": 1,
    "diffusion_steps": 3,
    "unet_blocks": 1,
    "unet_channels": 32,
}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def standard_log_density(z: torch.Tensor) -> torch.Tensor:
    return DiagonalNormal(torch.zeros(()), torch.ones(())).log_density(z).flatten(1).sum(1)


class ExactDiffusion(DiffusionPrior):
    """The diffusion prior whose network is the best one for z ~ N(0, s^2), E[n | z_t]."""

    def __init__(self, steps: int, schedule: str = "linear", sigma: float = 1.0, gamma: float = 12.0) -> None:
        self.sigma = sigma
        keys = {"diffusion_min_gamma": -gamma, "diffusion_max_gamma": gamma, "diffusion_steps": steps}
        config = config_from_dict(DVP | keys | {"diffusion_schedule": schedule}, "the test")
        super().__init__(config, (1, SIDE, SIDE), bounded=sigma < 1)
        self.eval()

    def predicted_noise(self, z, t):
        noise = self.schedule.gamma(t)[:, None, None, None].sigmoid()
        return noise.sqrt() * z / ((1 - noise) * self.sigma**2 + noise)


@pytest.mark.parametrize(("schedule", "gamma"), [("linear", 12.0), ("cosine", 8.0)])
def test_diffusion_bound_of_the_best_network_is_the_log_density(schedule, gamma):
    """Reverse and forward process are then the same, so the bound is tight but for the ends of the schedule."""
    prior = ExactDiffusion(steps=40, schedule=schedule, gamma=gamma)
    z = torch.randn(3, 1, SIDE, SIDE, generator=generator())
    draws = 400
    noise = torch.randn(3 * draws, *prior.posterior_noise_shape, generator=generator(1))
    estimates = prior(3).log_prob(z.repeat_interleave(draws, 0), noise).view(3, draws)
    error = estimates.std(1) / math.sqrt(draws)
    assert (estimates.mean(1) - standard_log_density(z)).abs().lt(4 * error + 0.02).all()
    assert error.max() < 2


def test_published_times_flatter_the_diffusion_bound():
    """The right-end sum over T times of a function that falls from D to 0 misses about D / 2T of the integral."""
    steps, draws = 25, 400
    prior, dimensions = ExactDiffusion(steps), SIDE**2
    z = torch.randn(1, 1, SIDE, SIDE, generator=generator())
    noise = torch.randn(draws, *prior.posterior_noise_shape, generator=generator(1))
    parts = prior.split_noise(noise)
    published = prior.losses(z.expand(draws, -1, -1, -1), parts, uniform_times=False).log_prob.mean()
    excess = (published - standard_log_density(z)).item()
    assert excess == pytest.approx(0.5 * 24.0 * dimensions / (2 * steps), rel=0.15)


@pytest.mark.parametrize(("schedule", "sigma"), [("linear", 0.2), ("cosine", 0.2), ("linear", 2.0)])
def test_samples_of_the_best_network_have_the_density(schedule, sigma):
    """With sigma 0.2, the clamp of a bounded z to [-1, 1] does not act; z with sigma 2 is not bounded."""
    prior = ExactDiffusion(steps=400, schedule=schedule, sigma=sigma, gamma=8.0)
    z = prior(1).sample(torch.randn(200, *prior.noise_shape, generator=generator())) / sigma
    assert z.mean().abs() < 0.05
    assert z.std().item() == pytest.approx(1, rel=0.03)
    assert z.pow(4).mean().item() == pytest.approx(3, rel=0.15)


# ----------------------------------------------------- a linear-Gaussian model with D = 49 numbers in its only latent

GAIN, NOISE = 0.1, 0.05  # x = 0.5 + GAIN u + NOISE n


class LinearGroup(TopPriorGroup):
    level = Level(1, SIDE, 1, 1, 1)

    def __init__(self, prior, mean_error: float) -> None:
        super().__init__()
        self.top_prior, self.mean_error = prior, mean_error

    def prior(self, state):
        return state, self.top_prior(len(state))

    def posterior(self, state, features, prior):
        variance = 1 / (1 + (GAIN / NOISE) ** 2)
        mu = variance * GAIN / NOISE**2 * features + self.mean_error
        return LeadingNoiseNormal(mu, torch.full_like(mu, math.sqrt(variance)))

    def merge(self, state, z):
        return z


class Pixels:
    def __init__(self, u):
        self.normal = DiagonalNormal(0.5 + GAIN * u, torch.tensor(NOISE))

    def log_prob(self, images):
        return self.normal.log_density(images)

    def mean(self):
        return self.normal.mu


class LinearModel(HierarchicalVAE):
    def __init__(self, prior, mean_error: float = 0.0) -> None:
        config = config_from_dict(DVP, "the test").model_copy(update={"input_dimension": SIDE})
        group = LinearGroup(prior, mean_error)
        super().__init__(config, [group.level], Likelihood(1, Pixels, 0.0, range(1)))
        self.groups = nn.ModuleList([group])
        self.eval()

    def bottom_up(self, images):
        return [images - 0.5]

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 1)

    def decode(self, state, channels=None):
        return state


def images_and_log_density(count: int) -> tuple[torch.Tensor, float]:
    """Return uint8 images, and the mean of their log densities in the linear-Gaussian model."""
    sigma = math.sqrt(GAIN**2 + NOISE**2)
    images = 0.5 + sigma * torch.randn(count, 1, SIDE, SIDE, generator=generator(2))
    images_u8 = (images.clamp(0, 1) * 255).round().byte()
    normal = DiagonalNormal(torch.tensor(0.5), torch.tensor(sigma))
    return images_u8, normal.log_density(images_u8.float() / 255).flatten(1).sum(1).mean().item()


def test_bound_with_the_exact_posterior_and_prior_is_the_known_log_density():
    images_u8, known = images_and_log_density(1)
    repeated = images_u8.expand(300, -1, -1, -1)  # the error of the mean is the noise of the bound
    evaluation = evaluate(LinearModel(ExactDiffusion(100)), repeated, batch_size=1000, samples=5, count_active=False)
    for bound in (evaluation.log_likelihood, evaluation.elbo):
        assert bound.mean == pytest.approx(known, abs=4 * bound.standard_error + 0.01)
        assert bound.standard_error < 0.6


def test_bound_with_a_wrong_posterior_is_below_by_the_divergence():
    images_u8, known = images_and_log_density(1)
    repeated = images_u8.expand(300, -1, -1, -1)
    model = LinearModel(ExactDiffusion(100), mean_error=0.3)
    divergence = SIDE**2 * 0.5 * 0.3**2 * (1 + (GAIN / NOISE) ** 2)
    bound = evaluate(model, repeated, batch_size=1000, samples=5, count_active=False).log_likelihood
    assert bound.mean == pytest.approx(known - divergence, abs=4 * bound.standard_error + 0.01)
    assert 4 * bound.standard_error < divergence / 4


def test_more_outer_samples_reduce_the_noise_and_not_the_mean():
    images_u8, _ = images_and_log_density(1)
    model = LinearModel(ExactDiffusion(5))
    repeated = images_u8.expand(60, -1, -1, -1)
    one, many = (evaluate(model, repeated, 500, 2, count_active=False, outer_samples=n).log_likelihood for n in (1, 16))
    assert many.standard_error == pytest.approx(one.standard_error / 4, rel=0.5)
    assert abs(many.mean - one.mean) < 4 * one.standard_error


def test_published_protocol_exceeds_the_known_log_density():
    """The excess in nats: the noise of L_0 and L_t inside of the logarithm, and the right-end sum of L_t."""
    images_u8, known = images_and_log_density(8)
    evaluation = evaluate(
        LinearModel(ExactDiffusion(25)), images_u8, 1000, 1000, count_active=False, estimator="analytic_kl"
    )
    right_end_sum = 0.5 * 24.0 * SIDE**2 / (2 * 25)
    start_noise = SIDE**2 * 0.5 * (1 - math.log(2))  # log E exp(-(n^2 - 1) / 2) per number
    excess = evaluation.log_likelihood.mean - known
    assert excess > 0.8 * (right_end_sum + start_noise)
    assert excess > 15


def test_noise_of_the_start_term_alone_flatters_by_several_nats():
    prior = ExactDiffusion(1)
    noise = prior.split_noise(torch.randn(100_000, *prior.posterior_noise_shape, generator=generator()))
    start = prior.noisy_start(noise).double()
    expected = 0.5 * SIDE**2 * (math.log(2 * math.pi) - 12 + 1)
    assert start.mean().item() == pytest.approx(expected, abs=0.1)
    flattered = torch.logsumexp(-start.view(100, 1000), 1).mean() - math.log(1000) + expected
    assert 5 < flattered < SIDE**2 * 0.5 * (1 - math.log(2))


# --------------------------------------------------------------- tiny models, integrated numerically over their latents


def randomized(config) -> HierarchicalVAE:
    """Build a model without the zeros of the initial weights."""
    model = build_model(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator(parameter.numel())))
    return model


def hermite(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return points and weights of an expectation over a standard Normal."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    return torch.tensor(points, dtype=torch.float32), torch.tensor(weights / weights.sum(), dtype=torch.float64)


def integrated_diffusion_bound(prior: DiffusionPrior, z: torch.Tensor) -> torch.Tensor:
    """Return the bound of log p(z) for z (N,), integrated over t and n."""
    n, n_weights = hermite(40)
    t, t_weights = np.polynomial.legendre.leggauss(60)
    total = torch.zeros(len(z), dtype=torch.float64)
    for time, weight in zip((t + 1) / 2, t_weights / 2, strict=True):
        times = torch.full((len(z) * len(n),), float(time))
        term = prior._diffusion_term(
            z.repeat_interleave(len(n)).view(-1, 1, 1, 1), n.repeat(len(z)).view(-1, 1, 1, 1), times
        )
        total += weight * (term.double().view(len(z), len(n)) * n_weights).sum(1)
    losses = prior.losses(z.view(-1, 1, 1, 1), prior.split_noise(torch.zeros(len(z), *prior.posterior_noise_shape)))
    return -(losses.start.double() + losses.end.double() + total)


BINARY = torch.tensor([[[[255, 0], [255, 255]]]], dtype=torch.uint8)
GRID = torch.linspace(-12, 12, 4001)


def given(latents: list[torch.Tensor]) -> LatentSource:
    """Return a source of given z, one tensor per group."""
    return lambda index, group, state, prior: GroupOutput(latents[index], prior)


def log_joint_over_z(model: HierarchicalVAE, latents: list[torch.Tensor]) -> torch.Tensor:
    """Return log p(x | z) of latents, (N,)."""
    output = model.top_down(given(latents), len(latents[0]))
    return output.px_z.log_prob((BINARY / 255).expand(len(latents[0]), -1, -1, -1)).flatten(1).sum(1).double()


def log_integral(log_values: torch.Tensor) -> torch.Tensor:
    """Return the log of the integral over GRID of exp(log_values (..., len(GRID)))."""
    return log_values.logsumexp(-1) + math.log((GRID[1] - GRID[0]).item())


@pytest.mark.slow
@torch.no_grad()
def test_importance_weighted_bound_of_a_tiny_dvp_model_converges_to_the_integrated_value():
    """E_q(u | x) [log p(x | u) + bound of log p(u) - log q(u | x)]; p(x | u) and all expectations by quadrature."""
    model = randomized(config_from_dict(DVP, "the test"))
    images = BINARY.float() / 255
    posterior = model.groups[0].posterior((), model.bottom_up(images)[0], None)
    points, weights = hermite(12)
    u = (posterior.mu + posterior.sigma * points.view(-1, 1, 1, 1)).float()
    log_likelihoods = []
    for value in u:
        latents = [value[None].expand(len(GRID), -1, -1, -1), GRID.view(-1, 1, 1, 1)]
        output = model.top_down(given(latents), len(GRID))
        log_prior = output.groups[1].prior.log_prob(output.groups[1].z).double()
        log_x = output.px_z.log_prob(images.expand(len(GRID), -1, -1, -1)).flatten(1).sum(1).double()
        log_likelihoods.append(log_integral(log_prior + log_x))
    log_ratio = integrated_diffusion_bound(model.groups[0].top_prior, u.flatten()) - posterior.log_prob(u).double()
    integrated = (weights * (torch.stack(log_likelihoods) + log_ratio)).sum().item()
    model.groups[0].info.bound.evaluation_terms = 60
    repeated = BINARY.expand(300, -1, -1, -1)
    estimate = evaluate(model, repeated, 2000, 200, count_active=False, outer_samples=4).log_likelihood
    assert estimate.mean == pytest.approx(integrated, abs=4 * estimate.standard_error + 0.005)
    assert estimate.standard_error < 0.15


@pytest.mark.parametrize("top_prior", ["learned", "standard", "gaussian", "mixture", "vampprior", "diffusion"])
@torch.no_grad()
def test_importance_weighted_bound_with_every_top_prior_converges_to_the_integral(top_prior):
    keys = {key: value for key, value in DVP.items() if key != "context_size"}
    config = config_from_dict(keys | {"family": "ladder", "top_prior": top_prior, "prior_components": 3}, "the test")
    model = randomized(config)
    start = model.top_down(FromNoise(model.no_noise(1)), 1, return_states=True).states[0]
    log_x = log_joint_over_z(model, [GRID.view(-1, 1, 1, 1)])
    images, samples = 100, 1000
    if model.groups[0].info.bound:  # more draws of z instead of importance samples, and more terms
        images, samples = 2000, 2
        model.groups[0].info.bound.evaluation_terms = 20
    repeated = BINARY.expand(images, -1, -1, -1)
    estimate = evaluate(model, repeated, 2000, samples, count_active=False).log_likelihood
    if top_prior == "diffusion":
        state = model.groups[0].prior(model.initial_state(1))[0]
        posterior = model.groups[0].posterior(state, model.bottom_up(BINARY.float() / 255)[0], None)
        points, weights = hermite(40)
        z = posterior.mu + posterior.sigma * points.view(-1, 1, 1, 1)
        log_ratio = integrated_diffusion_bound(model.groups[0].top_prior, z.flatten()) - posterior.log_prob(z).double()
        expected = (weights * (log_joint_over_z(model, [z]) + log_ratio)).sum().item()
    else:
        log_prior = start.repeated(len(GRID)).prior.log_prob(GRID.view(-1, 1, 1, 1)).double()
        assert log_integral(log_prior).item() == pytest.approx(0, abs=1e-3)  # p(z) is a density
        expected = log_integral(log_prior + log_x).item()
    assert estimate.mean == pytest.approx(expected, abs=4 * estimate.standard_error + 0.005)
    assert estimate.standard_error < 0.15
