"""The Ladder VAE against recordings of the published program (tests/data/README.md), number for number."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_from_dict, load_config
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.models.ladder.likelihoods import ClampedBernoulli, build_ladder_likelihood
from nvae.objective import elbo_terms
from nvae.system.errors import UserError

from ..ladder_recordings import (
    assert_close,
    assert_groups,
    config_of,
    images_of,
    load_recorded,
    targets_of,
    tensor_names,
)

RECORDINGS = ["ladder_bernoulli", "ladder_widths", "ladder_norms"]


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request, recording):
    return recording(request.param)


@pytest.fixture
def model(recorded):
    model = build_model(config_of(recorded["config"])).eval()
    load_recorded(model, recorded["state_dict"])
    return model


@torch.no_grad()
def test_ladder_posterior_pass_matches_recording(recorded, model):
    expected, images = recorded["eval"], images_of(recorded)
    features = model.bottom_up(images)
    output = model.top_down(FromPosterior(features, expected["noise"]), len(images))
    for feature in expected["encoder_features"]:
        assert any(ours.shape == feature.shape and torch.allclose(ours, feature, atol=1e-4) for ours in features)
    assert_groups(output, expected, ["z", "q_mu", "q_logvar", "p_mu", "p_logvar"])
    assert_close(output.kl, expected["kl"])
    for ours, theirs in (("log_q", "log_q_z"), ("log_p", "log_p_z")):
        assert_close(torch.stack([getattr(group, ours) for group in output.groups.values()], 1), expected[theirs])
    assert_close(output.px_z.mean(), expected["likelihood"]["probs"])
    terms = elbo_terms(output, targets_of(recorded))
    assert_close(terms.log_likelihood, expected["log_px"])
    assert_close(terms.elbo, expected["elbo_nats"])
    dimensions = images[0].numel()
    assert_close(model.likelihood.bits_per_dimension(-terms.elbo, dimensions), expected["bits_per_dim"])
    weights = terms.log_likelihood + sum(group.log_p - group.log_q for group in output.groups.values())
    assert_close(weights, expected["log_weight"])


@torch.no_grad()
def test_ladder_importance_weights_match_recording(recorded, model):
    expected, images = recorded["iw"], images_of(recorded)
    features, weights = model.bottom_up(images), []
    for k in range(expected["K"]):
        output = model.top_down(FromPosterior(features, [noise[k] for noise in expected["noise"]]), len(images))
        log_ratio = sum(group.log_p - group.log_q for group in output.groups.values())
        weights.append(elbo_terms(output, targets_of(recorded)).log_likelihood + log_ratio)
    weights = torch.stack(weights)
    assert_close(weights, expected["log_weight"])
    assert_close(math.log(expected["K"]) - weights.logsumexp(0), expected["nll"])


@torch.no_grad()
def test_ladder_samples_match_recording_at_each_temperature(recorded, model):
    for expected in recorded["sample"]:
        source = FromNoise(expected["noise"], expected["temperature"])
        output = model.top_down(source, len(expected["noise"][0]))
        assert_groups(output, expected, ["z", "p_mu", "p_logvar"])
        assert_close(output.px_z.mean(), expected["likelihood"]["probs"])


def test_ladder_gradients_and_three_adamax_steps_match_recording(recorded, model):
    """The published loss is in bits per dimension; clipping is on that scale."""
    expected, images = recorded["train"], images_of(recorded)
    settings, names = expected["optimizer"], tensor_names(model)
    model.train()
    optimizer = torch.optim.Adamax(
        model.parameters(), settings["lr"], settings["betas"], settings["eps"], settings["weight_decay"]
    )
    unused = {ours for ours, theirs in names.items() if theirs in expected["no_gradient"]}
    for number, step in enumerate(expected["steps"]):
        terms = elbo_terms(model(images, step["noise"]), targets_of(step))
        loss = -terms.elbo.mean() / (math.log(2) * images[0].numel())
        assert loss.item() == pytest.approx(step["loss_bits_per_dim"], rel=1e-5)
        assert -terms.log_likelihood.mean().item() == pytest.approx(step["reconstruction"], rel=1e-5)
        assert terms.kl.sum(1).mean().item() == pytest.approx(step["kl"], rel=5e-5)  # a sum of small differences
        optimizer.zero_grad()
        loss.backward()
        if number == 0:
            for theirs, buffer in expected.get("buffers_after_first_forward", {}).items():
                ours = next(name for name, other in names.items() if other == theirs)
                assert_close(model.get_buffer(ours).float(), buffer.float())
            norms = {name: p.grad.norm() for name, p in model.named_parameters() if p.grad is not None}
            assert norms.keys() == dict(model.named_parameters()).keys() - unused
            largest = max(expected["grad_norms"].values())
            for name, norm in norms.items():
                assert abs(norm - expected["grad_norms"][names[name]]) < 1e-4 * largest, name
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["grad_clip"])
        assert norm.item() == pytest.approx(step["grad_norm"], rel=1e-4)
        optimizer.step()
    for name, parameter in model.named_parameters():
        if names[name] not in expected["rounding_driven"]:
            torch.testing.assert_close(
                parameter.detach(), expected["parameters_after"][names[name]], rtol=0, atol=3e-5, msg=name
            )


@pytest.mark.parametrize(("name", "parameters"), [("ladder_mnist", 600_673), ("ladder_omniglot", 1_058_425)])
def test_ladder_config_has_the_published_parameter_count(name, parameters):
    with torch.device("meta"):
        model = build_model(load_config(name))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert [(level.groups, level.resolution) for level in model.levels] == [(4, 7), (4, 14)]


SMALL = {
    "family": "ladder",
    "input_dimension": 8,
    "latents_per_scale": [1, 2],
    "latent_size": 2,
    "channels": 4,
    "encoder_blocks_per_scale": 1,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"encoder": "plain", "first_scale_at_image_size": True},
        {"latents_per_scale": [0, 2], "scale_multiplier": 1.5},
        {"batch_norm": True, "weight_norm": True, "num_init_blocks": 1, "num_postprocess_blocks": 1},
        {"sampling_method": "coupled_logistic_mixture", "n_mix": 2},
        {"sampling_method": "bernoulli", "image_channels": 1},
        {"sampling_method": "logistic_mixture"},
    ],
    ids=str,
)
def test_ladder_of_any_settings_trains_and_restarts_at_a_group(changes):
    config = config_from_dict(SMALL | changes, "the test")
    model = build_model(config)
    images = torch.rand(3, config.image_channels, 8, 8, generator=torch.Generator().manual_seed(0)).round()
    output = model(images, model.draw_noise(3, torch.Generator().manual_seed(1), posterior=True))
    (-elbo_terms(output, images).elbo.mean()).backward()
    unused = {f"groups.{len(model.groups) - 1}.z_projection.{name}" for name in ("weight", "bias")}
    assert {name for name, p in model.named_parameters() if p.grad is None} == unused
    model.eval()
    with torch.no_grad():
        noise = model.draw_noise(1, torch.Generator().manual_seed(2))
        whole = model.top_down(FromNoise(noise, 0.7), 1, return_states=True)
        for k, state in whole.states.items():
            repeated = FromNoise([n.expand(2, -1, -1, -1) for n in noise], 0.7)
            rest = model.top_down(repeated, start=state.repeated(2))
            torch.testing.assert_close(rest.px_z.mean()[1:], whole.px_z.mean(), msg=str(k))


@torch.no_grad()
def test_ladder_prior_and_posterior_start_as_linear_maps():
    model = build_model(config_from_dict(SMALL | {"num_postprocess_blocks": 1}, "the test"))
    x = torch.randn(2, 4, 2, 2)
    for block in (model.groups[0].prior_block, model.groups[0].posterior_block, model.output.blocks[0]):
        assert torch.equal(block(x), block.skip(x))


@torch.no_grad()
def test_ladder_mixture_probabilities_sum_to_one(generator):
    """Sum over all values of red, with fixed green and blue."""
    likelihood = build_ladder_likelihood(
        config_from_dict(
            SMALL | {"sampling_method": "coupled_logistic_mixture", "n_mix": 3, "pixel_bits": 2}, "the test"
        )
    )
    output = torch.randn(1, likelihood.num_parameters, 1, 1, generator=generator, dtype=torch.float64)
    values = torch.cartesian_prod(*3 * [torch.arange(4, dtype=torch.float64) / 3])[:, :, None, None]
    total = likelihood(output.expand(64, -1, -1, -1)).log_prob(values).exp().sum()
    assert total.item() == pytest.approx(1, abs=1e-7)


def test_ladder_bernoulli_probabilities_are_clamped():
    px_z = ClampedBernoulli(torch.tensor([[[[-100.0, 100.0]]]]))
    assert px_z.mean().flatten().tolist() == pytest.approx([1e-7, 1 - 1e-7])
    assert px_z.log_prob(torch.tensor([[[[1.0, 1.0]]]])).flatten().tolist() == pytest.approx(
        [math.log(1e-7), 0], abs=1e-6
    )


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"latents_per_scale": [2, 0]}, "latents_per_scale"),
        ({"latents_per_scale": [0, 0]}, "latents_per_scale"),
        ({"input_dimension": 10}, "input_dimension"),
        ({"hidden_multiplier": 0.1}, "hidden_multiplier"),
        ({"channel_towers": 4}, "channel_towers"),
    ],
)
def test_ladder_config_refuses(changes, key):
    with pytest.raises(UserError) as error:
        config_from_dict(SMALL | changes, "the test")
    assert error.value.key == key
