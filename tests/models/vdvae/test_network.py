"""The network of the VDVAE family beyond what the recordings show."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.inference.sampling import Sampler
from nvae.models.distributions import map_tensors
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise
from nvae.models.vdvae import network

TINY = {
    "family": "vdvae",
    "enc_blocks": "8x1,8d2,4x1,4d4,1x1",
    "dec_blocks": "1x1,4m1,4x1,8m4",
    "width": 8,
    "custom_width": "4:12,1:12",
    "bottleneck_multiple": 0.5,
    "latent_size": 2,
}


@pytest.fixture
def model(make_config):
    """A function: a tiny model with random weights everywhere."""

    def model(**keys):
        built = build_model(make_config(**(TINY | keys)))
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in built.parameters():
                parameter.normal_(0, 0.2, generator=generator)
        return built.eval()

    return model


@pytest.fixture
def images(generator):
    return torch.randint(0, 256, (3, 3, 8, 8), generator=generator) / 255


@torch.no_grad()
def test_prior_of_a_new_model_is_standard(make_config, images):
    fresh = build_model(make_config(**TINY))
    for group in fresh(images, fresh.draw_noise(3)).groups.values():
        assert (group.prior.mu == 0).all()
        assert (group.prior.sigma == 1).all()


@torch.no_grad()
@pytest.mark.parametrize("value", [-30.0, -1.0, 0.0, 2.0, 100.0])
def test_sigma_by_softplus(model, value):
    group = model(sigma="softplus").groups[0]
    sigma = group._normal(torch.full((1, 4, 1, 1), value)).sigma
    assert sigma.flatten().tolist() == pytest.approx(2 * [math.log2(1 + 2**value)], rel=1e-5)
    assert model().groups[0]._normal(torch.full((1, 4, 1, 1), 2.0)).sigma[0, 0].item() == pytest.approx(math.exp(2))


@torch.no_grad()
def test_stream_without_learned_numbers_starts_from_zeros(model, images):
    """With no_bias_above 0 every stream starts from zeros; then a pass equals one with learned numbers of 0."""
    learned = model()
    for bias in learned.stream_biases:
        bias.zero_()
    zeros = model(no_bias_above=0)
    assert len(zeros.stream_biases) == 0
    zeros.load_state_dict({n: t for n, t in learned.state_dict().items() if not n.startswith("stream_biases")})
    noise = learned.draw_noise(3)
    torch.testing.assert_close(zeros(images, noise).parameters, learned(images, noise).parameters)


@torch.no_grad()
def test_pass_from_a_cached_state_is_the_pass_from_the_top(model):
    built = model(no_bias_above=1)
    noise = built.draw_noise(1)
    whole = built.top_down(FromNoise(noise), 1, return_states=True)
    for start in whole.states.values():
        repeated = start.repeated(2)
        twice = built.top_down(FromNoise([torch.cat([z, z]) for z in noise]), start=repeated)
        torch.testing.assert_close(twice.parameters, whole.parameters.expand_as(twice.parameters))


def test_recomputed_activations_change_no_gradient(model, images):
    built = model()
    noise, gradients = built.draw_noise(3), []
    for recompute in (False, True):
        built.recompute_activations(recompute)
        output = built(images, noise)
        loss = output.kl.sum() - output.px_z.log_prob(images).sum()
        gradients.append(torch.autograd.grad(loss, list(built.parameters())))
    assert all(map(torch.equal, *gradients))


@torch.no_grad()
@pytest.mark.parametrize(
    "likelihood",
    [
        "bernoulli",
        "gaussian",
        "gaussian_mixture",
        "discretized_gaussian",
        "logistic_mixture",
        "coupled_logistic_mixture",
    ],
)
def test_every_likelihood(model, images, likelihood):
    built = model(sampling_method=likelihood, likelihood_tails="original")
    targets = images.round() if likelihood == "bernoulli" else images
    assert built(images, built.draw_noise(3)).px_z.log_prob(targets).isfinite().all()
    for pixels in ("mean", "most_likely", "sample"):
        assert Sampler(built, 0.7).sample(2, pixels).shape == (2, 3, 8, 8)


@torch.no_grad()
def test_samples_need_no_recalibration(model):
    sampler = Sampler(model(), 0.7)
    assert sampler.statistics is None
    one, many = sampler.sample([5]), sampler.sample([3, 4, 5])
    torch.testing.assert_close(one[0], many[2])


@torch.no_grad()
def test_padded_channels_of_the_encoder_are_zero(model, images):
    features = model(enc_blocks="8x1,8d2,4d4", dec_blocks="1x1,4m1,8m4").encoder(images)
    assert [features[side].shape[1] for side in (8, 4, 1)] == [8, 12, 12]
    assert (features[4][:, 8:] == 0).all()  # GELU(0) is 0


def test_state_is_a_tuple_of_streams(model):
    state = model(no_bias_above=1).initial_state(2)
    assert [None if stream is None else tuple(stream.shape) for stream in state.streams] == [(2, 12, 1, 1), None, None]
    assert map_tensors(state, lambda x: x[:1]).streams[0].shape == (1, 12, 1, 1)


PATCHES = {"patch_size": 2, "enc_blocks": "4x1,4d4,1x1", "dec_blocks": "1x1,4m1", "width": 12, "custom_width": ""}


@torch.no_grad()
@pytest.mark.parametrize("output_width", [0, 5])
def test_image_is_made_of_patches(model, images, output_width):
    built = model(**PATCHES, output_width=output_width)
    output = built(images, built.draw_noise(3, posterior=True))
    assert output.parameters.shape[2:] == images.shape[2:]
    changed = images.clone()
    changed[:, :, 0, 0] += 0.5  # every pixel of a patch reaches the encoder
    changed[:, :, 7, 6] += 0.5
    before, after = built.bottom_up(images)[-1], built.bottom_up(changed)[-1]
    assert (before != after).any(1)[:, [0, 3], [0, 3]].all()


@torch.no_grad()
def test_last_layer_after_patches_lets_neighbors_across_patches_meet(model):
    built = model(**PATCHES, output_width=5)
    state = built.initial_state(1)
    streams = (*state.streams[:-1], torch.zeros(1, 12, 4, 4))
    streams[-1][..., 1, 1] = 1
    moved = built.decode(state._replace(streams=streams)) != built.decode(
        state._replace(streams=(*streams[:-1], torch.zeros(1, 12, 4, 4)))
    )
    rows = moved[0].any(0).nonzero()[:, 0].unique().tolist()
    assert rows == [1, 2, 3, 4]  # the patch of position 1, and one pixel more on each side


@torch.no_grad()
def test_blocks_without_latents_change_the_image(model, images):
    built = model(no_latents_above=4, dec_blocks="1x1,4m1,4x1,8m4,8x1")
    assert [group.level.resolution for group in built.groups] == [1, 4, 4]
    assert [level.resolution for level in built.levels] == [1, 4]
    noise = built.draw_noise(3)
    before = built.top_down(FromNoise(noise), 3).parameters
    built.plain_blocks[1].output_block.c4.weight.zero_()
    assert not torch.equal(before, built.top_down(FromNoise(noise), 3).parameters)


def test_block_without_latents_is_a_third_of_a_block(model):
    whole, plain = model(), model(no_latents_above=4)
    with_latents = sum(p.numel() for p in whole.groups[-1].parameters())
    without = sum(p.numel() for p in plain.plain_blocks[0].parameters())
    assert 0.2 < without / with_latents < 0.4


@torch.no_grad()
def test_bounded_sigma(model):
    group = model(sigma="bounded").groups[0]
    sigmas = [group._normal(torch.full((1, 4, 1, 1), value)).sigma[0, 0].item() for value in (-1e4, 0.0, 0.1, 1e4)]
    assert sigmas == pytest.approx([math.exp(-5), 1, math.exp(0.1), math.exp(5)], rel=1e-3)


def test_three_convolutions_leave_out_one(model):
    three, four = (model(block_convolutions=count) for count in (3, 4))
    names = {name for name, _ in four.named_parameters()} - {name for name, _ in three.named_parameters()}
    assert names
    assert all(".c3." in name for name in names)


@torch.no_grad()
def test_learned_resampling_starts_near_fixed(generator, monkeypatch):
    x = torch.randn(2, 3, 4, 4, generator=generator)
    coarse, fine = network.FixedDownsampling(5, 2), network.FixedUpsampling(2, 4)
    assert not torch.allclose(network.LearnedDownsampling(3, 5, 2)(x), coarse(x), atol=1e-3)
    monkeypatch.setattr(network, "START", 0)
    for learned, fixed in ((network.LearnedDownsampling(3, 5, 2), coarse), (network.LearnedUpsampling(3, 2, 4), fine)):
        for name, bias in learned.named_parameters():
            if name.endswith("bias"):
                bias.zero_()
        torch.testing.assert_close(learned(x), fixed(x))


def test_learned_resampling_learns(make_config, images):
    model = build_model(make_config(**TINY, resampling="learned"))
    model(images, model.draw_noise(3, posterior=True)).px_z.log_prob(images).sum().backward()
    layers = [m for m in model.modules() if isinstance(m, network.LearnedDownsampling | network.LearnedUpsampling)]
    assert len(layers) == 4  # 8 to 4 to 1 and back
    assert all(parameter.grad.abs().sum() > 0 for layer in layers for parameter in layer.parameters())


@torch.no_grad()
def test_activation_is_that_of_the_config_everywhere(model, images, monkeypatch):
    keys = {"no_latents_above": 4, "output_width": 5}
    calls = []
    monkeypatch.setitem(network.ACTIVATIONS, "gelu", lambda x: calls.append(x) or x)
    with_silu = model(activation="silu", **keys)
    with_silu(images, with_silu.no_noise(3, posterior=True))
    assert not calls
    with_gelu = model(activation="gelu", **keys)
    with_gelu(images, with_gelu.no_noise(3, posterior=True))
    blocks = sum(isinstance(module, network.Bottleneck) for module in with_gelu.modules())
    assert len(calls) > 3 * blocks
