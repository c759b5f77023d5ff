"""The first epochs of a DVP-VAE, which train the prior of its context alone."""

from __future__ import annotations

import json
import math

import pytest
import torch

from nvae.config import config_from_dict
from nvae.config.errors import ConfigError
from nvae.training.resuming import calibrate, resume_training, save_training
from nvae.training.validation import record_validation

from .helpers import DVP, LADDER, advance, differences, everything

EXACT = DVP | {"unet_dropout": 0.0}


@pytest.fixture
def make(make_trainer):
    """A function: a trainer of a calibrated DVP-VAE, of three steps per epoch."""

    def make(model=EXACT, **changes):
        trainer = make_trainer(model, **{"regularization_constant": 0.0, "warmup_epochs": 0.0} | changes)
        calibrate(trainer)
        return trainer

    return make


@pytest.mark.parametrize("loss_scale", ["nats", "bits_per_dimension"])
def test_pretraining_loss_is_the_kl_of_the_context_at_the_weight_1(make, loss_scale):
    keys = {"warmup_epochs": 2.0, "kl_constant": 0.5, "loss_scale": loss_scale}
    whole, first = make(**keys), make(pretrain_prior_epochs=1, **keys)
    batch = next(first.batches())
    (expected,), (got,) = ([trainer.step(batch)] for trainer in (whole, first))
    unit = 1 if loss_scale == "nats" else math.log(2) * 3 * 8 * 8
    assert got["loss"].item() == pytest.approx(expected["kl_per_group"][0].item() / unit, rel=1e-5)
    assert "log_likelihood" not in got and "kl_per_group" not in got


@pytest.mark.parametrize("optimizer", ["adamax", "adamw", "muon"])
def test_pretraining_moves_the_context_alone(make, optimizer):
    trainer = make(pretrain_prior_epochs=1, optimizer=optimizer, weight_decay=0.1, ema_decay=0.5)
    trainer.model.encoder.forward = None  # is not called
    before = {name: parameter.detach().clone() for name, parameter in trainer.model.named_parameters()}
    advance(trainer, 3)
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    with_gradient = {name for name, parameter in trainer.model.named_parameters() if parameter.grad is not None}
    context = {name for name in before if name.startswith("groups.0.")}
    assert moved <= with_gradient <= context
    assert "groups.0.log_variance" in moved and any(name.startswith("groups.0.top_prior.") for name in moved)


@pytest.mark.parametrize("top_prior", ["diffusion", "vampprior"])
def test_linear_context_learns_after_the_pretraining_only(make, top_prior):
    trainer = make(
        EXACT | {"context": "linear", "top_prior": top_prior, "prior_components": 3}, pretrain_prior_epochs=1
    )
    context = trainer.model.groups[0].context
    before = context.linear.weight.detach().clone()
    advance(trainer, 3)
    assert torch.equal(context.linear.weight, before)
    advance(trainer, 1)
    assert not torch.equal(context.linear.weight, before)


def test_pretraining_ends_with_its_last_epoch_and_forgets_its_losses(make):
    trainer = make(pretrain_prior_epochs=1)
    advance(trainer, 2)
    assert trainer.is_pretraining and len(trainer.recovery.losses) == 2
    advance(trainer, 1)
    assert not trainer.is_pretraining and trainer.recovery.losses == []
    (metrics,) = advance(trainer, 1)
    assert len(metrics["kl_per_group"]) == 3
    assert any(name.startswith("encoder.") and p.grad is not None for name, p in trainer.model.named_parameters())


def test_pretraining_in_parts_has_the_gradient_of_the_whole_batch(make):
    gradients = []
    for parts in (1, 2):
        trainer = make(pretrain_prior_epochs=1, gradient_accumulation=parts)
        advance(trainer, 1)
        gradients.append({name: p.grad for name, p in trainer.model.named_parameters() if p.grad is not None})
    torch.testing.assert_close(*gradients)


def test_pretraining_in_half_precision_has_a_similar_loss(make):
    half, full = (advance(make(pretrain_prior_epochs=1, half_precision=half), 3)[-1]["loss"] for half in (True, False))
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.05)


@pytest.mark.parametrize("interrupted_after", [2, 3, 4])  # in the pre-training, at its end, after it
def test_resume_of_a_pretraining_equals_an_uninterrupted_run_bit_for_bit(make, tmp_path, interrupted_after):
    whole, first, second = (make(DVP, pretrain_prior_epochs=1, ema_decay=0.5) for _ in range(3))
    advance(whole, 6)
    advance(first, interrupted_after)
    save_training(first, tmp_path / "a.checkpoint")
    assert resume_training(second, tmp_path / "a.checkpoint") == []
    advance(second, 6 - interrupted_after)
    assert not differences(everything(whole), everything(second))


@pytest.mark.parametrize("family", [{}, LADDER])
def test_pretraining_is_refused_for_a_family_without_a_context(make_config, family):
    keys = make_config(**family).model_dump()
    keys["training_parameters"]["pretrain_prior_epochs"] = 1
    with pytest.raises(ConfigError) as caught:
        config_from_dict(keys, "a config")
    assert (caught.value.kind, caught.value.key) == ("unknown_key", "training_parameters.pretrain_prior_epochs")


@pytest.mark.slow
def test_train_with_a_pretraining_records_a_bound_after_it(run, tmp_path):
    keys = {"pretrain_prior_epochs": 1, "epochs": 3, "epochs_per_checkpoint": 1, "warmup_epochs": 0.0}
    run(DVP, **keys, regularization_constant=0.0)
    lines = [json.loads(line) for line in next(tmp_path.rglob("metrics.jsonl")).read_text().splitlines()]
    assert [("loss" in line, "elbo" in line) for line in lines] == [(True, False), (True, True), (True, True)]
    assert all("validation_elbo" in line for line in lines)


@pytest.mark.slow
def test_train_warns_of_no_divergence_where_no_step_trained_the_groups(run):
    keys = {"pretrain_prior_epochs": 2, "epochs": 2, "epochs_per_checkpoint": 1, "warmup_epochs": 0.0}
    model = DVP | {"pixel_bits": 1, "sampling_method": "coupled_logistic_mixture", "context_size": 8}
    _, events = run(model, **keys, regularization_constant=0.0)
    assert not [event.text for event in events if event.kind == "warning"]


def test_validations_of_the_pretraining_are_compared_with_no_others(make):
    trainer = make(pretrain_prior_epochs=1, early_stopping_patience=1)
    for epoch, elbo in ((1, -1.0), (2, -9.0)):
        trainer.position.epoch = epoch
        record_validation(trainer, elbo, [])
    assert [validation.elbo for validation in trainer.history.validations] == [-9.0]
    assert trainer.best_weights.best.validation.elbo == -9.0 and not trainer.stopped_early
