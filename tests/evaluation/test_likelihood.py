"""Bounds on log p(x), against a model whose marginal likelihood is known, and on tiny networks."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

from nvae.data.images import dequantize, to_float
from nvae.evaluation.likelihood import Estimate, evaluate, log_importance_weight
from nvae.models.distributions import DiagonalNormal
from nvae.models.hierarchy import FromPosterior, HierarchicalVAE, LatentGroup, Level
from nvae.models.likelihoods import Likelihood
from nvae.objective import elbo_terms
from nvae.system.errors import InvalidValueError
from nvae.system.seeds import seeded


@pytest.fixture
def images_u8():
    return torch.randint(0, 256, (10, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, True),
        ({"likelihood_tails": "original"}, False),
        ({"likelihood_tails": "original", "pixel_bits": 7}, True),
        ({"sampling_method": "gaussian"}, False),
        ({"sampling_method": "gaussian_mixture"}, False),
        ({"sampling_method": "gaussian", "dataset": {"name": "toy_faces", "dequantize": True}}, True),
        ({"sampling_method": "bernoulli"}, False),
        ({"sampling_method": "bernoulli", "dataset": {"name": "toy_faces", "binarize": True}}, True),
        ({"sampling_method": "discretized_gaussian"}, True),
        ({"likelihood_tails": "original", "sampling_method": "coupled_logistic_mixture"}, False),
    ],
)
def test_evaluation_says_whether_it_is_a_bound(make_model, images_u8, keys, expected):
    model = make_model(**({"sampling_method": "logistic_mixture"} | keys))
    evaluation = evaluate(model, images_u8[:2], count_active=False)
    assert evaluation.is_bound is evaluation.is_normalized is expected


# --------------------------------------------------------------------------- a model with a known marginal likelihood

SLOPE, SIGMA = 0.7, 0.8  # z2 = SLOPE z1 + SIGMA noise
WEIGHT = torch.tensor([[0.3, -0.2], [0.1, 0.25], [0.05, 0.1]], dtype=torch.float64)  # x = 0.5 + WEIGHT z + NOISE noise
NOISE = 0.15


class LinearGroup(LatentGroup):
    """A group with one latent number, without clamps, so that all distributions are Gaussian. State: all z so far."""

    level = Level(1, resolution=1, encoder_channels=2, decoder_channels=1, latent_size=1)

    def __init__(self, index: int, posterior: torch.Tensor, log_sigma: float) -> None:
        super().__init__()
        self.index, self.gains, self.log_sigma = index, posterior, log_sigma

    def prior(self, state):
        if self.index == 0:
            zeros = state.new_zeros(len(state), 1, 1, 1)
            return state, DiagonalNormal(zeros, torch.ones_like(zeros))
        return state, DiagonalNormal(SLOPE * state, torch.full_like(state, SIGMA))

    def posterior(self, state, features, prior):
        given = torch.cat([features, state], 1)  # x, then z above
        mu = (given * self.gains.view(1, -1, 1, 1)).sum(1, keepdim=True)
        return DiagonalNormal(mu, torch.full_like(mu, math.exp(self.log_sigma)))

    def merge(self, state, z):
        return torch.cat([state, z], 1)


class Linear:
    def __init__(self, z):
        self.normal = DiagonalNormal(
            0.5 + (z.flatten(1) @ WEIGHT.T)[..., None, None], torch.tensor(NOISE, dtype=z.dtype)
        )

    def log_prob(self, images):
        return self.normal.log_density(images)


class LinearModel(HierarchicalVAE):
    """A model of images (B, 3, 1, 1). The features of both groups are the centered images; the decoder returns z."""

    def __init__(self, config, levels, groups):
        config = config.model_copy(update={"input_dimension": 1})
        super().__init__(config, levels, Likelihood(2, Linear, 0.0, range(2)))
        self.groups = nn.ModuleList(groups)
        self.anchor = nn.Parameter(torch.zeros(0, dtype=torch.float64))

    def bottom_up(self, images):
        return 2 * [images - 0.5]

    def initial_state(self, batch_size):
        return torch.zeros(batch_size, 0, 1, 1, dtype=torch.float64)

    def decode(self, state, channels=None):
        return state


def linear_gaussian(config, exact: bool) -> HierarchicalVAE:
    """Build the model. exact: with the true posterior; False for a posterior with wrong means and sigmas."""
    covariance, posterior = joint()
    if not exact:
        posterior = [(0.6 * gains + 0.1, sigma * 1.4) for gains, sigma in posterior]
    groups = [LinearGroup(i, gains, math.log(sigma)) for i, (gains, sigma) in enumerate(posterior)]
    level = Level(2, resolution=1, encoder_channels=2, decoder_channels=1, latent_size=1)
    return LinearModel(config, [level], groups).eval()


def joint():
    """Return the covariance of (z1, z2, x1, x2, x3), and gains and sigma of the posteriors q(z1 | x), q(z2 | x, z1)."""
    z_covariance = torch.tensor([[1, SLOPE], [SLOPE, SLOPE**2 + SIGMA**2]], dtype=torch.float64)
    x_covariance = WEIGHT @ z_covariance @ WEIGHT.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    xz_covariance = WEIGHT @ z_covariance
    covariance = torch.cat([torch.cat([z_covariance, xz_covariance.T], 1), torch.cat([xz_covariance, x_covariance], 1)])

    def conditional(unknown, known):
        inverse = torch.linalg.inv(covariance[known][:, known])
        gains = covariance[unknown, known] @ inverse
        return gains, (covariance[unknown, unknown] - gains @ covariance[known, unknown]).sqrt().item()

    return covariance, [conditional(0, [2, 3, 4]), conditional(1, [2, 3, 4, 0])]


def true_log_likelihood(images: torch.Tensor) -> torch.Tensor:
    covariance = joint()[0][2:, 2:]
    center = torch.full((3,), 0.5, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(center, covariance).log_prob(images.flatten(1).double())


@pytest.fixture
def few():
    """Five images of one pixel with three channels."""
    return torch.randint(0, 256, (5, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def test_importance_weight_of_the_true_posterior_is_the_marginal_likelihood(config, few, generator):
    model, images = linear_gaussian(config, exact=True), to_float(few, "cpu").double()
    for _ in range(3):
        result = model(images, model.draw_noise(len(images), generator, posterior=True))
        weights = log_importance_weight(result, elbo_terms(result, images).log_likelihood)
        torch.testing.assert_close(weights, true_log_likelihood(images))


@torch.no_grad()
def test_importance_weight_of_any_posterior_is_unbiased(config, few, generator):
    model, count = linear_gaussian(config, exact=False), 200_000
    for image in to_float(few, "cpu").double():
        images = image.expand(count, -1, -1, -1)
        result = model(images, model.draw_noise(len(images), generator, posterior=True))
        weights = log_importance_weight(result, elbo_terms(result, images).log_likelihood).exp()
        truth = true_log_likelihood(image[None]).exp().item()
        error = weights.std().item() / math.sqrt(count)
        assert error < 0.05 * truth
        assert abs(weights.mean().item() - truth) < 4 * error


def test_importance_weighted_bound_rises_from_the_elbo_to_the_likelihood(config, few):
    model = linear_gaussian(config, exact=False)
    truth = true_log_likelihood(to_float(few, "cpu")).mean().item()
    many = few.repeat(200, 1, 1, 1)  # means over 200 draws of each
    evaluation = [evaluate(model, many, 5000, k).log_likelihood.mean for k in (1, 10, 100)]
    elbo = evaluate(model, many, 5000, 100).elbo.mean
    assert evaluation[0] == pytest.approx(elbo, abs=0.15)
    assert elbo < truth - 0.3
    assert evaluation[0] < evaluation[1] < evaluation[2] < truth + 0.02
    assert evaluation[2] == pytest.approx(truth, abs=0.05)


def test_elbo_has_the_kl_in_closed_form(config, few):
    """Against a direct computation with other draws: E log p(x|z) - KL."""
    model = linear_gaussian(config, exact=False)
    evaluation = evaluate(model, few, 4000, 4000)
    again = evaluate(model, few, 4000, 4000, seed=1)
    assert evaluation.elbo.mean == pytest.approx(again.elbo.mean, abs=0.03)
    assert evaluation.elbo.mean == pytest.approx(evaluation.reconstruction - sum(evaluation.kl_per_group))
    assert evaluation.elbo.mean < evaluation.log_likelihood.mean
    (gains, sigma), _ = joint()[1]
    x = to_float(few, "cpu").double().flatten(1) - 0.5
    mu, sigma = x @ (0.6 * gains + 0.1), 1.4 * sigma
    kl = 0.5 * (sigma**2 + mu.square() - 1) - math.log(sigma)
    assert evaluation.kl_per_group[0] == pytest.approx(kl.mean().item(), rel=1e-6)


# -------------------------------------------------------------------------------------------------- tiny networks


def test_one_sample_gives_the_mean_bound_of_the_images(make_model, images_u8):
    model = make_model()
    evaluation = evaluate(model, images_u8, batch_size=10)
    images = to_float(images_u8, "cpu")
    with torch.no_grad():
        result = model(images, model.draw_noise(10, seeded(0, "validation", 0), posterior=True))
        terms = elbo_terms(result, images)
    assert evaluation.elbo.mean == pytest.approx(terms.elbo.mean().item(), rel=1e-5)
    assert evaluation.elbo.standard_error == pytest.approx(terms.elbo.std().item() / math.sqrt(10), rel=1e-5)
    assert evaluation.kl_per_group == pytest.approx(terms.kl.mean(0).tolist(), rel=1e-5)
    weights = log_importance_weight(result, terms.log_likelihood)
    assert evaluation.log_likelihood.mean == pytest.approx(weights.mean().item(), rel=1e-5)
    dimensions = images_u8[0].numel()
    assert evaluation.elbo_bits.mean == pytest.approx(
        model.likelihood.bits_per_dimension(-evaluation.elbo.mean, dimensions), rel=1e-6
    )
    scale = 1 / (dimensions * math.log(2))
    assert evaluation.elbo_bits.standard_error == pytest.approx(evaluation.elbo.standard_error * scale, rel=1e-5)


def test_dequantized_targets_get_noise_and_the_encoder_none(make_model, images_u8):
    """Same weights: the KL stays, and the reconstruction is that of images with noise, a function of the seed."""
    faces = {"name": "toy_faces"}
    plain, noisy = (make_model(dataset=faces | {"dequantize": on}) for on in (False, True))
    before, first, same = (evaluate(model, images_u8, 10) for model in (plain, noisy, noisy))
    other = evaluate(noisy, images_u8, 10, seed=1)
    assert first.kl_per_group == before.kl_per_group
    assert first.reconstruction == same.reconstruction != other.reconstruction
    targets = dequantize(to_float(images_u8, "cpu"), 8, seeded(0, "dequantization in validation", 0))
    with torch.no_grad():
        output = noisy(to_float(images_u8, "cpu"), noisy.draw_noise(10, seeded(0, "validation", 0), posterior=True))
    assert first.elbo.mean == pytest.approx(elbo_terms(output, targets).elbo.mean().item(), rel=1e-5)
    assert first.elbo_bits.mean == pytest.approx(-first.elbo.mean / (192 * math.log(2)) + 8)


def test_incomplete_batch_counts_by_its_images(make_model, images_u8):
    """The KL of the top group depends on the images alone, not on the noise."""
    model = make_model()
    parts, whole = evaluate(model, images_u8, batch_size=4), evaluate(model, images_u8, batch_size=10)
    assert parts.images == whole.images == 10
    assert parts.kl_per_group[0] == pytest.approx(whole.kl_per_group[0], rel=1e-5)


@pytest.mark.parametrize(("batch_size", "samples"), [(4, 1), (4, 3), (4, 4), (4, 10), (1, 3), (7, 3), (100, 3)])
def test_images_are_encoded_once_and_passes_are_bounded(make_model, images_u8, batch_size, samples):
    model, encoded, passed = make_model(), [], []
    model.encoder.register_forward_hook(lambda module, args, output: encoded.append(len(args[0])))
    model.output.register_forward_hook(lambda module, args, output: passed.append(len(args[0])))
    evaluation = evaluate(model, images_u8, batch_size, samples, count_active=False)
    assert sum(encoded) == len(images_u8)
    assert sum(passed) == len(images_u8) * samples
    assert max(passed) <= batch_size
    assert evaluation.samples == samples


def test_features_and_targets_are_repeated_together(make_model, images_u8):
    """Features and images are repeated in the same order, else an image is compared with another reconstruction."""
    model = make_model()
    alone = [evaluate(model, image[None], 8, 4).kl_per_group[0] for image in images_u8[:3]]
    together = evaluate(model, images_u8[:3], 12, 4)
    assert together.kl_per_group[0] == pytest.approx(sum(alone) / 3, rel=1e-5)
    images = to_float(images_u8[:3], "cpu").repeat_interleave(4, 0)
    with torch.no_grad():
        result = model(images, model.draw_noise(12, seeded(0, "validation", 0), posterior=True))
        terms = elbo_terms(result, images)
    weights = log_importance_weight(result, terms.log_likelihood).view(3, 4)
    assert together.log_likelihood.mean == pytest.approx((weights.logsumexp(1) - math.log(4)).mean().item(), rel=1e-6)


def test_seed_determines_the_evaluation(make_model, images_u8):
    model = make_model()
    assert evaluate(model, images_u8, 8, 3, seed=1) == evaluate(model, images_u8, 8, 3, seed=1)
    assert evaluate(model, images_u8, 8, 3, seed=1).elbo != evaluate(model, images_u8, 8, 3, seed=2).elbo


def test_evaluate_restores_the_model_also_after_an_error(make_model, images_u8, monkeypatch):
    model = make_model().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    evaluate(model, images_u8, 4, 2)
    monkeypatch.setattr(model, "bottom_up", lambda images: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        evaluate(model, images_u8)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_encoder_sees_the_images_and_the_likelihood_the_targets(make_model, images_u8, generator):
    model = make_model(sampling_method="bernoulli")
    targets = 255 * torch.randint(0, 2, images_u8.shape, dtype=torch.uint8, generator=generator)
    evaluation = evaluate(model, images_u8, 10, targets_u8=targets)
    output = model(to_float(images_u8, "cpu"), model.draw_noise(10, seeded(0, "validation", 0), posterior=True))
    terms = elbo_terms(output, to_float(targets, "cpu"))
    assert evaluation.elbo.mean == pytest.approx(terms.elbo.mean().item(), rel=1e-5)
    assert evaluation.kl_per_group == pytest.approx(terms.kl.mean(0).tolist(), rel=1e-5)
    assert evaluation.reconstruction != evaluate(model, images_u8, 10).reconstruction


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 0},
        {"batch_size": 0},
        {"seed": -1},
        {"images_u8": torch.zeros(2, 3, 8, 8)},
        {"images_u8": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)},
        {"targets_u8": torch.zeros(3, 3, 8, 8, dtype=torch.uint8)},
    ],
)
def test_evaluate_refuses_wrong_arguments(make_model, images_u8, wrong):
    with pytest.raises(InvalidValueError):
        evaluate(make_model(), **{"images_u8": images_u8} | wrong)


def test_images_are_quantized_to_the_bit_depth(make_model, images_u8):
    """With 5 bits, the 3 lowest bits of the images make no difference."""
    model = make_model(pixel_bits=5, sampling_method="logistic_mixture")
    assert evaluate(model, images_u8, 10) == evaluate(model, images_u8 & 0b11111000, 10)
    assert evaluate(model, images_u8, 10) != evaluate(model, images_u8 ^ 0b1000, 10)


def test_encoder_bits_are_those_of_the_encoder_alone(make_model, images_u8):
    model = make_model(pixel_bits=5, encoder_bits=8, sampling_method="logistic_mixture")
    evaluation, coarse = evaluate(model, images_u8, 10), evaluate(model, images_u8 & 0b11111000, 10)
    assert evaluation.kl_per_group != coarse.kl_per_group, "the encoder sees all bits"
    same = evaluate(model, images_u8, 10, targets_u8=images_u8 & 0b11111000)
    assert same == evaluation, "the likelihood does not"


def test_standard_error_of_a_single_image_is_nan():
    estimate = Estimate.of(torch.tensor([3.0]))
    assert estimate.mean == 3
    assert math.isnan(estimate.standard_error)


class Moving(LinearGroup):
    """Three latents: the first mean depends on the image, the second on the z above; the third is constant."""

    def prior(self, state):
        zeros = state.new_zeros(len(state), 3, 1, 1)
        return state, DiagonalNormal(zeros, torch.ones_like(zeros))

    def posterior(self, state, features, prior):
        above = state[:, :1] if state.shape[1] else torch.zeros_like(features[:, :1])
        mu = torch.cat([self.gains * features[:, :1], 0.8 * above, torch.full_like(above, 3.0)], 1)
        return DiagonalNormal(mu, torch.ones_like(mu))


@pytest.mark.parametrize(("gain", "active"), [(2.0, [1, 2]), (0.05, [0, 0])])
def test_active_unit_follows_the_image(config, gain, active):
    """A latent that depends on the z above is active if the mean of that z depends on the image."""
    groups = [Moving(i, gain, 0.0) for i in range(2)]
    for group in groups:
        group.level = Level(1, 1, 2, 1, latent_size=3)
    level = Level(2, resolution=1, encoder_channels=2, decoder_channels=1, latent_size=3)

    class Anything:
        def __init__(self, z):
            self.normal = DiagonalNormal(z.new_zeros(len(z), 3, 1, 1), z.new_ones(()))

        def log_prob(self, images):
            return self.normal.log_density(images)

    model = LinearModel(config, [level], groups)
    model.likelihood = Likelihood(2, Anything, 0.0, range(2))
    images_u8 = torch.randint(0, 256, (300, 3, 1, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for samples in (1, 5):
        evaluation = evaluate(model.eval(), images_u8, 100, samples)
        assert evaluation.active_units_per_group == active
        assert evaluation.units_per_group == [3, 3]
    assert evaluate(model, images_u8, 100, count_active=False).active_units_per_group is None
    for images, expected in ((1, [0, 0]), (100, active)):  # one image has no variance
        assert evaluate(model, images_u8, 1, count_active=images).active_units_per_group == expected


def test_evaluation_that_is_not_finite_is_valid_json(make_model, images_u8):
    model = make_model()
    with torch.no_grad():
        model.groups[0].posterior_head.bias.fill_(math.nan)
    content = evaluate(model, images_u8, 10).to_dict()
    assert content["elbo"] == {"mean": None, "standard_error": None}
    assert content["kl_per_group"][0] is None
    json.dumps(content, allow_nan=False)


@torch.no_grad()
@pytest.mark.parametrize("name", ["nvlabs_bernoulli", "nvlabs_logistic_mixture_flows"])
def test_importance_weight_matches_the_recording(recording, name):
    from nvae.interop.key_mapping import load_with_key_map
    from nvae.interop.nvlabs import config_of_settings, key_map, weights_of

    recorded = recording(name)
    config, _ = config_of_settings(recorded["args"], name)
    model = load_with_key_map(config, weights_of(recorded["state_dict"]), key_map, name)
    images, expected = recorded["x"], recorded["eval"]
    result = model.top_down(FromPosterior(model.encoder(images), noise=recorded["noise"]), len(images))
    inner = slice(config.padding, 32 - config.padding)
    weights = log_importance_weight(result, elbo_terms(result, images[..., inner, inner]).log_likelihood)
    torch.testing.assert_close(weights.float(), expected["log_importance_weight"], rtol=1e-5, atol=0)
