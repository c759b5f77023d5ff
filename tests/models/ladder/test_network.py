"""The Ladder VAE against recordings of the published program (tests/data/README.md), number for number."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.config import config_from_dict, load_config
from nvae.errors import UserError
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior
from nvae.models.ladder.config import LadderConfig
from nvae.models.ladder.likelihoods import ClampedBernoulli, build_ladder_likelihood
from nvae.models.ladder.network import Block, LadderVAE
from nvae.objective import elbo_terms

RECORDINGS = ["ladder_bernoulli", "ladder_widths", "ladder_norms"]
TOLERANCE = 1e-5  # of each tensor's largest value


def config_of(recorded: dict) -> LadderConfig:
    """Return our config for the recorded settings."""
    return config_from_dict(
        {
            "family": "ladder",
            "input_dimension": recorded["image_size"][1],
            "image_channels": recorded["image_size"][0],
            "sampling_method": recorded["likelihood"],
            "latents_per_scale": recorded["latent_scales"],
            "latent_size": recorded["latent_width"][0],
            "channels": recorded["num_ch"],
            "scale_multiplier": float(recorded["scale_ch_mult"]),
            "hidden_multiplier": float(recorded["block_ch_mult"]),
            "encoder": recorded["encoder"],
            "num_init_blocks": recorded["num_init_blocks"],
            "encoder_blocks_per_scale": recorded["encoder_blocks_per_scale"],
            "decoder_blocks_per_latent": recorded["decoder_blocks_per_latent"],
            "num_postprocess_blocks": recorded["num_postprocess_blocks"],
            "activation": recorded["activation"],
            "batch_norm": recorded["batch_norm"],
            "weight_norm": recorded["weight_norm"],
            "first_scale_at_image_size": recorded["start_scale_at_x"],
            "min_log_variance": float(recorded["min_logvar"]),
        },
        "the recording",
    )


def block_names(ours: str, theirs: str, block: Block, preactivation: bool) -> dict[str, str]:
    """Map our names of the modules of a block to the original's names."""
    names = {f"{ours}.skip": f"{theirs}.skip"}
    convolutions = norms = 0
    has_norm = any(isinstance(m, torch.nn.BatchNorm2d) for m in block.body)
    for index, module in enumerate(block.body):
        place = None
        if isinstance(module, torch.nn.Conv2d):
            if preactivation:
                place = f"net.{convolutions}.net.{2 if has_norm else 1}"
            else:
                place = f"net.{convolutions + has_norm}" + (".net.0" if convolutions < 3 else "")
            convolutions += 1
        elif isinstance(module, torch.nn.BatchNorm2d):
            if preactivation:
                place = f"net.{norms}.net.0"
            else:
                place = "net.0" if norms == 0 else f"net.{norms}.net.1" if norms < 4 else "net.5"
            norms += 1
        if place is not None:
            names[f"{ours}.body.{index}"] = f"{theirs}.{place}"
    return names


def module_names(model: LadderVAE) -> dict[str, str]:
    """Map our names of the modules with weights to the original's names."""
    names = {"encoder.stem.0": "encoder.pre_process.0", "output.projection": "decoder.z_to_features"}
    for i, block in enumerate(model.encoder.stem[1:], 1):
        names |= block_names(f"encoder.stem.{i}", f"encoder.pre_process.{i}", block, True)
    for k, stage in enumerate(model.encoder.stages):
        for b, block in enumerate(stage):
            names |= block_names(f"encoder.stages.{k}.{b}", f"encoder.encoder_blocks.{k}.{b}", block, True)
    for g, group in enumerate(model.groups):
        theirs = f"decoder.decoder_blocks.{g}"
        names[f"groups.{g}.z_projection"] = f"{theirs}.z_up"
        names |= block_names(f"groups.{g}.prior_block", f"{theirs}.s_to_p", group.prior_block, False)
        names |= block_names(f"groups.{g}.posterior_block", f"{theirs}.s_to_q", group.posterior_block, False)
        for b, block in enumerate(group.blocks):
            names |= block_names(f"groups.{g}.blocks.{b}", f"{theirs}.resnet.{b}", block, False)
    for i, block in enumerate(model.output.blocks):
        names |= block_names(f"output.blocks.{i}", f"decoder.post_process.{i}", block, False)
    return names | {"output.head": f"decoder.post_process.{len(model.output.blocks)}"}


TENSORS = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}


def tensor_names(model: LadderVAE) -> dict[str, str]:
    """Map our names of the tensors to the original's names."""
    names = {}
    for module, theirs in module_names(model).items():
        for name in names_inside(model, module):
            names[f"{module}.{name}"] = f"{theirs}.{TENSORS.get(name, name)}"
    return names


def names_inside(model: LadderVAE, module: str) -> list[str]:
    return list(model.get_submodule(module).state_dict())


def load_recorded(model: LadderVAE, state: dict[str, torch.Tensor]) -> None:
    names = tensor_names(model)
    assert set(names.values()) == {name for name in state if not name.endswith(".beta")}
    model.load_state_dict({ours: state[theirs] for ours, theirs in names.items()})


@pytest.fixture(scope="module", params=RECORDINGS)
def recorded(request, recording):
    return recording(request.param)


@pytest.fixture
def model(recorded):
    model = build_model(config_of(recorded["config"])).eval()
    load_recorded(model, recorded["state_dict"])
    return model


def images_of(recorded: dict) -> torch.Tensor:
    return (recorded["x"] + 1) / 2


def targets_of(recorded: dict) -> torch.Tensor:
    """Return the binary images of the likelihood; the encoder sees gray images."""
    target = recorded["x_target"]
    return (target + 1) / 2 if target.min() < 0 else target


def assert_close(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float = TOLERANCE) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-3), (ours - theirs).abs().max()


def assert_groups(output, expected: dict, keys: list[str]) -> None:
    for index, group in output.groups.items():
        values = {"z": group.z, "p_mu": group.prior.mu, "p_logvar": 2 * group.prior.sigma.log()}
        if group.posterior is not None:
            values |= {"q_mu": group.posterior.mu, "q_logvar": 2 * group.posterior.sigma.log()}
        for key in keys:
            assert_close(values[key], expected[key][index])


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
        assert terms.kl.sum(1).mean().item() == pytest.approx(step["kl"], rel=1e-5)
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
    output = model(images, model.draw_posterior_noise(3, torch.Generator().manual_seed(1)))
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
