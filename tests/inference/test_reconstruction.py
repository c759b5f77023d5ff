import pytest
import torch

from nvae.inference.reconstruction import encode, reconstruct
from nvae.inference.sampling import Sampler, seed_noise
from nvae.models.folding import for_inference
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.system.errors import InvalidValueError

GROUPS = 4
NVLABS = {"style": "nvlabs", "num_flows": 1}
VARIANTS = {
    "plain": {},
    "flows": {"num_flows": 1},
    "fixed flows": {"num_flows": 1, "fixed_flows": True},
    "own posterior": {"residual_posterior": False},
    "all": {"residual_posterior": False, "num_flows": 2, "fixed_flows": True},
    "nvlabs": NVLABS,
}


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def decode(model, noise, temperature=1.0):
    return Sampler(model, temperature, iterations=0).decode(noise)


@torch.no_grad()
def posterior_centers(model, images):
    return model.top_down(
        FromPosterior(model.bottom_up(images), model.no_noise(len(images), posterior=True)), len(images)
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_encode_then_decode_is_the_reconstruction(make_model, images, variant, assert_within):
    model = make_model(**VARIANTS[variant], sampling_method="bernoulli")  # means of this likelihood are not clamped
    noise = encode(model, images)
    assert [tuple(group.shape[1:]) for group in noise] == model.noise_shapes
    assert_within(decode(model, noise), reconstruct(model, images), 1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
@torch.no_grad()
def test_encode_gives_the_centers_of_the_posteriors(make_model, images, variant, assert_within):
    """Noise from `encode` gives the centers of the posteriors in a pass from the prior, also with flows."""
    model = make_model(**VARIANTS[variant])
    noise = encode(model, images)
    prior = model.top_down(FromNoise(noise), 3)
    for index, group in posterior_centers(model, images).groups.items():
        assert_within(prior.groups[index].z, group.z, 1e-5)
        assert_within(prior.groups[index].prior.mu, group.prior.mu, 1e-5)
        assert noise[index].abs().max() > 0.05


def test_encode_of_a_zero_residual_posterior_is_zero(make_model, images):
    model = make_model()
    for group in model.groups:  # zero residuals: the posterior equals the prior
        group.posterior_head.parametrizations.weight.original0.data.zero_()
        group.posterior_head.bias.data.zero_()
    assert all(torch.equal(group, torch.zeros_like(group)) for group in encode(model, images))


def test_encode_and_reconstruct_do_not_depend_on_the_batch_size(model, images, assert_within):
    for whole, parts in zip(encode(model, images), encode(model, images, batch_size=2), strict=True):
        assert_within(whole, parts, 1e-5)
    assert_within(reconstruct(model, images), reconstruct(model, images, batch_size=2), 1e-5)


@pytest.mark.parametrize("function", [encode, reconstruct])
def test_encode_refuses_images_of_another_type_or_size(model, images, function):
    for wrong in ((255 * images).byte(), images[0], images[:, :1], images + 1):
        with pytest.raises(InvalidValueError):
            function(model, wrong)


@pytest.mark.parametrize("wrong", [{"keep_groups": 5}, {"keep_groups": -1}, {"temperature": [1.0] * 3}, {"seed": -1}])
def test_reconstruct_refuses_wrong_arguments(model, images, wrong):
    with pytest.raises(InvalidValueError):
        reconstruct(model, images, **wrong)


def test_reconstruct_is_the_mean_image_of_the_posterior_centers(model, images, assert_within):
    expected = posterior_centers(model, images).px_z.mean().clamp(0, 1)
    assert_within(reconstruct(model, images), expected)
    assert torch.equal(reconstruct(model, images, GROUPS, 1.0, seed=7), reconstruct(model, images))


def test_reconstruct_restores_the_mode_of_the_model(make_model, images):
    model = make_model().train()
    reconstruct(model, images)
    encode(model, images)
    assert all(module.training for module in model.modules())


def test_reconstruct_keep_groups_zero_ignores_the_image(model, images):
    for temperature in (0.0, 0.7):
        one = reconstruct(model, images, 0, temperature)
        assert torch.equal(one, reconstruct(model, 1 - images, 0, temperature))
    assert not torch.equal(reconstruct(model, images, 1), reconstruct(model, 1 - images, 1))


@pytest.mark.parametrize("kept", range(GROUPS + 1))
def test_reconstruct_keep_groups_takes_the_first_groups_from_the_posterior(model, images, kept, passes):
    posterior = posterior_centers(for_inference(model), images)
    outputs = passes(model)
    reconstruct(model, images, kept, 0.7)
    (output,) = outputs
    for index, group in output.groups.items():
        assert (group.posterior is not None) == (index < kept)
        assert torch.equal(group.z, posterior.groups[index].z) == (index < kept), index


def test_reconstruct_other_groups_have_the_noise_of_the_seed(model, images, assert_within):
    one = reconstruct(model, images, 2, 0.6, seed=7)
    free = [group.expand(3, -1, -1, -1) for group in seed_noise(model, [7])]
    mixed = encode(model, images)[:2] + free[2:]  # `encode` gives noise for temperature 1
    assert_within(one, decode(model, mixed, [1.0, 0.6]), 1e-5)
    assert_within(one[1:2], reconstruct(model, images[1:2], 2, 0.6, seed=7), 1e-5)
    assert (one - reconstruct(model, images, 2, 0.6, seed=2)).abs().max() > 1e-3


@pytest.mark.parametrize("style", [{}, NVLABS], ids=["mgp123", "nvlabs"])
def test_reconstruct_temperature_zero_gives_the_centers_of_the_priors(make_model, images, style, assert_within):
    model = make_model(**style)
    one, other = (reconstruct(model, images, 2, 0.0, seed=seed) for seed in (1, 2))
    assert torch.equal(one, other)
    noise = [group if index < 2 else torch.zeros_like(group) for index, group in enumerate(encode(model, images))]
    assert_within(one, decode(model, noise), 1e-5)


def test_reconstruct_drawn_pixels_depend_on_the_seed(bernoulli_model, images):
    one, other = (reconstruct(bernoulli_model, images, seed=seed, pixels="sample") for seed in (1, 2))
    assert set(one.unique().tolist()) == {0, 1}
    assert not torch.equal(one, other)
