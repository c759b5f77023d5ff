"""Inference and evaluation with a family that differs from the NVAE wherever the base class allows it."""

import math
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from nvae.evaluation.likelihood import evaluate
from nvae.inference.exploration import base_point, draw_group_noise, explore, explore_positions, resample_group, sweep
from nvae.inference.interpolation import interpolate, mix, walk
from nvae.inference.recalibration import prior_batch_norms
from nvae.inference.reconstruction import encode, reconstruct
from nvae.inference.sampling import Sampler
from nvae.models.distributions import DiagonalNormal, Distribution, sum_per_image
from nvae.models.hierarchy import HierarchicalVAE, LatentGroup, Level
from nvae.models.likelihoods import build_likelihood


@dataclass(frozen=True, eq=False)
class TwoDraws(Distribution):
    """A Normal around mu (B, L, H, W) that takes two draws, (B, 2, L, H, W)."""

    mu: Tensor

    def sample(self, noise, temperature=1.0):
        return self.mu + temperature * noise.sum(1) / math.sqrt(2)

    def log_prob(self, z, noise=None):
        return sum_per_image(-0.5 * (z - self.mu).square() - 0.5 * math.log(2 * math.pi))

    def to_noise(self, z):
        return ((z - self.mu) / math.sqrt(2)).unsqueeze(1).repeat(1, 2, 1, 1, 1)


class TupleGroup(LatentGroup):
    """State: features (B, 4, h, w), and the sum of all z so far, (B, 2, 8, 8)."""

    def __init__(self, level):
        super().__init__()
        self.level = level
        self.prior_head = nn.Conv2d(4, 2, 1)
        self.posterior_head = nn.Sequential(nn.Conv2d(7, 2, 1), nn.BatchNorm2d(2))
        self.up = nn.Conv2d(2, 4, 1)

    @property
    def noise_shape(self):
        return 2, *self.level.latent_shape

    @property
    def posterior_noise_shape(self):
        return self.level.latent_shape

    def prior(self, state):
        h, total = state
        h = functional.interpolate(h, size=self.level.resolution)
        return (h + 0.1, total), TwoDraws(self.prior_head(h))

    def posterior(self, state, features, prior):
        mu = prior.mu + self.posterior_head(torch.cat([state[0], features[0]], 1)) * features[1][:, None, None, None]
        return DiagonalNormal(mu, torch.full_like(mu, 0.5))

    def merge(self, state, z):
        return state[0] + self.up(z).tanh(), state[1] + functional.interpolate(z, size=8)


class TupleVAE(HierarchicalVAE):
    def __init__(self, config):
        levels = [Level(1, 2, 4, 4, 2), Level(1, 4, 4, 4, 2)]
        super().__init__(config, levels, build_likelihood(config))
        self.groups = nn.ModuleList(TupleGroup(level) for level in levels)
        self.output = nn.Conv2d(2, self.likelihood.num_parameters, 1)

    def bottom_up(self, images):
        return [(functional.adaptive_avg_pool2d(images, size), images.mean((1, 2, 3))) for size in (2, 4)]

    def initial_state(self, batch_size):
        return torch.ones(batch_size, 4, 2, 2), torch.zeros(batch_size, 2, 8, 8)

    def decode(self, state, channels=None):
        return self.output(state[1])


@pytest.fixture(scope="module")
def model(make_config):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return TupleVAE(make_config(sampling_method="bernoulli")).eval()


@pytest.fixture
def images_u8():
    return torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_batch_norms_of_posteriors_are_not_recalibrated(model):
    assert prior_batch_norms(model) == {}
    sampler = Sampler(model, 0.7)
    assert sampler.statistics is None
    assert sampler.sample(3).shape == (3, 3, 8, 8)


def test_every_exploration_runs_from_tuple_states(model, assert_within):
    sampler = Sampler(model, [0.5, 0.9], batch_size=3)
    base = base_point(sampler, sampler.noise([3]))
    for group, images in enumerate(explore(sampler, base, 4, seed=1)):
        noise = [kept.expand(4, *kept.shape[1:]) for kept in base.noise]
        noise[group] = draw_group_noise(model, group, 4, seed=1)
        assert_within(images, sampler.decode(noise))
        assert_within(resample_group(sampler, base, group, base.noise[group]), base.image)
        assert len(torch.cat(list(sweep(sampler, base, group, 7)))) == 7
    assert explore_positions(sampler, base, 1, draws=2).influence.shape == (4, 4)


def test_noise_of_another_shape_than_z_interpolates_and_mixes(model, assert_within):
    sampler = Sampler(model)
    a, b = sampler.noise([1]), sampler.noise([2])
    between = interpolate(sampler, a, b, 3)
    assert_within(between[[0, 2]], sampler.sample([1, 2]))
    assert_within(mix(sampler, a, b)[[0, 2]], sampler.sample([2, 1]))
    assert_within(next(walk(sampler, [1, 2], 4))[:1], sampler.sample([1]))


def test_encoded_images_decode_to_their_reconstructions(model, images_u8, assert_within):
    images = images_u8 / 255
    noise = encode(model, images, batch_size=2)
    assert [tuple(group.shape[1:]) for group in noise] == model.noise_shapes
    assert_within(Sampler(model, iterations=0).decode(noise), reconstruct(model, images), 1e-5)
    assert_within(reconstruct(model, images, 1, 0.0)[:2], reconstruct(model, images[:2], 1, 0.0), 1e-6)


@pytest.mark.parametrize(("batch_size", "samples"), [(4, 1), (4, 3), (4, 10)])
def test_evaluate_repeats_and_slices_nested_features(model, images_u8, batch_size, samples):
    evaluation = evaluate(model, images_u8, batch_size, samples)
    assert evaluation.images == 5
    assert evaluation.units_per_group == [8, 32]
    assert len(evaluation.active_units_per_group) == len(evaluation.kl_per_group) == 2
    assert evaluation.log_likelihood.mean >= evaluation.elbo.mean - 1e-6 or samples == 1
    assert math.isfinite(evaluation.elbo.mean)
