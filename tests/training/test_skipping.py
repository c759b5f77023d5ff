import math
from contextlib import nullcontext

import pytest
import torch

from nvae.system.errors import DivergenceError
from nvae.training import recovery
from nvae.training.recovery import MAX_EXCESS_SKIPS
from nvae.training.resuming import resume_training, save_training

from .helpers import NVLABS, advance, differences, everything, gradient_norm

COUNTERS = {
    ".progress.step",
    ".progress.image",
    ".progress.images_seen",
    ".progress.skipped_steps",
    ".recovery.excess_skips",
}
MODELS = [{}, NVLABS | {"spectral_normalization": True}]


def spoil_activations(trainer):
    """NaN in the forward pass of one step, before batch norms and power iterations; return how to stop that."""

    def spoil(module, inputs):
        return tuple(x * math.nan for x in inputs)

    norms = [module for module in trainer.model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    return norms[0].register_forward_pre_hook(spoil)


def spoil_gradient(trainer):
    """An infinite gradient of one parameter, while the loss stays finite."""
    return trainer.model.constant.register_hook(lambda gradient: gradient * math.inf)


@pytest.mark.parametrize("model", MODELS, ids=["mgp123", "spectral"])
@pytest.mark.parametrize("spoil", [spoil_activations, spoil_gradient])
def test_step_not_finite_changes_only_the_progress(make_trainer, model, spoil):
    trainer = make_trainer(model)
    advance(trainer, 1)
    before = everything(trainer)
    handle = spoil(trainer)
    (metrics,) = advance(trainer, 1)
    assert metrics["skipped"]
    assert math.isfinite(metrics["loss"]) == (spoil is spoil_gradient)
    assert differences(before, everything(trainer)) == COUNTERS
    assert (trainer.position.skipped_steps, trainer.recovery.excess_skips) == (1, 1)
    handle.remove()
    assert [m["skipped"] for m in advance(trainer, 1)] == [False]
    assert (trainer.position.skipped_steps, trainer.recovery.excess_skips) == (1, 0)
    assert all(math.isfinite(value) for value in trainer.running_mean.means["kl_per_group"].tolist())


def test_step_with_a_buffer_not_finite_is_skipped(make_trainer):
    """A variance can overflow where the normalized activations, the loss and the gradient stay finite."""
    trainer = make_trainer()
    norm = next(m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d))

    def overflow(module, inputs, output):
        module.running_var.data.fill_(math.inf)

    handle = norm.register_forward_hook(overflow)
    (metrics,) = advance(trainer, 1)
    assert metrics["skipped"]
    assert math.isfinite(metrics["loss"])
    assert norm.running_var.isfinite().all()
    handle.remove()


@pytest.mark.parametrize("clipping", [None, 1e-3])
def test_step_above_the_threshold_is_skipped(make_trainer, clipping):
    plain = make_trainer()
    advance(plain, 1)
    norm = gradient_norm(plain)
    above = make_trainer(gradient_skip_threshold=0.99 * norm, gradient_clipping=clipping)
    before = everything(above)
    assert advance(above, 1)[0]["skipped"]
    assert differences(before, everything(above)) == COUNTERS
    below = make_trainer(gradient_skip_threshold=1.01 * norm)
    assert not advance(below, 1)[0]["skipped"]
    assert not differences(everything(below), everything(plain))


@pytest.mark.slow
def test_step_refuses_100_skips_in_a_row(make_trainer):
    trainer = make_trainer(gradient_skip_threshold=1e-9, epochs=200)
    weights = {name: tensor.clone() for name, tensor in trainer.model.state_dict().items()}
    advance(trainer, MAX_EXCESS_SKIPS - 1)
    with pytest.raises(DivergenceError, match="gradient_skip_threshold") as error:
        advance(trainer, 1)
    assert error.value.exit_code == 3
    assert all(torch.equal(weights[name], tensor) for name, tensor in trainer.model.state_dict().items())


@pytest.mark.slow
@pytest.mark.parametrize(("skips", "allowed"), [(1, True), (2, False)])
def test_step_refuses_more_skipped_than_accepted_steps(make_trainer, monkeypatch, skips, allowed):
    monkeypatch.setattr(recovery, "MAX_EXCESS_SKIPS", 3)
    trainer = make_trainer(epochs=200)
    with nullcontext() if allowed else pytest.raises(DivergenceError):
        for _ in range(6):
            handle = spoil_gradient(trainer)
            advance(trainer, skips)
            handle.remove()
            advance(trainer, 1)
    assert trainer.position.skipped_steps == (6 if allowed else 4)  # 1, 2, 1, 2, 3 more skipped than accepted
    assert trainer.recovery.excess_skips == (0 if allowed else 3)


@pytest.mark.slow
def test_resume_keeps_the_skip_counters(make_trainer, tmp_path):
    trainer = make_trainer(gradient_skip_threshold=1e-9)
    advance(trainer, 2)
    save_training(trainer, tmp_path / "a.checkpoint")
    again = make_trainer(gradient_skip_threshold=1e-9)
    resume_training(again, tmp_path / "a.checkpoint")
    assert (again.position.skipped_steps, again.recovery.excess_skips) == (2, 2)


@pytest.mark.slow
def test_resume_with_another_schedule_counts_skips_from_zero(make_trainer, tmp_path):
    trainer = make_trainer(gradient_skip_threshold=1e-9)
    advance(trainer, 2)
    save_training(trainer, tmp_path / "a.checkpoint")
    again = make_trainer()
    resume_training(again, tmp_path / "a.checkpoint")
    assert (again.position.skipped_steps, again.recovery.excess_skips) == (2, 0)


def test_loss_scale_search_skips_until_the_gradient_is_finite(make_trainer):
    """With a scale that overflows float32, the scaler halves the scale at every skipped step."""
    trainer = make_trainer(epochs=200)
    trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127, growth_interval=10**6)
    before = everything(trainer)
    metrics = advance(trainer, 1)
    assert metrics[0]["skipped"]
    assert differences(before, everything(trainer)) == COUNTERS | {".scaler.scale"}
    while metrics[-1]["skipped"]:
        metrics += advance(trainer, 1)
    skips = len(metrics) - 1
    assert trainer.scaler.get_scale() == 2.0 ** (127 - skips)
    assert trainer.position.skipped_steps == skips > 1
    assert trainer.recovery.excess_skips == skips - 1
