"""The DVP-VAE against recordings of the published program (tests/data/README.md), number for number."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import load_config
from nvae.evaluation.likelihood import groups_above_bounds, importance_draw
from nvae.models.dvp.context import DCTContext
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.objective import elbo_terms
from nvae.optim import build_optimizer
from nvae.schema import TrainingParameters
from nvae.training.ema import EMA

from ..ladder_recordings import assert_close, config_of, images_of, load_recorded, targets_of, tensor_names

RECORDINGS = ["dvp_bernoulli", "dvp_logistic_mixture", "dvp_downsample"]


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request, recording):
    return recording(request.param)


@pytest.fixture
def model(recorded):
    model = build_model(config_of(recorded["config"])).eval()
    load_recorded(model, recorded["state_dict"])
    return model


def posterior_noise(u: torch.Tensor, start: torch.Tensor, diffusion: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """Return the noise (B, M) of a context. u, start: (B, C, k, k). diffusion: (S, B, C, k, k). t: (S, B).

    The times of our bound are stratified: t_i = (i + Phi(noise)) / S.
    """
    terms = len(t)
    times = torch.special.ndtri(t.double() * terms - torch.arange(terms)[:, None]).float().clamp(-30, 30)
    return torch.cat([u.flatten(1), start.flatten(1), diffusion.movedim(1, 0).flatten(1), times.T], dim=1)


def right_ends(steps: int, batch: int) -> torch.Tensor:
    """Return the times of the published evaluation, (T, B)."""
    return (torch.arange(1, steps + 1, dtype=torch.float64) / steps)[:, None].expand(-1, batch)


def evaluation_noise(expected: dict, select=lambda x: x) -> torch.Tensor:
    diffusion = select(expected["noise_diffusion"])
    times = right_ends(len(diffusion), diffusion.shape[1])
    return posterior_noise(select(expected["noise_u"]), select(expected["noise_z0"]), diffusion, times)


def parameters_of(model, output, expected: dict) -> tuple[torch.Tensor, torch.Tensor]:
    """Return our and the recorded parameters of p(x | z), for a comparison."""
    if "probs" in expected:
        return output.px_z.mean(), expected["probs"]
    return output.parameters, torch.cat([part.flatten(1) for part in expected.values()], 1).view_as(output.parameters)


def test_dct_scale_matches_recording(recorded, model):
    context = model.groups[0].context
    if not isinstance(context, DCTContext):
        pytest.skip("this recording has no DCT")
    expected = context.scale.clone()
    context.scale.zero_()
    model.calibrate(recorded["dct_scale_images"])
    assert torch.equal(context.scale, expected.where(expected > 0, torch.ones(())))


@torch.no_grad()
def test_posterior_pass_matches_recording(recorded, model):
    expected, images = recorded["eval"], images_of(recorded)
    noise = [evaluation_noise(expected), *expected["noise"]]
    output = model.top_down(FromPosterior(model.bottom_up(images), noise), len(images))
    context = output.groups[0]
    assert_close(context.posterior.mu, expected["f_x"])
    assert_close(context.z, expected["u"])
    assert_close(2 * context.posterior.sigma.log(), expected["q_u_logvar"].expand_as(context.z))
    assert_close(model.groups[0].context.inverse(context.z), expected["pseudo_input"])
    drawn = context.prior.prior.split_noise(noise[0])
    losses = context.prior.prior.losses(context.z, drawn, uniform_times=False)
    assert_close(context.prior.prior.noisy_start(drawn), expected["L_0"])
    assert_close(losses.start, expected["L_0_expected"])
    assert_close(losses.diffusion, expected["L_t"])
    assert (losses.end - expected["L_T"]).abs().max() <= 1e-5
    assert_close(context.log_q, expected["log_q_u"])
    assert_close(context.log_p, losses.log_prob)  # the noise of the times puts them at the right ends
    assert_close(context.log_q - context.prior.prior.published_log_prob(context.z, noise[0]), expected["kl_u"])
    for index, group in list(output.groups.items())[1:]:
        values = {"z": group.z, "p_mu": group.prior.mu, "p_logvar": 2 * group.prior.sigma.log()}
        values |= {"q_mu": group.posterior.mu, "q_logvar": 2 * group.posterior.sigma.log()}
        for key, value in values.items():
            assert_close(value, expected[key][index - 1])
    assert_close(output.kl[:, 1:], expected["kl"])
    terms = elbo_terms(output, targets_of(recorded))
    assert_close(terms.log_likelihood, expected["log_px"])
    ratios = sum(group.log_p - group.log_q for group in output.groups.values())
    assert_close(terms.log_likelihood + ratios, expected["log_weight_expected_L_0"])


def image_by_image(noise: torch.Tensor) -> torch.Tensor:
    """Reorder noise (K, B, ...) to (B K, ...), as the evaluation takes the samples of an image."""
    return noise.transpose(0, 1).flatten(0, 1)


@torch.no_grad()
def test_importance_weights_match_recording(recorded, model):
    expected, images = recorded["iw"], images_of(recorded)
    context = torch.stack([evaluation_noise(expected, lambda x, k=k: x[k]) for k in range(expected["K"])])
    noise = [image_by_image(part) for part in (context, *expected["noise"])]
    features, targets = model.bottom_up(images), targets_of(recorded)
    for estimator, weights in (("importance_weighted", "log_weight_expected_L_0"), ("analytic_kl", "log_weight_paper")):
        draw = importance_draw(model, features, targets, noise, estimator)
        assert_close(draw.log_weight.float().T, expected[weights])


@torch.no_grad()
def test_nested_importance_weights_match_recording(recorded, model):
    """K samples of the ladder below one context; the KL of the context is outside of the logarithm."""
    expected, images = recorded["iw_nested"], images_of(recorded)
    above, features = recorded["eval"], model.bottom_up(images)
    first = [evaluation_noise(above), *above["noise"]]
    output = model.top_down(FromPosterior(features, first), len(images), return_states=True)
    assert groups_above_bounds(model) == 1
    placeholder = first[0].repeat_interleave(expected["K"], 0)  # the pass starts below the context
    noise = [placeholder, *map(image_by_image, expected["noise"])]
    draw = importance_draw(model, features, targets_of(recorded), noise, start=output.states[1])
    log_ratio_u = output.groups[0].log_p - output.groups[0].log_q
    assert_close(draw.log_weight.float().T, expected["log_weight"])
    log_mean = draw.log_weight.logsumexp(1) - math.log(expected["K"])
    assert_close(-(log_mean + log_ratio_u).float(), expected["nll"])


@torch.no_grad()
def test_samples_match_recording_at_each_temperature(recorded, model):
    for expected in recorded["sample"]:
        context_noise = torch.stack([expected["noise_z1"], *expected["noise_steps"]], dim=1)
        noise = [context_noise, *expected["noise"]]
        temperatures = [1.0] + [expected["temperature"]] * (len(noise) - 1)
        output = model.top_down(FromNoise(noise, temperatures), len(context_noise))
        assert_close(output.groups[0].z, expected["u"])
        assert_close(model.groups[0].context.inverse(output.groups[0].z), expected["pseudo_input"])
        for index, group in list(output.groups.items())[1:]:
            values = {"z": group.z, "p_mu": group.prior.mu, "p_logvar": 2 * group.prior.sigma.log()}
            for key, value in values.items():
                assert_close(value, expected[key][index - 1])
        if "probs" in expected["likelihood"]:
            assert_close(output.px_z.mean(), expected["likelihood"]["probs"])


def test_gradients_and_three_adamax_steps_with_ema_match_recording(recorded, model):
    """The published loss is in bits per dimension; clipping is on that scale.

    Adamax divides by the size of the gradient. Gradients below 1e-6 are as small as the rounding of float32 in other
    terms, which differs between processors, so the step of such an element is known to a tenth only.
    """
    expected, images = recorded["train"], images_of(recorded)
    settings = expected["optimizer"]
    second_name = ("decoder.decoder_blocks.0.ctx_prior", "decoder.z_L_prior")  # of the diffusion prior in the original
    names = {ours: theirs.replace(*second_name) for ours, theirs in tensor_names(model).items()}
    model.train()
    average = EMA(model, settings["ema_rate"])
    keys = {"learning_rate": "lr", "optimizer_epsilon": "eps", "weight_decay": "weight_decay"}
    schedule = TrainingParameters(**{key: settings[name] for key, name in keys.items()})
    optimizer = build_optimizer(model, schedule)
    unused = {ours for ours, theirs in names.items() if theirs in expected["no_gradient"]}
    smallest = {name: torch.full_like(parameter, math.inf) for name, parameter in model.named_parameters()}
    for number, step in enumerate(expected["steps"]):
        context_noise = posterior_noise(step["noise_u"], step["noise_z0"], step["noise_t"][None], step["t"][None])
        output = model(images, [context_noise, *step["noise"]])
        terms = elbo_terms(output, targets_of(step if "x_target" in step else recorded))
        context = model.groups[0].top_prior
        drawn = context.split_noise(context_noise)
        losses = context.losses(output.groups[0].z, drawn)
        noisy = context.noisy_start(drawn)
        for ours, theirs in ((noisy, "L_0"), (losses.diffusion, "L_t")):
            assert_close(ours.detach(), step[theirs])
        assert (losses.end.detach() - step["L_T"]).abs().max() < 1e-5
        kl = terms.kl.sum(1) - losses.start + noisy
        assert -terms.log_likelihood.mean().item() == pytest.approx(step["reconstruction"], rel=1e-5)
        assert kl.mean().item() == pytest.approx(step["kl"], rel=1e-5)
        loss = -terms.elbo.mean() / (math.log(2) * images[0].numel())
        optimizer.zero_grad()
        loss.backward()
        if number == 0:
            norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
            assert norms.keys() == dict(model.named_parameters()).keys() - unused
            largest = max(expected["grad_norms"].values())
            for name, norm in norms.items():
                assert abs(norm - expected["grad_norms"][names[name]]) < 1e-4 * largest, name
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-4)
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                smallest[name] = torch.minimum(smallest[name], parameter.grad.abs())
        optimizer.step()
        average.update()
    for ours, theirs in ((model, "parameters_after"), (average.model, "ema_after")):
        for name, parameter in ours.named_parameters():
            if names[name] not in expected["rounding_driven"]:
                recorded_tensor = expected[theirs][names[name]].reshape(parameter.shape)
                bounds = torch.where(smallest[name] < 1e-6, 0.1 * settings["lr"], 3e-5)
                assert ((parameter.detach() - recorded_tensor).abs() <= bounds).all(), name


@pytest.mark.parametrize(
    ("name", "parameters", "levels"),
    [
        ("dvp_mnist", 648_579, [(1, 7), (4, 7), (4, 14)]),
        ("dvp_mnist_evening", 607_330, [(1, 4), (4, 7), (4, 14)]),
        ("dvp_omniglot", 1_298_563, [(1, 5), (4, 7), (4, 14)]),
        ("dvp_cifar10", 19_478_162, [(1, 7), (4, 4), (6, 8), (8, 16), (10, 32)]),
    ],
)
def test_dvp_config_has_its_parameter_count_and_levels(name, parameters, levels):
    with torch.device("meta"):
        model = build_model(load_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert [(level.groups, level.resolution) for level in model.levels] == levels
