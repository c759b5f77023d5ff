import math

import pytest
import torch

from nvae.config import available_configs, load_config
from nvae.data.images import Data, to_float
from nvae.data.registry import evaluation_images, load_data
from nvae.interop import vdvae
from nvae.models.nvae.config import groups_finest_first
from nvae.models.nvae.convolutions import weight_matrix
from nvae.models.nvae.regularization import BatchNormRegularization, SpectralRegularization, regularized_convolutions
from nvae.objective import balanced_kl, elbo_terms
from nvae.system.errors import UserError
from nvae.system.seeds import seeded
from nvae.training.trainer import Trainer

from .helpers import NVLABS, TOY_FACES, advance, differences, everything, gradient_norm


def terms_of_step(trainer, images, step):
    """The terms of the ELBO in a training step, with the noise of that step."""
    noise = trainer.model.draw_noise(len(images), seeded(0, "training noise", step), posterior=True)
    return elbo_terms(trainer.model.train()(images, noise), images)


# ---------------------------------------------------------------------------------------------------- position, order


def test_step_nvlabs_style_moves_every_parameter(make_trainer):
    trainer = make_trainer(NVLABS | {"number_of_scales": 2})
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    advance(trainer, 1)
    assert [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])] == []


def test_trainer_another_seed_changes_weights_and_order(make_trainer):
    one, other = make_trainer(), make_trainer(seed=1)
    assert not torch.equal(one.order(), other.order())
    assert not torch.equal(one.model.constant, other.model.constant)


def test_order_is_another_permutation_every_epoch(make_trainer):
    trainer, orders = make_trainer(), []
    for _ in range(3):
        orders.append(trainer.order())
        assert sum(1 for batch in trainer.batches() if trainer.step(batch)) == trainer.position.steps_per_epoch
    assert trainer.position.epoch == 3
    assert all(sorted(order.tolist()) == list(range(14)) for order in orders)
    assert len({tuple(order.tolist()) for order in orders}) == 3


def test_progress_counts_epochs_steps_and_images(make_trainer):
    trainer = make_trainer()
    assert trainer.position.steps_per_epoch == 3
    advance(trainer, 4)
    progress = trainer.position
    assert (progress.epoch, progress.image, progress.step, progress.images_seen) == (1, 4, 4, 16)
    assert trainer.position.in_epochs == pytest.approx(4 / 3)


@pytest.mark.parametrize("limit", ["1", "1e-9"])  # GiB: images at hand, and images that are read ahead in threads
def test_batches_are_those_of_the_rest_of_the_epoch(make_trainer, monkeypatch, limit):
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", limit)
    trainer = make_trainer()
    images, order = trainer.data.training, trainer.order()
    for image, starts in ((0, (0, 4, 8)), (4, (4, 8)), (8, (8,))):
        trainer.position.image = image
        batches = list(trainer.batches())
        assert len(batches) == len(starts)
        assert all(torch.equal(b, images[order[i : i + 4]]) for b, i in zip(batches, starts, strict=True))
    trainer.step(next(trainer.batches()))
    assert (trainer.position.epoch, trainer.position.image) == (1, 0)


def test_steps_are_the_same_with_batches_read_ahead(make_trainer, monkeypatch):
    kept, streamed = make_trainer(), make_trainer()
    for trainer in (kept, streamed):
        advance(trainer, 2)
        assert sum(1 for _ in range(2) for batch in trainer.batches() if trainer.step(batch)) == 4
        monkeypatch.setenv("NVAE_MEMORY_LIMIT", "1e-9")
    assert not differences(everything(kept), everything(streamed))


def test_batch_size_is_at_most_the_data_set(make_trainer):
    trainer = make_trainer(batch_size=100)
    assert (trainer.position.batch_size, trainer.position.steps_per_epoch) == (14, 1)


def test_trainer_refuses_one_value_per_channel(make_config, data):
    config = make_config(input_dimension=4, training_parameters={"batch_size": 1})
    with pytest.raises(UserError, match="batch_size"):
        Trainer(config, data, torch.device("cpu"))


# --------------------------------------------------------------------------------------------------- loss and gradient


def test_loss_is_the_sum_of_its_terms(make_trainer):
    trainer, twin = make_trainer(kl_constant=0.5), make_trainer(kl_constant=0.5)
    images_u8 = trainer.data.training[:4]
    loss = trainer.step(images_u8)["loss"].item()
    terms = terms_of_step(twin, to_float(images_u8, "cpu"), 0)
    kl = balanced_kl(terms.kl, twin.model.levels, 1e-4)  # the first step of the warm-up
    regularization = twin.regularizers["spectral"]() + BatchNormRegularization(twin.model)()
    expected = (0.5 * kl - terms.log_likelihood).mean().item() + 0.1 * regularization.item()
    assert loss == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("balancing", [True, False])
def test_loss_nvlabs_style_is_the_sum_of_its_terms(make_trainer, balancing):
    """With everything at once: exponent 1, all convolutions, both coefficients between start and end, third step."""
    schedule = {"kl_balancing": balancing, "regularization_constant_initial": 2.0, "warmup_delay_portion": 1 / 18}
    trainer, twin = (make_trainer(NVLABS, **schedule) for _ in range(2))
    schedule = trainer.schedule
    assert (schedule.spectral_exponent, schedule.spectral_scope, schedule.spectral_iterations) == (1, "all", 4)
    for either in (trainer, twin):
        advance(either, 2)
    images_u8 = trainer.data.training[trainer.order()[8:12]]
    metrics = trainer.step(images_u8)

    position = (2 / 3 - 1 / 6) / 2  # in a warm-up of two epochs that begins after a sixth of an epoch
    assert metrics["kl_coefficient"] == twin.rates.kl_coefficient == pytest.approx(position)
    terms = terms_of_step(twin, to_float(images_u8, "cpu"), 2)
    kl = balanced_kl(terms.kl, twin.model.levels, position) if balancing else position * terms.kl.sum(1)
    exact = sum(torch.linalg.svdvals(c.weight.flatten(1))[0] for c in regularized_convolutions(twin.model, "all"))
    spectral = SpectralRegularization(regularized_convolutions(twin.model, "all"), 1, 4)
    spectral.load_state_dict(twin.regularizers["spectral"].state_dict())
    regularization = spectral().item() + BatchNormRegularization(twin.model)().item()
    assert spectral().item() == pytest.approx(exact.item(), rel=0.05)
    expected = (kl - terms.log_likelihood).mean().item() + 2 ** (1 - position) * 0.1**position * regularization
    assert metrics["loss"].item() == pytest.approx(expected, rel=1e-6)
    assert (balanced_kl(terms.kl, twin.model.levels, position) - position * terms.kl.sum(1)).abs().min() > 1e-3


class PowerIteration:
    """Four power iterations per step for the largest singular value of one weight, as in the original NVAE."""

    def __init__(self, right):
        self.right = right.double().flatten()

    def __call__(self, weight):
        matrix = weight_matrix(weight)
        with torch.no_grad():
            for _ in range(4):
                left = torch.nn.functional.normalize(matrix @ self.right, dim=0)
                self.right = torch.nn.functional.normalize(matrix.T @ left, dim=0)
        return left @ matrix @ self.right


def test_three_steps_with_regularization_are_those_of_a_loop_in_float64(make_trainer):
    """One weight at a time, from the same vectors. Lambda is large, so that the regularization decides about the moves.

    Adamax (Kingma and Ba 2015): m and u are the running mean and maximum; the move is m / (1 - 0.9^t) / u.
    """
    schedule = {"regularization_constant": 1.0, "learning_rate_warmup_epochs": 0.0, "weight_decay": 0.0}
    trainer, twin = (make_trainer(NVLABS, **schedule) for _ in range(2))
    for module in trainer.model.modules():  # without two equal largest weights
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5, seeded(0, "gamma", module.num_features))
    twin.model.load_state_dict(trainer.model.state_dict())
    model, start = twin.model.double(), [p.detach().double() for p in trainer.model.parameters()]
    by_shape = {}
    for convolution in regularized_convolutions(model, "all"):
        by_shape.setdefault(weight_matrix(convolution.weight).shape, []).append(convolution)
    spectral = [
        (convolution, PowerIteration(right))
        for vectors, convolutions in zip(trainer.regularizers["spectral"].buffers(), by_shape.values(), strict=True)
        for convolution, right in zip(convolutions, vectors, strict=True)
    ]
    moments = [(torch.zeros_like(p), torch.zeros_like(p)) for p in start]
    for step in range(3):
        batch, rates = next(trainer.batches()), trainer.rates
        images, _ = trainer.inputs_and_targets(batch)
        trainer.step(batch)
        noise = model.draw_noise(len(images), seeded(0, "training noise", step), posterior=True)
        terms = elbo_terms(model.train()(images.double(), [part.double() for part in noise]), images.double())
        loss = (balanced_kl(terms.kl, model.levels, rates.kl_coefficient) - terms.log_likelihood).mean()
        sigmas = sum(iterate(convolution.weight) for convolution, iterate in spectral)
        norms = sum(m.weight.abs().max() for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d))
        gradients = torch.autograd.grad(loss + sigmas + norms, list(model.parameters()))
        with torch.no_grad():
            for p, gradient, (mean, largest) in zip(model.parameters(), gradients, moments, strict=True):
                mean.mul_(0.9).add_(0.1 * gradient)
                largest.copy_(torch.maximum(0.999 * largest, gradient.abs() + 1e-3))
                p.sub_(rates.learning_rate / (1 - 0.9 ** (step + 1)) * mean / largest)
    assert max((p - before).abs().max() for p, before in zip(model.parameters(), start, strict=True)) > 0.025
    for (name, ours), theirs in zip(trainer.model.named_parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=1e-5, msg=name)


def test_loss_without_regularization_constant_has_no_regularization(make_trainer):
    trainer, twin = make_trainer(NVLABS, regularization_constant=0.0), make_trainer(NVLABS)
    images_u8 = trainer.data.training[:4]
    without, regularized = trainer.step(images_u8)["loss"], twin.step(images_u8)["loss"]
    terms = BatchNormRegularization(make_trainer(NVLABS).model)() + make_trainer(NVLABS).regularizers["spectral"]()
    assert (regularized - without).item() == pytest.approx(0.1 * terms.item(), rel=1e-3)


@pytest.mark.parametrize("clipping", [None, 1e-3, 1e6])
def test_gradient_norm_is_measured_before_clipping(make_trainer, clipping):
    trainer, plain = make_trainer(gradient_clipping=clipping), make_trainer()
    (metrics,), (unclipped,) = advance(trainer, 1), advance(plain, 1)
    norm = gradient_norm(plain)
    assert metrics["gradient_norm"].item() == unclipped["gradient_norm"].item() == pytest.approx(norm, rel=1e-6)
    assert gradient_norm(trainer) == pytest.approx(min(norm, clipping or norm), rel=1e-3)


def test_gradient_clipping_follows_unscaling(make_trainer):
    trainer, plain = make_trainer(gradient_clipping=0.5), make_trainer()
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    (metrics,), (unscaled,) = advance(trainer, 1), advance(plain, 1)
    assert metrics["gradient_norm"].item() == pytest.approx(unscaled["gradient_norm"].item(), rel=1e-5)
    assert gradient_norm(trainer) == pytest.approx(0.5, rel=1e-3)


def test_first_step_is_adamax_of_the_paper(make_trainer):
    """Adamax from zero moments: theta - lr * g / (|g| + eps), g with the weight decay (Kingma and Ba 2015)."""
    trainer = make_trainer()
    before = [p.detach().clone() for p in trainer.model.parameters()]
    advance(trainer, 1)
    for old, new in zip(before, trainer.model.parameters(), strict=True):
        if new.grad is not None:
            gradient = new.grad + 3e-4 * old
            torch.testing.assert_close(new, old - 0.01 * gradient / (gradient.abs() + 1e-3), rtol=1e-4, atol=1e-6)


TORCHS = {"adamax": torch.optim.Adamax, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


@pytest.mark.parametrize("name", TORCHS)
def test_steps_equal_torchs_optimizer(make_trainer, name):
    options = {"lr": 0.01, "eps": 1e-4, "betas": (0.8, 0.99), "weight_decay": 0.1}
    keys = {"optimizer_epsilon": 1e-4, "optimizer_betas": [0.8, 0.99], "weight_decay": 0.1}
    trainer, twin = make_trainer(optimizer=name, **keys), make_trainer(optimizer=name, **keys)
    twin.optimizer = TORCHS[name]([{"params": twin.model.parameters(), "rate_factor": 1.0}], **options, foreach=True)
    for either in (trainer, twin):
        advance(either, 3)
    differing = differences(everything(trainer), everything(twin))
    assert all(".param_names." in key for key in differing)
    assert {group["betas"] for group in trainer.optimizer.param_groups} == {(0.8, 0.99)}


def test_learning_rate_follows_the_fraction_of_the_epoch(make_trainer):
    metrics = advance(make_trainer(learning_rate_warmup_epochs=1.0), 3)
    assert [values["learning_rate"] for values in metrics] == pytest.approx([0.01 * 1e-3, 0.01 / 3, 0.02 / 3])


@pytest.mark.slow
@pytest.mark.parametrize("model", [{}, NVLABS, {"spectral_normalization": True}], ids=["mgp123", "nvlabs", "spectral"])
def test_activation_checkpointing_changes_no_number(make_trainer, model):
    plain, recomputing = make_trainer(model), make_trainer(model, use_tensor_checkpoints=True)
    advance(plain, 5)
    advance(recomputing, 5)
    assert not differences(everything(plain), everything(recomputing))


@pytest.mark.slow
def test_training_raises_the_elbo(make_trainer):
    trainer = make_trainer(learning_rate=0.003, epochs=100)
    before = sum(metrics["loss"].item() for metrics in advance(trainer, 10)) / 10
    advance(trainer, 80)
    assert sum(metrics["loss"].item() for metrics in advance(trainer, 10)) / 10 < before - 50


def test_half_precision_has_float32_weights_and_a_similar_loss(make_trainer):
    trainer = make_trainer(half_precision=True)
    half, full = advance(trainer, 2), advance(make_trainer(), 2)
    assert all(p.dtype == torch.float32 for p in trainer.model.parameters())
    assert half[1]["loss"].item() == pytest.approx(full[1]["loss"].item(), rel=0.02)
    assert half[1]["loss"].item() != full[1]["loss"].item()


def test_half_precision_is_float32_on_a_processor_that_is_faster_in_float32(make_trainer, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    half, full = make_trainer(half_precision=True), make_trainer()
    assert half.half is None
    assert advance(half, 1)[0]["loss"].item() == advance(full, 1)[0]["loss"].item()


# ------------------------------------------------------------------------------------------------------------- inputs


def test_inputs_half_are_flipped_and_others_at_every_step(make_trainer):
    trainer = make_trainer({"dataset": TOY_FACES | {"horizontal_flip": True}})
    images_u8 = trainer.data.training[:1].expand(400, -1, -1, -1)
    upright, seen = to_float(images_u8, "cpu"), []
    for step in (0, 0, 1):
        trainer.position.step = step
        images, targets = trainer.inputs_and_targets(images_u8)
        flipped = (images != upright).flatten(1).any(1)
        assert torch.equal(images[flipped], upright[flipped].flip(3))
        assert torch.equal(images, targets)
        assert 150 < flipped.sum() < 250
        seen.append(flipped)
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])
    assert torch.equal(make_trainer().inputs_and_targets(images_u8)[0], upright)


@pytest.mark.parametrize(
    "keys",
    [
        {"horizontal_flip": True},
        {"random_crop": 3},
        {"dequantize": True},
        {"sharpness": 2.0, "color_jitter": [0.3, 0.3, 0.1, 0.1]},
    ],
)
def test_augmentation_is_of_training_images_alone(make_config, keys):
    faces = {"name": "toy_faces", "training_images": 3, "validation_images": 5}
    plain, flipping = make_config(dataset=faces), make_config(dataset=faces | keys)
    data, same = load_data(plain), load_data(flipping)
    for part in ("training", "validation"):
        expected = evaluation_images(data, part, plain)
        assert all(map(torch.equal, evaluation_images(same, part, flipping), expected))


def test_inputs_binarized_average_to_the_gray_image(make_trainer):
    trainer = make_trainer({"dataset": TOY_FACES | {"binarize": True}, "sampling_method": "bernoulli"})
    images_u8 = trainer.data.training[:4]
    gray, total = to_float(images_u8, "cpu"), 0
    for step in range(200):
        trainer.position.step = step
        images, _ = trainer.inputs_and_targets(images_u8)
        assert set(images.unique().tolist()) == {0, 1}
        total = total + images
    error = (gray * (1 - gray) / 200).sqrt()
    assert ((total / 200 - gray).abs() <= 5 * error).all()


def test_inputs_gray_are_the_probabilities_of_the_binary_targets(make_trainer):
    """The targets are those of a binary input, and gray input and binary target are flipped together."""
    keys = {"binarize": True, "horizontal_flip": True}
    gray = make_trainer({"dataset": TOY_FACES | keys | {"encoder_input": "gray"}, "sampling_method": "bernoulli"})
    binary = make_trainer({"dataset": TOY_FACES | keys, "sampling_method": "bernoulli"})
    images_u8 = gray.data.training[:1].clone().expand(100, -1, -1, -1).contiguous()
    images_u8[..., :2], images_u8[..., -2:] = 0, 255
    (images, targets), (same, expected) = gray.inputs_and_targets(images_u8), binary.inputs_and_targets(images_u8)
    assert torch.equal(targets, expected) and torch.equal(same, expected)
    original = to_float(images_u8, "cpu")
    flipped = images[:, 0, 0, 0] == 1
    assert 20 < flipped.sum() < 80
    assert torch.equal(images, torch.where(flipped[:, None, None, None], original.flip(-1), original))
    assert torch.equal(images[..., :2], targets[..., :2])
    assert not torch.equal(images, targets)


def test_step_with_gray_input_has_the_likelihood_of_the_binary_targets(make_trainer):
    keys = {"dataset": TOY_FACES | {"binarize": True, "encoder_input": "gray"}, "sampling_method": "bernoulli"}
    trainer, twin = make_trainer(keys), make_trainer(keys)
    images_u8 = trainer.data.training[:4]
    metrics = trainer.step(images_u8)
    images, targets = twin.inputs_and_targets(images_u8)
    noise = twin.model.draw_noise(4, seeded(0, "training noise", 0), posterior=True)
    terms = elbo_terms(twin.model.train()(images, noise), targets)
    assert metrics["log_likelihood"].item() == pytest.approx(terms.log_likelihood.mean().item(), rel=1e-6)
    torch.testing.assert_close(metrics["kl_per_group"], terms.kl.detach().mean(0))


def test_inputs_are_flipped_before_binarizing(make_trainer):
    binarized = {"dataset": TOY_FACES | {"binarize": True, "horizontal_flip": True}, "sampling_method": "bernoulli"}
    left = torch.zeros(100, 3, 8, 8, dtype=torch.uint8)
    left[..., :4] = 255
    images, _ = make_trainer(binarized).inputs_and_targets(left)
    white_left, white_right = images[..., :4].flatten(1).mean(1), images[..., 4:].flatten(1).mean(1)
    assert torch.equal(white_left, 1 - white_right)
    assert 20 < white_right.sum() < 80


def test_inputs_of_three_bits_have_eight_values(make_trainer):
    images_u8 = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images, _ = make_trainer(NVLABS | {"pixel_bits": 3}).inputs_and_targets(images_u8)
    torch.testing.assert_close(images.flatten(), (torch.arange(256) // 32) / 7)


# ------------------------------------------------------------------------------------------------------ every config


def assert_takes_a_step(config):
    generator = torch.Generator().manual_seed(0)
    side, channels = config.input_dimension, config.image_channels
    images_u8 = torch.randint(0, 256, (2, channels, side, side), dtype=torch.uint8, generator=generator)
    trainer = Trainer(config, Data(images_u8, images_u8), torch.device("cpu"))
    before = [parameter.detach().clone() for parameter in trainer.model.groups[-1].parameters()]
    for _ in range(3):  # the first steps of a warm-up from 0 may change nothing
        metrics = trainer.step(images_u8)
        assert not metrics["skipped"]
        assert math.isfinite(metrics["loss"])
    after = list(trainer.model.groups[-1].parameters())
    assert all(parameter.isfinite().all() for parameter in after)
    assert any(not torch.equal(*pair) for pair in zip(before, after, strict=True))


PUBLISHED = sorted(name for name in available_configs() if name.startswith("nvae_"))
PUBLISHED_VDVAE = sorted(vdvae.PUBLISHED.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(available_configs()) - {*PUBLISHED, *PUBLISHED_VDVAE}))
def test_step_of_every_config(name):
    assert_takes_a_step(
        load_config(name, ["training_parameters.batch_size=2", "training_parameters.half_precision=False"])
    )


@pytest.mark.parametrize("name", PUBLISHED)
def test_step_of_every_published_config_made_small(name):
    """All but its size as in the file: four channels, as few groups as possible, images of at most 64 pixels."""
    overrides = ["channel_towers=4", "initial_splits_per_scale=1", "min_splits=1", "plain_vae=False"]
    if load_config(name).input_dimension > 64:
        overrides.append("input_dimension=64")
    overrides += ["training_parameters.batch_size=2", "training_parameters.half_precision=False"]
    config = load_config(name, overrides)
    assert set(groups_finest_first(config)) == {1}
    assert_takes_a_step(config)


@pytest.mark.parametrize("name", PUBLISHED_VDVAE)
def test_step_of_every_published_vdvae_made_small(name):
    """All but its size as in the file: four channels, few blocks, images of 16 pixels."""
    overrides = ["width=4", "input_dimension=16", "custom_width=auto", "enc_blocks=auto", "dec_blocks=auto"]
    assert_takes_a_step(load_config(name, [*overrides, "training_parameters.batch_size=2"]))


def test_beta_changes_the_step_and_not_its_metrics(make_trainer):
    plain, weighted = make_trainer(), make_trainer(beta_nll=1.0)
    batch = next(plain.batches())
    first, second = plain.step(batch), weighted.step(batch)
    for key in ("loss", "log_likelihood", "kl_per_group"):
        torch.testing.assert_close(first[key], second[key])
    assert abs(first["gradient_norm"] - second["gradient_norm"]) > 1e-3 * first["gradient_norm"]
    assert any(
        not torch.equal(a, b) for a, b in zip(plain.model.parameters(), weighted.model.parameters(), strict=True)
    )
