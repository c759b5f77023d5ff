"""The diffusion prior: schedules, the two parametrizations, the inversion of the sampler, its U-Net."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_from_dict
from nvae.models.priors.diffusion import DiffusionPrior, Schedule
from nvae.models.priors.unet import UNet, time_embedding

KEYS = {
    "family": "dvp",
    "input_dimension": 8,
    "sampling_method": "gaussian",
    "latents_per_scale": [1],
    "context_size": 4,
    "unet_blocks": 1,
    "diffusion_steps": 6,
}


def make_prior(**changes) -> DiffusionPrior:
    """Build a prior with weights that are not zero."""
    generator = torch.Generator().manual_seed(0)
    prior = DiffusionPrior(config_from_dict(KEYS | changes, "the test"), (3, 4, 4), bounded=True).eval()
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return prior


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_schedule_rises_between_its_ends_with_the_right_slope(kind):
    schedule = Schedule(kind, -6.0, 7.0)
    t = torch.linspace(0, 1, 101, dtype=torch.float64).requires_grad_()
    gamma = schedule.gamma(t)
    assert gamma[0].item() == pytest.approx(-6) and gamma[-1].item() == pytest.approx(7)
    (slope,) = torch.autograd.grad(gamma.sum(), t)
    assert slope.min() > 0
    torch.testing.assert_close(schedule.slope(t), slope)


def test_cosine_schedule_has_a_cosine_as_alpha():
    t = torch.linspace(0, 1, 11, dtype=torch.float64)
    alpha = Schedule("cosine", -30.0, 30.0).gamma(t).neg().sigmoid().sqrt()
    torch.testing.assert_close(alpha, torch.cos(math.pi / 2 * t), atol=1e-5, rtol=0)


def test_predicted_velocity_gives_the_noise():
    """v = alpha n - sigma z: a network that returns the true v predicts the true n."""
    prior = make_prior(diffusion_parametrization="v")
    z, n, t = normal(5, 3, 4, 4), normal(5, 3, 4, 4, seed=1), torch.linspace(0, 1, 5)
    gamma = prior.schedule.gamma(t)[:, None, None, None]
    alpha, sigma = gamma.neg().sigmoid().sqrt(), gamma.sigmoid().sqrt()
    prior.unet.forward = lambda z_t, times: alpha * n - sigma * z
    torch.testing.assert_close(prior.predicted_noise(alpha * z + sigma * n, t), n)


@pytest.mark.parametrize("parametrization", ["eps", "v"])
@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@torch.no_grad()
def test_noise_of_z_gives_z(parametrization, schedule):
    prior = make_prior(diffusion_parametrization=parametrization, diffusion_schedule=schedule)(2)
    z = 0.7 * normal(2, 3, 4, 4)
    noise = prior.to_noise(z)
    assert noise.shape == (2, 7, 3, 4, 4)
    torch.testing.assert_close(prior.sample(noise), z, atol=1e-4, rtol=0)


@torch.no_grad()
def test_noise_of_z_has_the_size_of_a_draw_where_the_network_knows_z():
    prior = make_prior(diffusion_steps=50)
    z = 0.7 * normal(4, 3, 4, 4).clamp(-1, 1)

    def true_noise(z_t, t):
        gamma = prior.schedule.gamma(t)[:, None, None, None]
        return (z_t - gamma.neg().sigmoid().sqrt() * z) / gamma.sigmoid().sqrt()

    prior.predicted_noise = true_noise
    sizes = prior(4).to_noise(z).square().mean((0, 2, 3, 4)).sqrt()
    assert len(sizes) == 51
    assert ((sizes[:-1] - 1).abs() < 0.4).all()  # 48 draws, the same for every z
    assert abs(sizes[:-1].mean() - 1) < 0.05


@torch.no_grad()
def test_noise_of_z_does_not_depend_on_the_other_z():
    prior, z = make_prior(), 0.7 * normal(3, 3, 4, 4)
    torch.testing.assert_close(prior(1).to_noise(z[1:2]), prior(3).to_noise(z)[1:2], atol=1e-4, rtol=0)


@torch.no_grad()
def test_temperature_scales_the_variance_of_every_draw():
    prior = make_prior()(2)
    noise = normal(2, 7, 3, 4, 4)
    torch.testing.assert_close(prior.sample(noise, 0.25), prior.sample(0.5 * noise))
    torch.testing.assert_close(prior.sample(noise, 0.0), prior.sample(torch.zeros_like(noise)))


def test_training_has_one_term_and_evaluation_as_many_as_steps():
    prior = make_prior()
    numbers = 3 * 4 * 4
    assert prior.posterior_noise_shape == (numbers * 8 + 6,)
    prior.evaluation_terms = 10
    assert prior.posterior_noise_shape == (numbers * 12 + 10,)
    assert prior.train().posterior_noise_shape == (numbers * 3 + 1,)


def test_split_noise_takes_every_number_once():
    prior = make_prior()
    noise = torch.arange(2 * math.prod(prior.posterior_noise_shape)).view(2, -1).float()
    parts = prior.split_noise(noise)
    assert (
        parts.start.shape == (2, 3, 4, 4) and parts.diffusion.shape == (6, 2, 3, 4, 4) and parts.times.shape == (6, 2)
    )
    of_first = torch.cat([noise[0, :48], parts.start[0].flatten(), parts.diffusion[:, 0].flatten(), parts.times[:, 0]])
    assert torch.equal(of_first, noise[0])


@torch.no_grad()
def test_bound_does_not_depend_on_the_number_of_terms_in_expectation():
    prior, z = make_prior(), normal(1, 3, 4, 4)
    estimates = []
    for terms in (1, 8):
        prior.evaluation_terms = terms
        noise = normal(1500, *prior.posterior_noise_shape, seed=terms)
        estimates.append(prior(1500).log_prob(z.expand(1500, -1, -1, -1), noise))
    one, eight = estimates
    error = math.sqrt((one.var() / 1500 + eight.var() / 1500).item())
    assert abs(one.mean() - eight.mean()) < 4 * error
    assert eight.std() < one.std()


def test_bound_needs_noise():
    with pytest.raises(ValueError, match="noise"):
        make_prior()(1).log_prob(torch.zeros(1, 3, 4, 4))


def test_dropout_acts_in_training_only():
    prior = make_prior(unet_dropout=0.5)
    z, t = normal(2, 3, 4, 4), torch.tensor([0.2, 0.8])
    assert torch.equal(prior.predicted_noise(z, t), prior.predicted_noise(z, t))
    prior.train()
    assert not torch.equal(prior.predicted_noise(z, t), prior.predicted_noise(z, t))


def test_unet_is_zero_before_training_and_sees_the_time():
    unet = UNet(3, 16, 2, 2, 0.0)
    z = normal(2, 3, 4, 4)
    assert torch.equal(unet(z, torch.tensor([0.1, 0.9])), torch.zeros_like(z))
    trained = make_prior().unet
    assert not torch.allclose(trained(z, torch.zeros(2)), trained(z, torch.ones(2)))


def test_unet_takes_one_number_per_channel():
    assert UNet(1, 32, 1, 1, 0.0)(torch.ones(1, 1, 1, 1), torch.zeros(1)).shape == (1, 1, 1, 1)


def test_time_embedding_starts_with_cosines_of_the_fastest_frequency():
    embedding = time_embedding(torch.tensor([0.0, 0.5]), 4)
    expected = torch.tensor([[1, 1, 0, 0], [math.cos(0.5), math.cos(0.005), math.sin(0.5), math.sin(0.005)]])
    torch.testing.assert_close(embedding, expected)
