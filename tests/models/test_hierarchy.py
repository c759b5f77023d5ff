"""The top-down pass and the sources of z."""

from __future__ import annotations

import pytest
import torch

from nvae.models.hierarchy import FromNoise, FromPosterior, GroupOutput, PerGroup
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


# ------------------------------------------------------------------------------------------- shapes of results


def test_noise_shapes_are_the_latent_shapes_top_group_first(model):
    assert model.noise_shapes == [(2, 2, 2), (2, 2, 2), (2, 4, 4), (2, 4, 4)]
    with torch.no_grad():
        result = model.top_down(FromNoise(model.draw_noise(5)), 5)
    assert [tuple(group.z.shape[1:]) for group in result.groups.values()] == model.noise_shapes
    assert result.px_z.mean().shape == (5, 3, 8, 8)


@torch.no_grad()
def test_posterior_pass_has_a_kl_per_image_and_group(model, images):
    result = model(images, model.draw_noise(3, posterior=True))
    assert result.kl.shape == (3, GROUPS)
    for index, group in result.groups.items():
        assert torch.equal(result.kl[:, index], group.kl)
    assert len(model.bottom_up(images)) == GROUPS


def test_top_down_from_the_top_needs_a_batch_size(model):
    with pytest.raises(ValueError, match="batch_size"):
        model.top_down(FromNoise(model.draw_noise(2)))


# --------------------------------------------------------------------------------------------- starting at a group


@FLOWS
@torch.no_grad()
def test_top_down_from_any_group_equals_the_whole_pass(make_model, flows):
    model = make_model(**flows)
    noise = noise_of(model, 3, seeded())
    whole = model.top_down(FromNoise(noise, 0.7), 3, return_states=True)
    assert list(whole.states) == list(range(GROUPS))
    for k in range(GROUPS):
        rest = model.top_down(FromNoise(noise, 0.7), start=whole.states[k])
        assert list(rest.groups) == list(range(k, GROUPS))
        assert torch.equal(rest.px_z.mean(), whole.px_z.mean()), k


@torch.no_grad()
def test_top_down_posterior_pass_from_a_group_equals_the_whole_pass(model, images):
    features, noise = model.bottom_up(images), noise_of(model, 3, seeded())
    whole = model.top_down(FromPosterior(features, noise=noise), 3, return_states=True)
    rest = model.top_down(FromPosterior(features, noise=noise), start=whole.states[2], return_states=True)
    assert list(rest.states) == [2, 3]
    assert torch.equal(rest.kl, whole.kl[:, 2:])
    assert torch.equal(rest.px_z.mean(), whole.px_z.mean())


@torch.no_grad()
def test_top_down_returns_states_only_with_return_states(model):
    assert model.top_down(FromNoise(model.draw_noise(1)), 1).states == {}


# ----------------------------------------------------------------------------------------------- sources of z


def given(latents):
    """Return a source of given z, one tensor per group."""
    return lambda index, group, state, prior: GroupOutput(latents[index], prior)


@FLOWS
@torch.no_grad()
def test_given_latents_reproduce_the_reconstruction(make_model, flows, images):
    model = make_model(**flows)
    encoded = model(images, model.draw_noise(len(images), seeded(), posterior=True))
    latents = [group.z for group in encoded.groups.values()]
    decoded = model.top_down(given(latents), 3)
    assert torch.equal(decoded.px_z.mean(), encoded.px_z.mean())
    latents[1] = latents[1] + 1
    assert not torch.equal(model.top_down(given(latents), 3).px_z.mean(), encoded.px_z.mean())


@pytest.mark.parametrize("kept", range(GROUPS + 1))
@torch.no_grad()
def test_per_group_keeps_the_first_groups_of_an_image(model, images, kept):
    encoded = model(images, model.draw_noise(len(images), seeded(), posterior=True))
    latents = [group.z for group in encoded.groups.values()]
    free = FromNoise(model.draw_noise(3, seeded(1)))
    mixed = model.top_down(PerGroup([given(latents)] * kept + [free] * (GROUPS - kept)), 3)
    for index, group in mixed.groups.items():
        assert torch.equal(group.z, latents[index]) == (index < kept), index
    assert torch.equal(mixed.px_z.mean(), encoded.px_z.mean()) == (kept == GROUPS)


@torch.no_grad()
def test_per_group_mixes_sources_in_any_order(model, images):
    """Posterior at odd groups, prior at even groups: z depends only on the state before the group and on its source."""
    features, noise = model.bottom_up(images), noise_of(model, 3, seeded())
    posterior, prior = FromPosterior(features, noise=noise), FromNoise(noise)
    mixed = model.top_down(PerGroup([prior, posterior, prior, posterior]), 3, return_states=True)
    for index, group in mixed.groups.items():
        assert (group.kl is not None) == (index % 2 == 1)
        before = mixed.states[index]
        source = posterior if index % 2 else prior
        assert torch.equal(group.z, source(index, model.groups[index], before.state, before.prior).z)


@torch.no_grad()
def test_from_noise_at_temperature_zero_is_the_mean_with_the_minimum_sigma(model):
    noise = noise_of(model, 2, seeded())
    for index, group in model.top_down(FromNoise(noise, 0.0), 2).groups.items():
        torch.testing.assert_close(group.z, group.prior.mu + 0.01 * noise[index])


@torch.no_grad()
def test_prior_of_the_top_group_is_standard_normal_up_to_the_minimum_sigma(model):
    noise = model.draw_noise(2)
    top = model.top_down(FromNoise(noise, 0.6), 2).groups[0]
    assert torch.equal(top.prior.mu, torch.zeros(2, 2, 2, 2))
    torch.testing.assert_close(top.z, 0.61 * noise[0])


@torch.no_grad()
def test_temperature_of_a_group_changes_this_group_and_lower_ones(model):
    noise = noise_of(model, 2, seeded())
    plain = model.top_down(FromNoise(noise, 0.7), 2)
    per_group = model.top_down(FromNoise(noise, [0.7] * GROUPS), 2)
    assert torch.equal(plain.px_z.mean(), per_group.px_z.mean())
    changed = model.top_down(FromNoise(noise, [0.7, 0.7, 0.2, 0.7]), 2)
    for index in range(GROUPS):
        assert torch.equal(changed.groups[index].z, plain.groups[index].z) == (index < 2), index


# ------------------------------------------------------------------------------------------------- log densities and KL


@pytest.mark.parametrize("fixed_flows", [False, True])
@torch.no_grad()
def test_log_ratio_averages_to_the_kl(make_model, images, fixed_flows):
    """Given the groups above, the mean of log q(z) - log p(z) over samples is the KL in closed form."""
    model = make_model(num_flows=int(fixed_flows), fixed_flows=fixed_flows)
    draws = 1000
    result = model(images[:1].expand(draws, -1, -1, -1), model.draw_noise(draws, seeded(), posterior=True))
    for index, group in result.groups.items():
        excess = group.log_q - group.log_p - group.kl
        assert excess.mean().abs() < 5 * excess.std() / draws**0.5, index
        assert excess.std() > 0.01
        assert (group.kl > 0).all()
    top = result.groups[0]
    torch.testing.assert_close(top.kl, top.kl[:1].expand(draws), msg="the KL of the top group depends on the noise")


def normal(distribution) -> torch.distributions.Normal:
    return torch.distributions.Normal(distribution.mu, distribution.sigma)


@torch.no_grad()
def test_kl_with_a_flow_on_the_posterior_is_the_log_ratio_of_the_sample(make_model, images):
    """log q is the base density before the flow, which preserves volume; log p is the prior density after the flow."""
    model = make_model(num_flows=1, fixed_flows=False)
    noise = noise_of(model, 3, seeded())
    result = model.top_down(FromPosterior(model.bottom_up(images), noise), 3)
    for index, group in result.groups.items():
        base = group.posterior.base
        base_z = base.mu + base.sigma * noise[index]
        torch.testing.assert_close(group.z, model.groups[index].flow(base_z))
        log_q = normal(base).log_prob(base_z).sum((1, 2, 3))
        log_p = normal(group.prior).log_prob(group.z).sum((1, 2, 3))
        # Tolerances for float32 sums of some hundred terms of both signs.
        torch.testing.assert_close(group.log_q, log_q, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(group.log_p, log_p, rtol=1e-5, atol=1e-3)
        torch.testing.assert_close(group.kl, log_q - log_p, rtol=1e-5, atol=1e-3)
        assert (group.z - base_z).abs().max() > 1e-3
        unflowed = normal(group.prior).log_prob(base_z).sum((1, 2, 3))
        assert (log_p - unflowed).abs().min() > 0.01, (
            "the test cannot tell log p after the flow from log p before the flow"
        )
        torch.testing.assert_close(group.posterior.to_noise(group.z), noise[index], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fixed_flows_are_part_of_the_merge(make_model, images):
    """With fixed flows, z is the sample before the flow, and the merge applies the flow."""
    for fixed in (True, False):
        model = make_model(num_flows=1, fixed_flows=fixed)
        noise = noise_of(model, 2, seeded())
        result = model.top_down(FromNoise(noise), 2, return_states=True)
        for index, output in result.groups.items():
            torch.testing.assert_close(output.z, output.prior.mu + output.prior.sigma * noise[index])
            group, state = model.groups[index], result.states[index].state
            flowed = group.flow(output.z) if fixed else output.z
            merged = group.decoder_combiner(torch.cat([state, flowed], 1))
            torch.testing.assert_close(group.merge(state, output.z), merged)
            assert (group.flow(output.z) - output.z).abs().max() > 1e-3


@torch.no_grad()
def test_kl_of_a_zero_residual_posterior_is_zero(model, images):
    """The posterior head gives residuals: its output is added to the parameters of the prior."""
    for group in model.groups:
        group.posterior_head.parametrizations.weight.original0.zero_()
        group.posterior_head.bias.zero_()
    assert torch.equal(model(images, model.draw_noise(3, posterior=True)).kl, torch.zeros(3, GROUPS))


# ------------------------------------------------------------------------------------- batches, seeds, precision


@torch.no_grad()
def test_eval_mode_results_do_not_depend_on_the_batch(model, images):
    noise = noise_of(model, 3, seeded())
    whole = model.top_down(FromPosterior(model.bottom_up(images), noise=noise), 3)
    alone = model.top_down(FromPosterior(model.bottom_up(images[1:2]), noise=[n[1:2] for n in noise]), 1)
    torch.testing.assert_close(alone.kl, whole.kl[1:2], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(alone.px_z.mean(), whole.px_z.mean()[1:2], rtol=1e-5, atol=1e-5)


def test_passes_leave_the_global_random_state_unchanged(model, images):
    before = torch.get_rng_state()
    with torch.no_grad():
        model(images, model.draw_noise(len(images), seeded(), posterior=True)).px_z.sample(seeded())
        model.top_down(FromNoise(model.draw_noise(2, seeded()), 1.0), 2)
    assert torch.equal(torch.get_rng_state(), before)


def test_image_depends_on_the_noise_of_every_group(model):
    noise = [n.requires_grad_() for n in noise_of(model, 2, seeded())]
    model.top_down(FromNoise(noise), 2).px_z.mean().square().sum().backward()
    for n in noise:
        assert (n.grad != 0).all()


def test_kl_of_a_group_depends_on_the_noise_of_higher_groups_only(model, images):
    features = model.bottom_up(images)
    for below in range(1, GROUPS):
        noise = [n.requires_grad_() for n in noise_of(model, 3, seeded())]
        result = model.top_down(FromPosterior(features, noise=noise), 3)
        gradients = torch.autograd.grad(result.groups[below].kl.sum(), noise, retain_graph=True, materialize_grads=True)
        for index, gradient in enumerate(gradients):
            assert (gradient != 0).any() == (index < below)


@torch.no_grad()
def test_autocast_densities_are_float32(model, images):
    exact = model(images, model.draw_noise(len(images), seeded(), posterior=True))
    with torch.autocast("cpu", torch.bfloat16):
        rough = model(images, model.draw_noise(len(images), seeded(), posterior=True))
    assert rough.kl.dtype == rough.px_z.log_prob(images).dtype == torch.float32
    assert rough.groups[0].z.dtype == torch.float32
    torch.testing.assert_close(rough.kl, exact.kl, rtol=0.1, atol=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"num_flows": 1}, NVLABS, {"spectral_normalization": True}, NVLABS | {"spectral_normalization": True}],
    ids=["mgp123", "nvlabs", "mgp123 spectral", "nvlabs spectral"],
)
@pytest.mark.parametrize("autocast", [False, True])
def test_recompute_activations_changes_no_number(make_model, images, autocast, changes):
    results = []
    for recompute in (False, True):
        model = make_model(**changes).train()
        model.recompute_activations(recompute)
        assert {m.recompute for m in model.modules() if isinstance(m, CellStack)} == {recompute}
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            result = model(images, model.draw_noise(len(images), seeded(), posterior=True))
        loss = result.kl.sum() - result.px_z.log_prob(images).sum()
        loss.backward()
        results.append([loss.detach(), *(p.grad for p in model.parameters()), *model.buffers()])
    for recomputed, expected in zip(*results, strict=True):
        assert torch.equal(recomputed, expected)


def test_draw_noise_draws_group_by_group_from_the_top(model):
    generator = seeded(11)
    for noise, shape in zip(model.draw_noise(2, seeded(11)), model.noise_shapes, strict=True):
        assert torch.equal(noise, torch.randn(2, *shape, generator=generator))
