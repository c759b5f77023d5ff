"""One walk from the top to the pixels, whatever chooses z on the way."""

from __future__ import annotations

import pytest
import torch

from nvae.models.distributions import standard_normal
from nvae.models.hierarchy import FromLatents, FromNoise, FromPosterior, FromPrior, PerGroup
from nvae.models.nvae.cells import CellStack

GROUPS = 4
NVLABS = {"style": "nvlabs", "n_mix": 2, "num_flows": 1}
FLOWS = pytest.mark.parametrize(
    "flows",
    [{}, {"num_flows": 1, "fixed_flows": True}, {"num_flows": 1}, NVLABS],
    ids=["no flows", "fixed flows", "flows", "nvlabs"],
)


@pytest.fixture
def model(make_model):
    return make_model()


@pytest.fixture
def images():
    return torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise_of(model, batch: int, generator: torch.Generator) -> list[torch.Tensor]:
    return [torch.randn(batch, *shape, generator=generator) for shape in model.noise_shapes]


# ------------------------------------------------------------------------------------------- the shape of things


def test_the_noise_shapes_are_those_of_the_latents_top_group_first(model):
    assert model.noise_shapes == [(2, 2, 2), (2, 2, 2), (2, 4, 4), (2, 4, 4)]
    with torch.no_grad():
        result = model.top_down(FromPrior(), 5)
    assert [tuple(group.z.shape[1:]) for group in result.groups.values()] == model.noise_shapes
    assert result.pixels.mean().shape == (5, 3, 8, 8)


@torch.no_grad()
def test_a_posterior_pass_has_a_kl_per_image_and_group(model, images):
    result = model(images)
    assert result.kl.shape == (3, GROUPS)
    for index, group in result.groups.items():
        assert torch.equal(result.kl[:, index], group.kl)
    assert len(model.bottom_up(images)) == GROUPS


def test_a_pass_from_the_top_needs_a_batch_size(model):
    with pytest.raises(ValueError, match="batch_size"):
        model.top_down(FromPrior())


# --------------------------------------------------------------------------------------------- starting half-way


@FLOWS
@torch.no_grad()
def test_a_pass_restarted_after_any_group_equals_the_whole_pass(make_model, flows):
    model = make_model(**flows)
    noise = noise_of(model, 3, seeded())
    whole = model.top_down(FromNoise(noise, 0.7), 3, return_states=True)
    assert list(whole.starts) == list(range(GROUPS))
    for k in range(GROUPS):
        rest = model.top_down(FromNoise(noise, 0.7), start=whole.starts[k])
        assert list(rest.groups) == list(range(k, GROUPS))
        assert torch.equal(rest.pixels.mean(), whole.pixels.mean()), k


@torch.no_grad()
def test_a_restarted_posterior_pass_equals_the_whole_pass(model, images):
    features, noise = model.bottom_up(images), noise_of(model, 3, seeded())
    whole = model.top_down(FromPosterior(features, noise=noise), 3, return_states=True)
    rest = model.top_down(FromPosterior(features, noise=noise), start=whole.starts[2], return_states=True)
    assert list(rest.starts) == [2, 3]
    assert torch.equal(rest.kl, whole.kl[:, 2:])
    assert torch.equal(rest.pixels.mean(), whole.pixels.mean())


@torch.no_grad()
def test_states_are_kept_only_when_asked_for(model):
    assert model.top_down(FromPrior(), 1).starts == {}


# ----------------------------------------------------------------------------------------------- choosing z


@FLOWS
@torch.no_grad()
def test_noise_that_from_prior_would_draw_gives_the_same_image(make_model, flows):
    model = make_model(**flows)
    drawn = model.top_down(FromPrior(0.7, seeded(3)), 2)
    given = model.top_down(FromNoise(noise_of(model, 2, seeded(3)), 0.7), 2)
    assert torch.equal(given.pixels.mean(), drawn.pixels.mean())
    other = model.top_down(FromPrior(0.7, seeded(4)), 2)
    assert not torch.equal(other.pixels.mean(), drawn.pixels.mean())


@FLOWS
@torch.no_grad()
def test_the_latents_of_an_image_reproduce_its_reconstruction(make_model, flows, images):
    model = make_model(**flows)
    encoded = model(images, seeded())
    latents = [group.z for group in encoded.groups.values()]
    decoded = model.top_down(FromLatents(latents), 3)
    assert torch.equal(decoded.pixels.mean(), encoded.pixels.mean())
    latents[1] = latents[1] + 1
    assert not torch.equal(model.top_down(FromLatents(latents), 3).pixels.mean(), encoded.pixels.mean())


@pytest.mark.parametrize("kept", range(GROUPS + 1))
@torch.no_grad()
def test_the_first_groups_of_an_image_can_be_kept_and_the_rest_be_free(model, images, kept):
    encoded = model(images, seeded())
    latents = [group.z for group in encoded.groups.values()]
    free = FromPrior(1.0, seeded(1))
    mixed = model.top_down(PerGroup([FromLatents(latents)] * kept + [free] * (GROUPS - kept)), 3)
    for index, group in mixed.groups.items():
        assert torch.equal(group.z, latents[index]) == (index < kept), index
    assert torch.equal(mixed.pixels.mean(), encoded.pixels.mean()) == (kept == GROUPS)


@torch.no_grad()
def test_the_choosers_can_be_mixed_in_any_order(model, images):
    """Posterior at the odd groups, prior at the even ones: each group sees only the state that came down to it."""
    features, noise = model.bottom_up(images), noise_of(model, 3, seeded())
    posterior, prior = FromPosterior(features, noise=noise), FromNoise(noise)
    mixed = model.top_down(PerGroup([prior, posterior, prior, posterior]), 3, return_states=True)
    for index, group in mixed.groups.items():
        assert (group.kl is not None) == (index % 2 == 1)
        state = mixed.starts[index].state
        raw_prior = model.groups[index].prior(state)
        chooser = posterior if index % 2 else prior
        assert torch.equal(group.z, chooser(index, model.groups[index], state, raw_prior).z)


@torch.no_grad()
def test_at_temperature_zero_z_is_the_priors_mean_up_to_the_floor_of_sigma(model):
    noise = noise_of(model, 2, seeded())
    for index, group in model.top_down(FromNoise(noise, 0.0), 2).groups.items():
        torch.testing.assert_close(group.prior.sigma, torch.full_like(group.prior.sigma, 0.01))
        torch.testing.assert_close(group.z, group.prior.mu + 0.01 * noise[index])


@torch.no_grad()
def test_the_prior_of_the_top_group_is_a_standard_normal_at_its_temperature(model):
    top = model.top_down(FromPrior(0.6), 2).groups[0].prior
    assert torch.equal(top.mu, torch.zeros(2, 2, 2, 2))
    torch.testing.assert_close(top.sigma, torch.full((2, 2, 2, 2), 0.61))


@pytest.mark.parametrize("choose", ["prior", "noise"])
@torch.no_grad()
def test_a_temperature_per_group_changes_that_group_and_those_below(model, choose):
    noise = noise_of(model, 2, seeded())

    def walk(temperature):
        chooser = FromPrior(temperature, seeded()) if choose == "prior" else FromNoise(noise, temperature)
        return model.top_down(chooser, 2)

    plain, per_group = walk(0.7), walk([0.7] * GROUPS)
    assert torch.equal(plain.pixels.mean(), per_group.pixels.mean())
    changed = walk([0.7, 0.7, 0.2, 0.7])
    for index in range(GROUPS):
        assert torch.equal(changed.groups[index].z, plain.groups[index].z) == (index < 2), index


@torch.no_grad()
def test_the_posteriors_temperature_narrows_it_around_the_same_mean(model, images):
    features, noise = model.bottom_up(images), noise_of(model, 3, seeded())
    warm = model.top_down(FromPosterior(features, noise=noise), 3).groups[0]
    cool = model.top_down(FromPosterior(features, noise=noise, temperature=0.5), 3).groups[0]
    assert torch.equal(cool.posterior.mu, warm.posterior.mu)
    assert torch.equal(cool.prior.sigma, warm.prior.sigma)
    torch.testing.assert_close(cool.posterior.sigma - 0.01, (warm.posterior.sigma - 0.01) * 0.5)


# ------------------------------------------------------------------------------------------------- evidence


@pytest.mark.parametrize("fixed_flows", [False, True])
@torch.no_grad()
def test_log_q_minus_log_p_averages_to_the_kl(make_model, images, fixed_flows):
    """Of every group: given the groups above, the sample's log ratio has the closed form's mean."""
    model = make_model(num_flows=int(fixed_flows), fixed_flows=fixed_flows)
    draws = 1000
    result = model(images[:1].expand(draws, -1, -1, -1), seeded())
    for index, group in result.groups.items():
        excess = group.log_q - group.log_p - group.kl
        assert excess.mean().abs() < 5 * excess.std() / draws**0.5, index
        assert excess.std() > 0.01
        assert (group.kl > 0).all()
    top = result.groups[0]
    torch.testing.assert_close(top.kl, top.kl[:1].expand(draws), msg="the top group's KL depends on the draw")


@torch.no_grad()
def test_a_flow_on_the_posterior_alone_has_the_log_ratio_of_the_draw_for_a_kl(make_model, images):
    """log q is the density before the flow, which preserves volume; log p is the prior's at the flow's end."""
    model = make_model(num_flows=1, fixed_flows=False)
    noise = noise_of(model, 3, seeded())
    result = model.top_down(FromPosterior(model.bottom_up(images), noise=noise), 3)
    for index, group in result.groups.items():
        before = group.posterior.mu + group.posterior.sigma * noise[index]
        torch.testing.assert_close(group.z, model.groups[index].flow(before))
        log_q = torch.distributions.Normal(*group.posterior).log_prob(before).sum((1, 2, 3))
        log_p = torch.distributions.Normal(*group.prior).log_prob(group.z).sum((1, 2, 3))
        # Sums of some hundred terms of both signs, in float32.
        torch.testing.assert_close(group.log_q, log_q, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(group.log_p, log_p, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(group.kl, log_q - log_p, rtol=1e-5, atol=1e-3)
        assert (group.z - before).abs().max() > 1e-3
        unflowed = torch.distributions.Normal(*group.prior).log_prob(before).sum((1, 2, 3))
        assert (log_p - unflowed).abs().min() > 0.01, "the test would accept a log p before the flow"


@torch.no_grad()
def test_fixed_flows_follow_both_sides_and_others_the_posterior_only(make_model):
    for fixed in (True, False):
        model = make_model(num_flows=1, fixed_flows=fixed)
        noise = noise_of(model, 2, seeded())
        for index, group in model.top_down(FromNoise(noise), 2).groups.items():
            before = group.prior.mu + group.prior.sigma * noise[index]
            expected = model.groups[index].flow(before) if fixed else before
            torch.testing.assert_close(group.z, expected)


@torch.no_grad()
def test_a_posterior_that_adds_nothing_to_the_prior_has_no_kl(model, images):
    """The posterior's parameters are residual: what its head gives is added to the prior's."""
    for group in model.groups:
        group.posterior_head.parametrizations.weight.original0.zero_()
        group.posterior_head.bias.zero_()
    assert torch.equal(model(images).kl, torch.zeros(3, GROUPS))


# ------------------------------------------------------------------------------------- batches, seeds, precision


@torch.no_grad()
def test_images_of_a_batch_do_not_see_each_other_in_evaluation(model, images):
    noise = noise_of(model, 3, seeded())
    whole = model.top_down(FromPosterior(model.bottom_up(images), noise=noise), 3)
    alone = model.top_down(FromPosterior(model.bottom_up(images[1:2]), noise=[n[1:2] for n in noise]), 1)
    torch.testing.assert_close(alone.kl, whole.kl[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.pixels.mean(), whole.pixels.mean()[1:2], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_features_computed_once_serve_any_number_of_passes(model, images):
    features, generator = model.bottom_up(images), seeded()
    passes = [model.top_down(FromPosterior(features, generator), 3) for _ in range(2)]
    direct = [model(images, generator) for generator in [seeded()] for _ in range(2)]
    for ours, theirs in zip(passes, direct, strict=True):
        assert torch.equal(ours.kl, theirs.kl)
    assert not torch.equal(passes[0].kl[:, 1:], passes[1].kl[:, 1:])


def test_a_pass_leaves_torchs_own_random_state_alone(model, images):
    before = torch.get_rng_state()
    with torch.no_grad():
        model(images, seeded()).pixels.sample(seeded())
        model.top_down(FromPrior(1.0, seeded()), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_image_depends_on_the_noise_of_every_group(model):
    noise = [n.requires_grad_() for n in noise_of(model, 2, seeded())]
    model.top_down(FromNoise(noise), 2).pixels.mean().square().sum().backward()
    for n in noise:
        assert (n.grad != 0).all()


def test_a_group_does_not_see_the_noise_of_groups_below_it(model, images):
    features = model.bottom_up(images)
    for below in range(1, GROUPS):
        noise = [n.requires_grad_() for n in noise_of(model, 3, seeded())]
        result = model.top_down(FromPosterior(features, noise=noise), 3)
        gradients = torch.autograd.grad(result.groups[below].kl.sum(), noise, retain_graph=True, materialize_grads=True)
        for index, gradient in enumerate(gradients):
            assert (gradient != 0).any() == (index < below)


@torch.no_grad()
def test_densities_of_a_model_under_autocast_are_in_single_precision(model, images):
    exact = model(images, seeded())
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, seeded())
    assert rough.kl.dtype == rough.pixels.log_prob(images).dtype == torch.float32
    assert rough.groups[0].z.dtype == torch.float32
    torch.testing.assert_close(rough.kl, exact.kl, rtol=0.1, atol=0.1)


@pytest.mark.parametrize(
    "changes",
    [{"num_flows": 1}, NVLABS, {"spectral_normalization": True}, NVLABS | {"spectral_normalization": True}],
    ids=["mgp123", "nvlabs", "mgp123 spectral", "nvlabs spectral"],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_recomputing_activations_changes_neither_loss_nor_gradients_nor_statistics(
    make_model, images, autocast, changes
):
    results = []
    for recompute in (False, True):
        model = make_model(**changes).train()
        model.recompute_activations(recompute)
        assert {m.recompute for m in model.modules() if isinstance(m, CellStack)} == {recompute}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(images, seeded())
        loss = result.kl.sum() - result.pixels.log_prob(images).sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for found, expected in zip(*results, strict=True):
        assert torch.equal(found, expected)


def test_noise_is_drawn_group_by_group_from_the_top(model):
    generator = seeded(11)
    with torch.no_grad():
        groups = model.top_down(FromPrior(1.0, seeded(11)), 2).groups.values()
    for group in groups:
        eps = standard_normal(group.z, generator)
        torch.testing.assert_close(group.z, group.prior.mu + group.prior.sigma * eps)
