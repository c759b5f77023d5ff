from dataclasses import replace

import pytest
import torch

from nvae.errors import UserError
from nvae.inference import sampling
from nvae.inference.sampling import decode, encode, images_of, noise_of, per_group, reconstruct, sample
from nvae.models.hierarchy import FromNoise, FromPosterior

GROUPS = 4
NVLABS = {"style": "nvlabs", "num_flows": 1}
METHODS = pytest.mark.parametrize(
    "method",
    ["bernoulli", "gaussian", "gaussian_mixture", "logistic", "logistic_mixture", "coupled_logistic_mixture"],
)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def assert_close(one, other, within=1e-5):
    torch.testing.assert_close(one, other, rtol=0, atol=within)


# ---------------------------------------------------------------------------------------------------- per group


def test_one_number_stays_one_number(model):
    assert per_group(model, [0.7], "temperature") == 0.7


def test_a_number_per_scale_is_one_per_group_coarsest_first(make_model):
    model = make_model(initial_splits_per_scale=3, exponential_scaling=3)
    assert [shape[1] for shape in model.noise_shapes] == [2, 4, 4, 4]
    assert per_group(model, [0.5, 0.9], "temperature") == [0.5, 0.9, 0.9, 0.9]


@pytest.mark.parametrize("wrong", [[], [1.0, 2.0, 3.0], [1.0] * GROUPS])
def test_another_count_of_numbers_is_one_sentence_that_names_the_scales(model, wrong):
    with pytest.raises(UserError, match=rf"{len(wrong)} numbers .* the strength, .* 2 scales \(2x2, 4x4\); give one"):
        per_group(model, wrong, "strength")


# --------------------------------------------------------------------------------------------------- from seeds


def test_one_seed_is_one_image_whatever_the_others_are(make_model):
    model = make_model()
    together = sample(model, [5, 6, 7], 0.7)
    alone = sample(model, [6], 0.7)
    torch.testing.assert_close(together[1], alone[0], rtol=0, atol=1e-6)
    assert (together[0] - together[1]).abs().max() > 1e-3


def test_many_seeds_come_in_passes(make_model):
    model = make_model()
    images = sample(model, range(40), 0.7)
    assert images.shape == (40, 3, 8, 8)
    torch.testing.assert_close(images[37], sample(model, [37], 0.7)[0], rtol=0, atol=1e-6)


def test_images_are_on_the_unit_interval(make_model):
    images = sample(make_model(), range(9), 5.0)
    assert images.min() >= 0
    assert images.max() <= 1


def test_noise_is_standard_normal(make_model):
    noise = torch.cat([group.flatten() for group in noise_of(make_model(), range(400))])
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02


def test_reconstructions_need_no_luck(make_model):
    model = make_model()
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert torch.equal(reconstruct(model, images), reconstruct(model, images))


def test_a_temperature_per_group_is_that_of_its_groups(model):
    noise = noise_of(model, [3, 4])
    per_scale = sample(model, [3, 4], per_group(model, [0.4, 0.9], "temperature"))
    expected = model.top_down(FromNoise(noise, [0.4, 0.4, 0.9, 0.9]), 2).px_z.mean().clamp(0, 1)
    assert_close(per_scale, expected, 1e-6)
    assert (per_scale - sample(model, [3, 4], 0.4)).abs().max() > 1e-3


@torch.no_grad()
def test_the_mean_and_the_most_likely_image_are_those_of_the_distribution(make_model):
    model = make_model(sampling_method="logistic_mixture", n_mix=3)
    noise = noise_of(model, [3, 4])
    pixels = model.top_down(FromNoise(noise), 2).px_z
    assert_close(decode(model, noise), (pixels.logits.softmax(2) * pixels.means).sum(2).clamp(0, 1), 1e-6)
    chosen = torch.nn.functional.one_hot(pixels.logits.argmax(2), 3).movedim(-1, 2)
    most_likely = decode(model, noise, pixels="most_likely")
    assert_close(most_likely, (chosen * pixels.means).sum(2).clamp(0, 1), 1e-6)
    assert (most_likely - decode(model, noise)).abs().max() > 1e-2


@METHODS
@torch.no_grad()
def test_drawn_pixels_depend_on_the_seed_alone(make_model, method):
    model = make_model(sampling_method=method, n_mix=2)
    result = model.top_down(FromNoise(noise_of(model, [5, 6, 7])), 3)
    together = images_of(model, result, "sample", [5, 6, 7])
    assert torch.equal(
        together[1:2], images_of(model, replace(result, parameters=result.parameters[1:2]), "sample", [6])
    )
    assert not torch.equal(
        together[1:2], images_of(model, replace(result, parameters=result.parameters[1:2]), "sample", [5])
    )
    assert (together - images_of(model, result)).abs().mean() > 0.01
    assert together.min() >= 0
    assert together.max() <= 1


@METHODS
def test_samples_with_drawn_pixels_are_the_same_in_any_company(make_model, monkeypatch, method):
    """Over several passes, each with its own part of the seeds."""
    monkeypatch.setattr(sampling, "PASS_IMAGES", 2)
    model = make_model(sampling_method=method, n_mix=2)
    together = sample(model, [5, 6, 7, 8, 9], 0.7, "sample")
    alone = sample(model, [8], 0.7, "sample")[0]
    # The last digits of a pass depend on its size, and may turn a coin or a rounding.
    assert ((together[3] - alone).abs() > 1e-3).float().mean() < 0.02
    assert ((together[2] - alone).abs() > 1e-3).float().mean() > 0.1
    assert torch.equal(together, sample(model, [5, 6, 7, 8, 9], 0.7, "sample"))


def test_draws_of_one_image_average_to_its_mean(make_model):
    model = make_model(sampling_method="bernoulli")
    noise = noise_of(model, [3])
    mean, draws = decode(model, noise), 500
    many = [group.expand(draws, -1, -1, -1) for group in noise]
    drawn = decode(model, many, pixels="sample", seeds=range(draws))
    assert set(drawn.unique().tolist()) == {0, 1}
    error = (mean * (1 - mean) / draws).sqrt()
    assert ((drawn.mean(0) - mean).abs() <= 5 * error).all()


def test_drawn_values_are_ones_that_a_pixel_can_have(make_model):
    drawn = sample(make_model(sampling_method="logistic", pixel_bits=3), range(20), 1.0, "sample")
    torch.testing.assert_close(drawn.unique(), torch.arange(8) / 7)


def test_drawn_pixels_need_seeds(model):
    with pytest.raises(ValueError, match="seeds"):
        decode(model, noise_of(model, [3]), pixels="sample")


def test_no_noise_is_what_every_prior_expects(model):
    without = sample(model, [3, 4], 0.7, scale_noise=0)
    expected = decode(model, model.no_noise(1))
    assert_close(without, expected.expand(2, -1, -1, -1), 1e-6)
    assert_close(without, sample(model, [3, 4], 1.0, scale_noise=0), 0)
    assert (without - sample(model, [3, 4], 0.7)).abs().max() > 1e-2


def test_a_factor_on_the_noise_is_one_unless_said(model):
    plain = sample(model, [3, 4], 0.7)
    assert torch.equal(plain, sample(model, [3, 4], 0.7, scale_noise=1))
    doubled = decode(model, [2 * group for group in noise_of(model, [3, 4])], 0.7)
    assert torch.equal(sample(model, [3, 4], 0.7, scale_noise=2), doubled)
    assert (doubled - plain).abs().max() > 1e-3


def test_factors_per_group_are_each_on_the_noise_of_its_group(model):
    assert torch.equal(sample(model, [3], 0.7, scale_noise=[0.5] * GROUPS), sample(model, [3], 0.7, scale_noise=0.5))
    noise = noise_of(model, [3])
    expected = decode(model, [torch.zeros_like(noise[0]), noise[1], 3 * noise[2], noise[3]], 0.7)
    assert torch.equal(sample(model, [3], 0.7, scale_noise=[0.0, 1.0, 3.0, 1.0]), expected)


# ----------------------------------------------------------------------------------------------- from pictures

KINDS = {
    "plain": {},
    "flows": {"num_flows": 1},
    "fixed flows": {"num_flows": 1, "fixed_flows": True},
    "posterior of its own": {"residual_posterior": False},
    "all": {"residual_posterior": False, "num_flows": 2, "fixed_flows": True},
    "nvlabs": NVLABS,
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_encoded_image_decodes_to_its_reconstruction(make_model, images, kind):
    model = make_model(**KINDS[kind], sampling_method="bernoulli")  # whose means are nowhere clamped
    noise = encode(model, images)
    assert [tuple(group.shape[1:]) for group in noise] == model.noise_shapes
    assert_close(decode(model, noise), reconstruct(model, images))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_the_noise_of_an_image_leads_to_the_posteriors_means(make_model, images, kind):
    """Exactly to its z, group by group, and through the same flow where there is one."""
    model = make_model(**KINDS[kind])
    posterior = model.top_down(FromPosterior(model.bottom_up(images), noise=model.no_noise(3)), 3)
    noise = encode(model, images)
    prior = model.top_down(FromNoise(noise), 3)
    for index, group in posterior.groups.items():
        assert_close(prior.groups[index].z, group.z)
        assert_close(prior.groups[index].prior.mu, group.prior.mu)
        assert noise[index].abs().max() > 0.05


def test_an_image_that_is_what_the_prior_expects_needs_no_noise(make_model, images):
    model = make_model()
    for group in model.groups:  # the posterior adds nothing to the prior
        group.posterior_head.parametrizations.weight.original0.data.zero_()
        group.posterior_head.bias.data.zero_()
    assert all(torch.equal(group, torch.zeros_like(group)) for group in encode(model, images))


@torch.no_grad()
def test_a_reconstruction_is_the_mean_image_of_the_posteriors_means(model, images):
    posterior = model.top_down(FromPosterior(model.bottom_up(images), noise=model.no_noise(3)), 3)
    assert_close(reconstruct(model, images), posterior.px_z.mean().clamp(0, 1), 1e-6)
    assert torch.equal(reconstruct(model, images, keep_groups=GROUPS), reconstruct(model, images))
    assert torch.equal(reconstruct(model, images, GROUPS, 1.0, seed=7), reconstruct(model, images))


def test_with_no_group_kept_the_image_does_not_matter(model, images):
    for temperature in (0.0, 0.7):
        one = reconstruct(model, images, 0, temperature)
        assert torch.equal(one, reconstruct(model, 1 - images, 0, temperature))
    assert not torch.equal(reconstruct(model, images, 1), reconstruct(model, 1 - images, 1))


@pytest.mark.parametrize("kept", range(GROUPS + 1))
@torch.no_grad()
def test_the_kept_groups_are_those_of_the_posterior_and_the_others_the_priors(model, images, kept, monkeypatch):
    passes, top_down = [], model.top_down
    posterior = top_down(FromPosterior(model.bottom_up(images), noise=model.no_noise(3)), 3)

    def spy(*args, **options):
        passes.append(top_down(*args, **options))
        return passes[-1]

    monkeypatch.setattr(model, "top_down", spy)
    reconstruct(model, images, kept, 0.7)
    (found,) = passes
    for index, group in found.groups.items():
        assert (group.posterior is not None) == (index < kept)
        assert torch.equal(group.z, posterior.groups[index].z) == (index < kept), index


def test_the_free_groups_are_a_seeds(model, images):
    one = reconstruct(model, images, 2, 0.7, seed=1)
    assert torch.equal(one, reconstruct(model, images, 2, 0.7, seed=1))
    assert (one - reconstruct(model, images, 2, 0.7, seed=2)).abs().max() > 1e-3


@torch.no_grad()
def test_the_free_groups_have_the_noise_of_the_seeds_image_whatever_the_pictures(model, images):
    free = [group.expand(3, -1, -1, -1) for group in noise_of(model, [7])]
    mixed = encode(model, images)[:2] + free[2:]  # what is encoded is noise at temperature 1
    assert_close(reconstruct(model, images, 2, 0.6, seed=7), decode(model, mixed, [1.0, 1.0, 0.6, 0.6]))
    assert_close(reconstruct(model, images, 2, 0.6, seed=7)[1:2], reconstruct(model, images[1:2], 2, 0.6, seed=7))


@pytest.mark.parametrize("style", [{}, NVLABS], ids=["mgp123", "nvlabs"])
def test_at_temperature_zero_the_free_groups_are_what_the_prior_expects(make_model, images, style):
    model = make_model(**style)
    one, other = (reconstruct(model, images, 2, 0.0, seed=seed) for seed in (1, 2))
    assert torch.equal(one, other)
    kept = [group if index < 2 else torch.zeros_like(group) for index, group in enumerate(encode(model, images))]
    assert_close(one, decode(model, kept))
