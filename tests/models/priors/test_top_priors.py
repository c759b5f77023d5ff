"""The priors of the first latent group, and the mixture distribution."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_from_dict
from nvae.models.distributions import DiagonalNormal, NormalMixture
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise
from nvae.models.priors.top_priors import MixturePrior, VampPrior
from nvae.objective import elbo_terms
from nvae.system.errors import UserError

TOP_PRIORS = ["standard", "gaussian", "mixture", "vampprior", "diffusion"]
LADDER = {
    "family": "ladder",
    "input_dimension": 8,
    "image_channels": 1,
    "sampling_method": "bernoulli",
    "latents_per_scale": [1, 2],
    "latent_size": 2,
    "channels": 4,
    "encoder_blocks_per_scale": 1,
    "prior_components": 5,
    "diffusion_steps": 3,
    "unet_blocks": 1,
}
DVP = LADDER | {"family": "dvp", "context_size": 3}


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def mixture(batch: int, components: int = 3) -> NormalMixture:
    weights = torch.tensor([0.2, 0.5, 0.3])[:components].expand(batch, -1)
    mu = torch.tensor([-4.0, 0.0, 3.0]).view(1, 3, 1, 1, 1).expand(batch, -1, 1, 1, 2)
    return NormalMixture(weights.log(), mu, torch.tensor([0.5, 1.0, 0.2]).view(1, 3, 1, 1, 1).expand_as(mu))


def test_mixture_density_is_the_weighted_sum():
    z, expected = normal(6, 1, 1, 2), 0
    for weight, mu, sigma in ((0.2, -4.0, 0.5), (0.5, 0.0, 1.0), (0.3, 3.0, 0.2)):
        part = torch.distributions.Normal(mu, sigma).log_prob(z).flatten(1).sum(1)
        expected = expected + weight * part.exp()
    torch.testing.assert_close(mixture(6).log_prob(z), expected.log())


def test_mixture_samples_have_its_moments():
    z = mixture(20_000).sample(normal(20_000, 3, 1, 1, 2))
    assert z.mean().item() == pytest.approx(-0.8 + 0.9, abs=0.05)
    second = 0.2 * (16 + 0.25) + 0.5 * 1 + 0.3 * (9 + 0.04)
    assert z.square().mean().item() == pytest.approx(second, rel=0.03)
    both = z[:, 0, 0]
    assert ((both[:, 0] < -2) == (both[:, 1] < -2)).float().mean() > 0.97  # one component per image, not per number


def test_mixture_noise_of_z_gives_z():
    distribution = mixture(50)
    z = distribution.sample(normal(50, 3, 1, 1, 2))
    torch.testing.assert_close(distribution.sample(distribution.to_noise(z)), z)


def test_mixture_temperature_scales_the_variances_of_its_components():
    noise = normal(50, 3, 1, 1, 2)
    center, half = mixture(50).sample(noise, 0.0), mixture(50).sample(noise, 0.25)
    torch.testing.assert_close(half - center, 0.5 * (mixture(50).sample(noise) - center))
    assert set(center.flatten().tolist()) == {-4.0, 0.0, 3.0}


def test_mixture_noise_of_z_in_a_component_of_tiny_weight_gives_z():
    """The noise is that of a component with a weight that float32 can choose."""
    for logits, mean in (([0.0, -30.0, -30.0], 3.0), ([0.3, -30.0, 1.5], 0.0), ([0.0, -10.0, 0.0], 0.0)):
        log_weights = torch.tensor([logits]).log_softmax(1)
        distribution = NormalMixture(log_weights, mixture(1).mu, mixture(1).sigma)
        z = torch.full((1, 1, 1, 2), mean)
        torch.testing.assert_close(distribution.sample(distribution.to_noise(z)), z)


def test_mixture_components_do_not_depend_on_a_factor_on_the_noise():
    noise = normal(5000, 3, 1, 1, 2)
    components = mixture(5000).sample(noise, 0.0)
    assert torch.equal(mixture(5000).sample(0.1 * noise, 0.0), components)
    shares = [(components[:, 0, 0, 0] == mean).float().mean().item() for mean in (-4.0, 0.0, 3.0)]
    assert shares == pytest.approx([0.2, 0.5, 0.3], abs=0.02)


def test_mixture_prior_of_one_component_is_a_gaussian():
    prior = MixturePrior((1, 2, 2), 1)
    z = normal(3, 1, 2, 2)
    expected = DiagonalNormal(prior.mu, torch.ones(())).log_prob(z)
    torch.testing.assert_close(prior(3).log_prob(z), expected)


def test_vampprior_weights_its_components_equally():
    prior = VampPrior((1, 2, 2), 4, (1, 8, 8))
    mu = normal(3, 4, 1, 2, 2)
    distribution = prior(3, mu, torch.ones_like(mu))
    torch.testing.assert_close(distribution.log_weights.exp(), torch.full((3, 4), 0.25))
    assert prior.images.min() >= 0 and prior.images.max() <= 1


@pytest.mark.parametrize("keys", [LADDER, DVP], ids=["ladder", "dvp"])
@pytest.mark.parametrize("top_prior", TOP_PRIORS)
def test_every_top_prior_trains_samples_and_inverts(keys, top_prior):
    model = build_model(config_from_dict(keys | {"top_prior": top_prior}, "the test"))
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    output = model(images, model.draw_noise(3, torch.Generator().manual_seed(1), posterior=True))
    assert output.kl.shape == (3, len(model.groups))
    (-elbo_terms(output, images).elbo.mean()).backward()
    unused = {f"groups.{len(model.groups) - 1}.z_projection.{name}" for name in ("weight", "bias")}
    assert {name for name, p in model.named_parameters() if p.grad is None} == unused
    model.eval()
    with torch.no_grad():
        noise = model.draw_noise(2, torch.Generator().manual_seed(2))
        whole = model.top_down(FromNoise(noise, 0.7), 2, return_states=True)
        rest = model.top_down(FromNoise([n[:1] for n in noise], 0.7), 1, return_states=True)
        torch.testing.assert_close(rest.px_z.mean(), whole.px_z.mean()[:1])
        again = model.top_down(
            FromNoise([n[:1].expand(4, *n.shape[1:]) for n in noise], 0.7), start=rest.states[0].repeated(4)
        )
        torch.testing.assert_close(again.px_z.mean()[3:], rest.px_z.mean())
        for group in whole.groups.values():
            assert group.prior.sample(group.prior.to_noise(group.z)).sub(group.z).abs().max() < 1e-4


@torch.no_grad()
def test_vampprior_of_the_ladder_is_the_posterior_of_its_pseudo_inputs():
    model = build_model(config_from_dict(LADDER | {"top_prior": "vampprior"}, "the test")).eval()
    pseudo = model.groups[0].top_prior.images
    prior = model.top_down(FromNoise(model.no_noise(1)), 1, return_states=True).states[0].prior
    posterior = model(pseudo, model.no_noise(5, posterior=True)).groups[0].posterior
    torch.testing.assert_close(prior.mu[0], posterior.mu)
    torch.testing.assert_close(prior.sigma[0], posterior.sigma)


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"diffusion_min_gamma": 8.0}, "diffusion_min_gamma"),
        ({"unet_channels": 40}, "unet_channels"),
        ({"family": "ladder", "batch_norm": True, "top_prior": "vampprior", "context_size": None}, "batch_norm"),
        ({"unet_attention_heads": 3}, "unet_attention_heads"),
        ({"context_size": 9}, "context_size"),
        ({"context_size": 1}, "context_size"),
        ({"top_prior": "learned"}, "top_prior"),
        ({"context": "wavelet"}, "context"),
        ({"context": "linear", "input_dimension": 1024, "context_size": 64}, "context_size"),
    ],
)
def test_dvp_config_refuses(changes, key):
    with pytest.raises(UserError) as error:
        config_from_dict({k: v for k, v in (DVP | changes).items() if v is not None}, "the test")
    assert error.value.key == key


def test_ladder_refuses_a_diffusion_prior_of_one_number_per_channel():
    with pytest.raises(UserError) as error:
        config_from_dict(LADDER | {"top_prior": "diffusion", "input_dimension": 4}, "the test")
    assert error.value.key == "top_prior"
    config_from_dict(LADDER | {"top_prior": "diffusion", "input_dimension": 4, "unet_channels": 32}, "the test")


def test_standard_prior_has_a_closed_form_divergence():
    model = build_model(config_from_dict(LADDER | {"top_prior": "standard"}, "the test"))
    images = torch.rand(2, 1, 8, 8)
    group = model(images, model.draw_noise(2, posterior=True)).groups[0]
    mu, sigma = group.posterior.mu, group.posterior.sigma
    expected = 0.5 * (mu.square() + sigma.square() - 1 - 2 * sigma.log()).flatten(1).sum(1)
    torch.testing.assert_close(group.kl, expected)
    assert math.isfinite(group.kl.sum().item())
