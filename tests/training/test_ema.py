import math
import re
from types import SimpleNamespace

import pytest
import torch

from nvae.checkpoint import CheckpointError, load, load_model
from nvae.models.families import clone
from nvae.system.torch_files import write_whole
from nvae.training.ema import EMA
from nvae.training.resuming import calibrate, resume_training, save_training
from nvae.training.validation import validate

from .helpers import LADDER, NVLABS, advance, differences, everything

DECAY = 0.75


def copied(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same_weights(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.checkpoint"


def test_ema_averages_parameters_and_copies_buffers(make_trainer):
    trainer = make_trainer(ema_decay=DECAY)
    expected = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    for _ in range(4):  # across the end of an epoch
        advance(trainer, 1)
        for name, parameter in trainer.model.named_parameters():
            expected[name] = DECAY * expected[name] + (1 - DECAY) * parameter.detach()
    for name, parameter in trainer.eval_model.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    buffers = dict(trainer.model.named_buffers())
    assert any(name.endswith("running_var") for name in buffers)
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in trainer.eval_model.named_buffers())
    assert not any(parameter.requires_grad for parameter in trainer.eval_model.parameters())
    assert not trainer.eval_model.training


def mean_statistics(model, passes):
    """Return the mean over passes of the statistics of a pass alone, by the name of the buffer."""
    sums = {}
    for images, noise in passes:
        for norm in model.modules():
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.train()
                norm.momentum = 1.0
        with torch.no_grad():
            model(images, noise)
        for name, buffer in model.named_buffers():
            if "running" in name:
                sums[name] = sums.get(name, 0) + buffer.double() / len(passes)
    return sums


def test_statistics_of_averaged_weights_are_the_means_over_passes(make_trainer):
    trainer = make_trainer(NVLABS, ema_decay=DECAY)
    advance(trainer, 3)
    before, random = everything(trainer), torch.get_rng_state()
    passes = list(trainer._statistics_passes(trainer.eval_model))
    assert len(passes) == trainer.position.steps_per_epoch, "so few images are used once each"
    expected = mean_statistics(clone(trainer.eval_model), passes)
    trainer.estimate_statistics()
    changed = differences(before, everything(trainer))
    assert changed and all(re.fullmatch(r"\.eval_weights\..*\.(running_|num_batches).*", name) for name in changed)
    buffers = dict(trainer.eval_model.named_buffers())
    for name, mean in expected.items():
        torch.testing.assert_close(buffers[name].double(), mean, rtol=1e-4, atol=1e-6)
    assert not any(module.training for module in trainer.eval_model.modules())
    momenta = ([getattr(m, "momentum", None) for m in model.modules()] for model in (trainer.model, trainer.eval_model))
    assert next(momenta) == next(momenta)
    assert torch.equal(random, torch.get_rng_state())
    again = everything(trainer)
    trainer.estimate_statistics()
    changed = differences(again, everything(trainer))
    assert all("num_batches" in name for name in changed), "the draws differ"


@pytest.mark.slow
def test_validation_with_averaged_statistics_changes_no_step(make_trainer, path):
    """Nor does an interruption right after it; the checkpoint has the statistics that were validated."""
    output = SimpleNamespace(reporter=SimpleNamespace(warn=lambda *arguments, **options: None))
    whole, plain, second = (make_trainer(NVLABS, ema_decay=DECAY) for _ in range(3))
    advance(whole, 3)
    advance(plain, 5)
    elbo = validate(whole, output)["validation_elbo"]
    save_training(whole, path)
    assert resume_training(second, path) == []
    for model in (load_model(path), second.eval_model):
        assert same_weights(copied(model), copied(whole.eval_model))
    advance(whole, 2)
    advance(second, 2)
    assert not differences(everything(whole), everything(second))
    assert not {name for name in differences(everything(plain), everything(whole)) if "history" not in name}
    assert math.isfinite(elbo)


def test_ema_without_batch_norms_needs_no_statistics(make_trainer):
    for trainer in (make_trainer(LADDER, ema_decay=DECAY), make_trainer(NVLABS)):
        advance(trainer, 1)
        before = everything(trainer)
        trainer.estimate_statistics()
        assert not differences(before, everything(trainer))


def test_ema_of_decay_zero_is_the_model(make_trainer):
    trainer = make_trainer(ema_decay=0.0)
    advance(trainer, 2)
    assert same_weights(copied(trainer.model), copied(trainer.eval_model))


def test_ema_changes_no_step(make_trainer):
    plain, averaged = make_trainer(), make_trainer(ema_decay=DECAY)
    advance(plain, 4)
    advance(averaged, 4)
    assert same_weights(copied(plain.model), copied(averaged.model))
    assert plain.eval_model is plain.model


def test_ema_ignores_skipped_steps(make_trainer):
    trainer = make_trainer(ema_decay=DECAY, gradient_skip_threshold=1e-9)
    before = copied(trainer.eval_model)
    assert advance(trainer, 1)[0]["skipped"]
    assert same_weights(before, copied(trainer.eval_model))


def test_ema_leaves_the_global_random_state(make_trainer):
    model, state = make_trainer().model, torch.get_rng_state()
    EMA(model, DECAY)
    assert torch.equal(state, torch.get_rng_state())


def test_calibrate_reaches_the_ema(make_trainer, monkeypatch):
    trainer = make_trainer(ema_decay=DECAY)
    seen = []

    def fill(images_u8):
        seen.append(images_u8)
        for buffer in trainer.model.buffers():
            buffer.fill_(3)

    monkeypatch.setattr(trainer.model, "calibrate", fill)
    calibrate(trainer)
    assert seen[0] is trainer.data.training
    assert all((buffer == 3).all() for buffer in trainer.eval_model.buffers())


def test_checkpoint_holds_the_ema_as_weights_and_the_model_beside(make_trainer, path):
    trainer = make_trainer(ema_decay=DECAY)
    advance(trainer, 2)
    save_training(trainer, path)
    content = load(path)
    assert same_weights(content["weights"], copied(trainer.eval_model))
    assert same_weights(content["training"]["model"], copied(trainer.model))
    assert same_weights(copied(load_model(path)), copied(trainer.eval_model))
    assert not same_weights(content["weights"], content["training"]["model"])
    plain = make_trainer()
    save_training(plain, path)
    assert "model" not in load(path)["training"]


def test_resume_with_an_ema_equals_an_uninterrupted_run_bit_for_bit(make_trainer, path):
    whole, first, second = (make_trainer(ema_decay=DECAY) for _ in range(3))
    advance(whole, 5)
    advance(first, 2)
    save_training(first, path)
    resume_training(second, path)
    advance(second, 3)
    assert not differences(everything(whole), everything(second))


@pytest.mark.slow
def test_resume_with_the_ema_turned_on_starts_from_the_weights(make_trainer, path):
    plain, averaged = make_trainer(), make_trainer(ema_decay=DECAY)
    advance(plain, 2)
    save_training(plain, path)
    resume_training(averaged, path)
    assert same_weights(copied(averaged.model), copied(plain.model))
    assert same_weights(copied(averaged.eval_model), copied(plain.model))
    before = copied(plain.model)["constant"]
    advance(averaged, 1)
    expected = DECAY * before + (1 - DECAY) * averaged.model.constant.detach()
    torch.testing.assert_close(averaged.eval_model.constant, expected)


@pytest.mark.slow
def test_resume_with_the_ema_turned_off_continues_the_weights_of_the_optimizer(make_trainer, path):
    averaged, plain, whole = make_trainer(ema_decay=DECAY), make_trainer(), make_trainer()
    advance(averaged, 2)
    save_training(averaged, path)
    resume_training(plain, path)
    assert same_weights(copied(plain.model), copied(averaged.model))
    advance(plain, 2)
    advance(whole, 4)
    # A changed schedule forgets the last losses, which are those of another training.
    assert differences(everything(whole), everything(plain)) == {".recovery.losses"}
    save_training(plain, path)
    assert same_weights(load(path)["weights"], copied(plain.model))


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [None, DECAY])
@pytest.mark.parametrize("damage", ["kind", "missing", "shape", "nan"])
def test_resume_refuses_damaged_weights_and_changes_nothing(make_trainer, path, damage, ema_decay):
    trainer, again = make_trainer(ema_decay=DECAY), make_trainer(ema_decay=ema_decay)
    save_training(trainer, path)
    content = torch.load(path, weights_only=True)
    weights = content["training"]["model"]
    if damage == "kind":
        content["training"]["model"] = 5
    elif damage == "missing":
        del weights["constant"]
    elif damage == "shape":
        weights["constant"] = weights["constant"][:, :1]
    else:
        weights["constant"][:] = torch.nan
    write_whole(content, path)
    before = everything(again)
    with pytest.raises(CheckpointError, match="weights|training"):
        resume_training(again, path)
    assert not differences(before, everything(again))
