"""Compare VDVAEs with recordings of the original program on random weights (tests/data/README.md)."""

from __future__ import annotations

import math

import pytest
import torch

from nvae.data.images import Data
from nvae.interop.key_mapping import load_with_key_map
from nvae.interop.vdvae import config_of_settings, key_map
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise, FromPosterior, PerGroup
from nvae.models.vdvae.likelihoods import PublishedLogisticMixture
from nvae.training.trainer import Trainer

TOLERANCE = 1e-5  # of each tensor's largest value
STEP_TOLERANCE = 1e-4
GRADIENT_TOLERANCE = 4e-4  # recorded in float32, up to 3.5e-4 away from float64; ours are within 4e-5


@pytest.fixture(scope="module", params=["a", "b"])
def recorded(request, recording, root):
    """The recording of a network; of b, tests/data has a part, and the folder of all recordings the rest."""
    content, folder = recording(f"vdvae_{request.param}"), root.parent / "shared" / "reference" / "vdvae"
    if request.param == "b" and folder.is_dir():
        parts = {"sample_t1": "sample_t1", "sample_t08": "sample_t08", "manual": "manual", "train": "train"}
        more = {key: torch.load(folder / f"vdvae_b_{part}.pt", weights_only=True) for key, part in parts.items()}
        for key in ("sample_t1", "sample_t08", "manual"):
            more[key]["dmol_params"] = more[key]["dmol_params"][:, ::8, ::8]
        moments = torch.load(folder / "vdvae_b_train_moments.pt", weights_only=True)
        more["train"]["gradients"] = moments["grads_step1_before_clip"]
        more["train"] |= {"state_dict": more["train"]["state_dict_after_3"]}
        more["train"] |= {"ema": more["train"]["ema_state_dict_after_3"]}
        return content | more
    return content


def part_of(recorded, key):
    if key not in recorded:
        pytest.skip(f"the folder of all recordings is absent: {key}")
    return recorded[key]


@pytest.fixture(scope="module")
def model(recorded):
    config = config_of_settings(recorded["hps"], "the recording")
    return load_with_key_map(config, recorded["state_dict"], key_map, "the recording")


@pytest.fixture
def a(recording):
    return recording("vdvae_a")


def images_of(recorded):
    return recorded["x"].permute(0, 3, 1, 2) / 255


def assert_close(ours, theirs, tolerance=TOLERANCE):
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1e-3)


def assert_groups(output, latents):
    for group, theirs in zip(output.groups.values(), latents, strict=True):
        ours = {"z": group.z, "p_mean": group.prior.mu, "p_logsigma": group.prior.sigma.log()}
        if group.posterior is not None:
            ours |= {"q_mean": group.posterior.mu, "q_logsigma": group.posterior.sigma.log(), "kl_sum": group.kl}
        for key in ours.keys() & theirs.keys():
            assert_close(ours[key], theirs[key])


def assert_parameters(output, theirs):
    """The recording has every eighth row and column."""
    assert_close(output.parameters.permute(0, 2, 3, 1)[:, ::8, ::8], theirs)


def test_number_of_parameters(model, recorded):
    assert sum(parameter.numel() for parameter in model.parameters()) == recorded["n_params"]


def test_initial_weights_are_those_of_the_program(a):
    config = config_of_settings(a["hps"], "the recording")
    schedule = config.training_parameters.model_copy(update={"seed": a["init_seed"]})
    fresh = build_model(config.model_copy(update={"training_parameters": schedule}))
    for name, theirs in key_map(fresh).items():
        assert torch.equal(fresh.state_dict()[name], a["init_state_dict"][theirs]), name


@torch.no_grad()
def test_evaluation(model, recorded):
    images, expected = images_of(recorded), recorded["eval"]
    output = model(images, expected["noise"])
    assert_groups(output, expected["latents"])
    assert_parameters(output, expected["dmol_params"])
    distortion = -output.px_z.log_prob(images).flatten(1).sum(1)
    assert_close(distortion, expected["distortion_nats"])
    assert_close(output.kl.sum(1), expected["rate_nats"])
    bits = model.likelihood.bits_per_dimension(distortion + output.kl.sum(1), images[0].numel())
    assert_close(bits, expected["bits_per_dim"])
    assert model.likelihood.is_normalized


@torch.no_grad()
@pytest.mark.parametrize("temperature", ["t1", "t08", "tlist"])
def test_samples(model, recorded, temperature):
    expected = part_of(recorded, f"sample_{temperature}")
    t = 1.0 if expected["t"] is None else expected["t"]
    output = model.top_down(FromNoise(expected["noise"], t), len(expected["noise"][0]))
    assert_groups(output, expected["latents"])
    assert_parameters(output, expected["dmol_params"])
    for index, theirs in enumerate(expected["latents"]):
        if "p_logsigma_after_t" in theirs:
            log_t = math.log(t if isinstance(t, float) else t[index])
            assert_close(output.groups[index].prior.sigma.log() + log_t, theirs["p_logsigma_after_t"])


@torch.no_grad()
def test_pixels_of_a_sample(model, recorded, monkeypatch):
    expected = part_of(recorded, "sample_t08")
    px_z = model.top_down(FromNoise(expected["noise"], expected["t"]), 2).px_z
    assert_close(px_z.mean().permute(0, 2, 3, 1), (expected["mean_image"] + 1) / 2)
    uniforms = iter([expected["u_mixture"], expected["u_logistic"]])
    monkeypatch.setattr(
        "nvae.models.likelihoods.standard_uniform", lambda like, generator: next(uniforms).permute(0, 3, 1, 2)
    )
    drawn = (px_z.sample() * 255).round().permute(0, 2, 3, 1)
    differs = drawn != expected["sample_image"]
    assert differs.float().mean() < 1e-3, "rounding down, where a value lies at the border of two"
    assert ((drawn - expected["sample_image"]).abs() <= 1).all()


@torch.no_grad()
def test_first_groups_from_an_image_and_the_rest_at_a_low_temperature(model, recorded):
    expected = part_of(recorded, "manual")
    given, rest = expected["given"], expected["noise_rest"]
    posterior = FromPosterior(model.bottom_up(images_of(recorded)), recorded["eval"]["noise"])
    prior = FromNoise([rest[0]] * given + rest, expected["t"])
    sources = [posterior if index < given else prior for index in range(len(model.groups))]
    assert_parameters(model.top_down(PerGroup(sources), 2), expected["dmol_params"])


TRAINING_KEYS = {
    "lr": "learning_rate",
    "wd": "weight_decay",
    "warmup_iters": "learning_rate_warmup_steps",
    "ema_rate": "ema_decay",
    "grad_clip": "gradient_clipping",
    "skip_threshold": "gradient_skip_threshold",
}


def test_three_steps_of_training(recorded, monkeypatch):
    expected, images_u8 = part_of(recorded, "train"), recorded["x"].permute(0, 3, 1, 2)
    config = config_of_settings(expected["hps"], "the recording")
    changes = {ours: expected["hps"][theirs] for theirs, ours in TRAINING_KEYS.items()}
    schedule = config.training_parameters.model_copy(update=changes)
    assert schedule.optimizer_betas == (expected["hps"]["adam_beta1"], expected["hps"]["adam_beta2"])
    config = config.model_copy(update={"training_parameters": schedule})
    trainer = Trainer(config, Data(images_u8, images_u8), torch.device("cpu"))
    names = key_map(trainer.model)
    for network in (trainer.model, trainer.ema.model):
        network.load_state_dict({name: recorded["state_dict"][theirs] for name, theirs in names.items()})
    noise = iter(expected["noise_per_step"])
    monkeypatch.setattr(trainer.model, "draw_noise", lambda *args, **keys: next(noise))
    for step, theirs in enumerate(expected["steps"]):
        metrics = trainer.step(images_u8)
        assert metrics["loss"].item() == pytest.approx(theirs["loss"], rel=1e-5)
        assert metrics["gradient_norm"].item() == pytest.approx(theirs["grad_norm_before_clip"], rel=1e-4)
        assert metrics["learning_rate"] == pytest.approx(theirs["lr_used"])
        assert not metrics["skipped"]
        if step == 0:
            scale = expected["hps"]["grad_clip"] / theirs["grad_norm_before_clip"]
            for name, parameter in trainer.model.named_parameters():
                assert_close(parameter.grad / scale, expected["gradients"][names[name]], GRADIENT_TOLERANCE)
    for weights, theirs in (
        (trainer.model.state_dict(), expected["state_dict"]),
        (trainer.ema.model.state_dict(), expected["ema"]),
    ):
        for name in names:
            assert_close(weights[name], theirs[names[name]], STEP_TOLERANCE)


# ---------------------------------------------------------------------------------------------------- the likelihood


@pytest.fixture(params=[8, 5])
def mixture(request, recording):
    """The recording of a likelihood, its bits, its images on [0, 1] and the output of the network."""
    expected = recording("vdvae_likelihood")[f"bits{request.param}"]
    images = (expected["x"].permute(0, 3, 1, 2) + 1) / 2  # of value v: v * 2^(8 - bits) / 255
    values = images * 255 / 2 ** (8 - request.param)  # with 5 bits, the recording also has the value 31.875: white
    return expected, request.param, values / (2**request.param - 1), expected["params"].permute(0, 3, 1, 2)


def test_likelihood_and_its_gradient(mixture, make_config):
    expected, bits, images, output = mixture
    config = make_config(
        family="vdvae", enc_blocks="8x1", dec_blocks="8x1", pixel_bits=bits, n_mix=expected["num_mixtures"],
        sampling_method="coupled_logistic_mixture", likelihood_tails="original",
    )  # fmt: skip
    likelihood = PublishedLogisticMixture.likelihood(config)
    output = output.clone().requires_grad_()
    nats = -likelihood(output).log_prob(images).flatten(1).sum(1)
    assert_close(nats / images[0].numel(), expected["nll_per_dim"])
    (gradient,) = torch.autograd.grad((nats / images[0].numel()).sum(), output)
    assert_close(gradient, expected["grad_of_sum"].permute(0, 3, 1, 2), STEP_TOLERANCE)
    assert likelihood.is_normalized == (bits == 8)


def test_draws_of_the_likelihood(mixture, make_config, monkeypatch):
    expected, bits, images, output = mixture
    config = make_config(
        family="vdvae", enc_blocks="8x1", dec_blocks="8x1", pixel_bits=bits, n_mix=expected["num_mixtures"],
        sampling_method="coupled_logistic_mixture", likelihood_tails="original",
    )  # fmt: skip
    uniforms = iter([expected["u_mixture"], expected["u_logistic"]])
    monkeypatch.setattr(
        "nvae.models.likelihoods.standard_uniform", lambda like, generator: next(uniforms).permute(0, 3, 1, 2)
    )
    brightest = (2**bits - 1) * 2 ** (8 - bits) / 255  # of the program; here it is 1
    drawn = PublishedLogisticMixture.likelihood(config)(output).sample() * brightest
    theirs = (expected["sample"].permute(0, 3, 1, 2) + 1) / 2
    assert ((drawn - theirs).abs() < 1.001 / 255).all(), "rounded down to 8 bits"
    assert (drawn <= theirs + 1e-6).all()


@pytest.mark.parametrize("bits", [5, 8])
def test_means_and_samples_are_on_the_scale_of_the_images(make_config, generator, bits):
    """A distribution that is sure of white, which is the brightest value, gives white."""
    config = make_config(
        family="vdvae", enc_blocks="8x1", dec_blocks="8x1", pixel_bits=bits, n_mix=1,
        sampling_method="coupled_logistic_mixture", likelihood_tails="original",
    )  # fmt: skip
    brightest = 2 * (2**bits - 1) * 2 ** (8 - bits) / 255 - 1  # on the program's scale
    output = torch.tensor([0.0] + 3 * [brightest, -7, 0])[None, :, None, None].expand(1, -1, 8, 8)
    px_z = PublishedLogisticMixture.likelihood(config)(output)
    white = torch.ones(1, 3, 8, 8)
    for images in (px_z.mean(), px_z.most_likely(), px_z.sample(generator)):
        assert_close(images, white, 1.5 / 255)
    assert (px_z.log_prob(white) > 3 * math.log(0.9)).all()
