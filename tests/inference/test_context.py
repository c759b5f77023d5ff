"""Inference with a model that has a context above all scales."""

import pytest
import torch

from nvae.inference.exploration import (
    base_point,
    draw_group_noise,
    explore,
    explore_positions,
    jam_sampler,
    resample_group,
)
from nvae.inference.interpolation import interpolate, mix, slerp, walk
from nvae.inference.reconstruction import encode, pseudo_inputs, reconstruct
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.system.errors import InvalidValueError

TEMPERATURE = [0.9, 0.7, 0.5]
ANY_PRIOR = pytest.mark.parametrize("top_prior", ["diffusion", "standard", "gaussian", "mixture", "vampprior"])


@pytest.fixture(scope="module")
def model(make_dvp):
    return make_dvp()


@pytest.fixture
def sampler(model):
    return Sampler(model, TEMPERATURE, iterations=0)


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def posterior_pass(model, images):
    return model.top_down(
        FromPosterior(model.bottom_up(images), model.no_noise(len(images), posterior=True)), len(images)
    )


# -------------------------------------------------------------------------------------------------- pseudo-inputs


@torch.no_grad()
def test_pseudo_inputs_of_noise_are_the_images_of_the_context_in_a_pass(model, sampler, assert_within):
    noise = sampler.noise([1, 2, 3])
    output = model.top_down(FromNoise(noise, [0.9, 0.7, 0.5, 0.5]), 3)
    expected = model.groups[0].image_of(output.groups[0].z)
    assert_within(sampler.pseudo_inputs(noise[0]), expected, 1e-5)
    sampler.batch_size = 2
    assert_within(sampler.pseudo_inputs(noise[0]), expected, 1e-5)
    assert (expected - Sampler(model, 1.0, iterations=0).pseudo_inputs(noise[0])).abs().max() > 1e-3


@torch.no_grad()
def test_pseudo_inputs_of_images_are_those_of_the_posterior_centers(model, images, assert_within):
    expected = model.groups[0].image_of(posterior_pass(model, images).groups[0].z)
    assert_within(pseudo_inputs(model, images), expected)
    assert_within(pseudo_inputs(model, images, batch_size=2), expected)
    with pytest.raises(InvalidValueError):
        pseudo_inputs(model, images + 1)


def test_pseudo_inputs_of_a_model_without_a_context_are_none(bernoulli_model, images):
    sampler = Sampler(bernoulli_model, 0.7, iterations=0)
    noise = sampler.noise([1])
    base = base_point(sampler, noise)
    assert base.pseudo_input is sampler.pseudo_inputs(noise[0]) is None
    assert pseudo_inputs(bernoulli_model, images) is None
    assert explore_positions(sampler, base, 0, 1).pseudo_inputs is None


# ------------------------------------------------------------------------------------------------- reconstruction


@ANY_PRIOR
@pytest.mark.parametrize("context", ["dct", "downsample", "linear"])
def test_encode_then_decode_is_the_reconstruction(make_dvp, images, assert_within, top_prior, context):
    model = make_dvp(top_prior=top_prior, context=context, prior_components=5)
    noise, sampler = encode(model, images), Sampler(model, iterations=0)
    assert [tuple(group.shape[1:]) for group in noise] == model.noise_shapes
    assert_within(sampler.decode(noise), reconstruct(model, images), 1e-4)
    assert_within(sampler.pseudo_inputs(noise[0]), pseudo_inputs(model, images), 1e-4)


@pytest.mark.parametrize("kept", range(4))
def test_reconstruct_keep_groups_counts_below_the_context(model, images, kept, passes):
    posterior = posterior_pass(model, images)
    outputs = passes(model)
    reconstruct(model, images, kept, 0.7)
    (output,) = outputs
    for index, group in output.groups.items():
        assert (group.posterior is not None) == (index < 1 + kept)
        assert torch.equal(group.z, posterior.groups[index].z) == (index < 1 + kept)


def test_reconstruct_keep_groups_zero_shows_what_the_context_carries(model, images):
    """The reconstruction depends on the picture through the context alone."""
    alone = reconstruct(model, images, 0)
    assert (alone[0] - alone[1]).abs().max() > 1e-3
    with torch.no_grad():
        kernel = torch.ones(8, 1) * torch.tensor([1.0, -1.0] * 4)  # above the context's frequencies after projection
        matrix = model.groups[0].context.matrix
        pattern = kernel - matrix.T @ (matrix @ kernel @ matrix.T) @ matrix
        other = 0.3 + 0.4 * images + 0.02 * pattern
        same_context = reconstruct(model, 0.3 + 0.4 * images, 0)
        torch.testing.assert_close(reconstruct(model, other, 0), same_context, rtol=0, atol=1e-5)
        assert (reconstruct(model, other) - reconstruct(model, 0.3 + 0.4 * images)).abs().max() > 1e-4


def test_reconstruct_refuses_more_groups_than_are_below_the_context(model, images):
    assert torch.equal(reconstruct(model, images, 3), reconstruct(model, images))
    with pytest.raises(InvalidValueError):
        reconstruct(model, images, 4)


# ---------------------------------------------------------------------------------------------------- exploration


def test_exploration_has_the_pseudo_inputs_of_the_context(model, sampler, assert_within):
    base = base_point(sampler, sampler.noise([3]))
    assert_within(base.pseudo_input, sampler.pseudo_inputs(base.noise[0]))
    fresh = draw_group_noise(model, 0, 2, 4, 0.8)
    images = explore(sampler, base, 2, 0.8, seed=4)
    assert_within(images[0], sampler.decode([fresh, *(kept.expand(2, *kept.shape[1:]) for kept in base.noise[1:])]))


@pytest.mark.parametrize(("context", "is_spatial"), [("dct", False), ("downsample", True), ("linear", True)])
def test_positions_of_a_context_are_coefficients_or_places(make_dvp, context, is_spatial):
    model = make_dvp(context=context)
    assert [group.info.is_spatial for group in model.groups] == [is_spatial, True, True, True]


def test_explore_positions_of_the_context_resamples_one_coefficient_in_all_draws(model, sampler, assert_within):
    base = base_point(sampler, sampler.noise([3]))
    effects = explore_positions(sampler, base, 0, draws=2, seed=5, keep=4)
    assert effects.influence.shape == (3, 3)
    assert effects.influence.min() > 0
    fresh = draw_group_noise(model, 0, 2, 5)
    assert base.noise[0].shape[1:] == (5, 3, 3, 3)
    for index, (row, column) in enumerate(effects.strongest):
        noise = base.noise[0].clone()
        noise[..., row, column] = fresh[:1, ..., row, column]
        assert_within(effects.images[index : index + 1], sampler.decode([noise, *base.noise[1:]]), 1e-5)
        assert_within(effects.pseudo_inputs[index : index + 1], sampler.pseudo_inputs(noise), 1e-5)
    assert explore_positions(sampler, base, 1, draws=1).pseudo_inputs is None


# -------------------------------------------------------------------------------------------------- interpolation


@ANY_PRIOR
def test_interpolation_between_pictures_ends_at_the_reconstructions(make_dvp, images, assert_within, top_prior):
    model = make_dvp(top_prior=top_prior, prior_components=5)
    sampler, times = Sampler(model, iterations=0), torch.linspace(0, 1, 5)
    a, b = ([group[i : i + 1] for group in encode(model, images)] for i in (0, 1))
    between = interpolate(sampler, a, b, times)
    assert_within(between[[0, 4]], reconstruct(model, images[:2]), 1e-4)
    contexts = sampler.pseudo_inputs(slerp(a[0], b[0], times))
    assert_within(contexts[[0, 4]], pseudo_inputs(model, images[:2]), 1e-4)
    mixture = mix(sampler, a, b)
    assert_within(mixture[[0, 4]], reconstruct(model, images[:2]).flip(0), 1e-4)


def test_walk_and_interpolation_pass_the_samples_of_their_seeds(sampler, assert_within):
    expected = sampler.sample([1, 2])
    assert_within(torch.cat(list(walk(sampler, [1, 2], 4)))[[0, 2]], expected)
    assert_within(interpolate(sampler, sampler.noise([1]), sampler.noise([2]), 3)[[0, 2]], expected)


@ANY_PRIOR
def test_absolute_jam_of_a_context_has_temperature_one(make_dvp, assert_within, top_prior):
    model = make_dvp(top_prior=top_prior, prior_components=5)
    sampler, cold = Sampler(model, iterations=0), Sampler(model, 0.5, iterations=0)
    base = base_point(cold, cold.noise([3]), absolute=True)
    assert_within(resample_group(cold, base, 0, base.jam_noise[0]), base.image, 1e-4)
    noise = cold.noise([4])[0]
    assert_within(jam_sampler(cold, base, 0).pseudo_inputs(noise), sampler.pseudo_inputs(noise))
    assert (cold.pseudo_inputs(noise) - sampler.pseudo_inputs(noise)).abs().max() > 1e-3
