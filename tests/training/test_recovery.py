"""Training is broken at a chosen step, and goes back to its last checkpoint, or ends."""

import json
import math
import os
import signal
from dataclasses import replace

import pytest
import torch

from nvae.checkpoint import load
from nvae.evaluation.likelihood import Estimate, evaluate
from nvae.objective import Loss, weighted_negative_elbo
from nvae.schema import TrainingParameters
from nvae.system.errors import DivergenceError
from nvae.training import loop, recovery, resuming, validation
from nvae.training import trainer as trainer_module
from nvae.training.loggers import read_metrics
from nvae.training.loop import Stopped
from nvae.training.recovery import Recovery, StepNumbers, highest_usual
from nvae.training.resuming import resume_training, save_training
from nvae.training.schedules import Validation, learning_rate
from nvae.training.trainer import Trainer
from nvae.training.validation import check_validation

from .helpers import LADDER, NVLABS, advance, at, differences, everything

pytestmark = pytest.mark.usefixtures("no_pictures")
SCHEDULE = TrainingParameters()
SMALL = {"number_of_scales": 1, "initial_splits_per_scale": 1}
# Three steps an epoch, checkpoints at the steps 6, 12 and 18.
LENGTH = {"epochs": 6, "epochs_per_checkpoint": 2, "warmup_epochs": 1.0, "evaluation_samples": 0}
BROKEN_AT = 8  # the number of steps before


@pytest.fixture
def sensitive(monkeypatch):
    """Divergence is detected after a few steps."""
    monkeypatch.setattr(recovery, "WINDOW", 5)
    monkeypatch.setattr(recovery, "MAX_EXCESS_SKIPS", 4)
    monkeypatch.setattr(recovery, "DOUBTFUL_SKIPS", 2)


@pytest.fixture
def checkpoint(tmp_path):
    return tmp_path / "saved_weights" / "small.checkpoint"


@pytest.fixture
def train_small(run):
    """A function: `run` with a model of one latent group, which is the fastest one."""
    return lambda **changes: run(SMALL, **LENGTH | changes)


def events_of(folder):
    """The events of divergence and recovery."""
    lines = (folder / "runs" / "small" / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] in ("divergence", "recovery")]


def metrics_of(folder):
    lines, damaged = read_metrics(folder / "runs" / "small" / "metrics.jsonl", 1)
    assert not damaged
    return lines


# ------------------------------------------------------------------------------------------------ ways to break a run


def batch_of_nan(trainer, monkeypatch):
    images = torch.full((4, 3, 8, 8), math.nan)
    monkeypatch.setattr(trainer, "inputs_and_targets", lambda images_u8: (images, images))


def exploding_weight(trainer, monkeypatch):
    trainer.model.constant.data.fill_(1e30)


def weight_not_finite(trainer, monkeypatch):
    trainer.model.constant.data[0, 0, 0, 0] = math.nan


def moment_not_finite(trainer, monkeypatch):
    next(iter(trainer.optimizer.state.values()))["exp_inf"].fill_(math.inf)


def buffer_not_finite(trainer, monkeypatch):
    next(m for m in trainer.model.modules() if isinstance(m, torch.nn.BatchNorm2d)).running_var.fill_(math.inf)


def huge_loss(trainer, monkeypatch):
    def huge(*arguments):
        return Loss(*(1e6 * value for value in weighted_negative_elbo(*arguments)))

    monkeypatch.setattr(trainer_module, "weighted_negative_elbo", huge)


def bad_loss_scale(trainer, monkeypatch):
    trainer.scaler._scale.fill_(math.inf)


BREAKS = [
    batch_of_nan,
    exploding_weight,
    weight_not_finite,
    moment_not_finite,
    buffer_not_finite,
    huge_loss,
    bad_loss_scale,
]


@pytest.fixture
def break_training(monkeypatch, sensitive):
    """A function: break every training before the step `at`, and again until the recovery number `times`.

    Returns the list of the positions at which steps were taken.
    """

    def break_training(how, times=1, at=BROKEN_AT):
        step, steps = Trainer.step, []

        def broken_step(trainer, images_u8):
            steps.append(trainer.position.step)
            if how is bad_loss_scale and not trainer.scaler.is_enabled():
                trainer.scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
            with monkeypatch.context() as patch:
                if trainer.recovery.count < times and trainer.position.step >= at:
                    how(trainer, patch)
                return step(trainer, images_u8)

        monkeypatch.setattr(Trainer, "step", broken_step)
        return steps

    return break_training


# ------------------------------------------------------------------------------------------------------ recoveries


@pytest.mark.slow
@pytest.mark.parametrize("how", BREAKS)
def test_train_recovers_and_reaches_its_end(train_small, break_training, checkpoint, tmp_path, how):
    steps = break_training(how)
    path, reports = train_small()
    content = load(checkpoint)
    assert content["training"]["progress"]["epoch"] == 6
    assert all(tensor.isfinite().all() for tensor in content["weights"].values())
    (event,) = content["metadata"]["events"]
    assert event["kind"] == "recovery"
    assert event["step"] == max(steps[: steps.index(6, 7)]) + 1
    assert event["epoch"] == pytest.approx(event["step"] / 3, abs=1e-3)
    assert load(path)["metadata"]["events"] == [event] == events_of(tmp_path)
    assert [report.text for report in reports if report.kind == "warning"] == [event["text"]]
    state = content["training"]["recovery"]
    assert (state["count"], state["tries"], state["halvings"], state["doublings"]) == (1, 1, 1, 1)
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == list(range(3, 19, 3))
    assert [line["recoveries"] for line in lines] == [0] * 2 + [1] * 4
    assert [line["regularization_coefficient"] for line in lines] == [0.1] * 2 + [0.2] * 4
    schedule = content["config"].training_parameters
    for line in lines:
        rate = learning_rate(at((line["step"] - 1) / 3, schedule, 3))
        assert line["learning_rate"] == pytest.approx(rate * (0.5 if line["recoveries"] else 1))


@pytest.mark.slow
@pytest.mark.parametrize("elbo", [math.nan, -1e9])
def test_train_recovers_from_a_validation(train_small, checkpoint, tmp_path, monkeypatch, elbo):
    """Validations at the epochs 1 to 6; the warm-up ends with the first one, and three are needed to compare."""
    bad = {"elbo": Estimate(elbo, 0.0), "elbo_bits": Estimate(-elbo / 100, 0.0)}
    calls = []

    def broken(*arguments, **options):
        calls.append(1)
        evaluation = evaluate(*arguments, **options)
        return evaluation._replace(**bad) if len(calls) == 4 else evaluation

    monkeypatch.setattr(validation, "evaluate", broken)
    train_small(epochs_per_checkpoint=1)
    content = load(checkpoint)
    assert [event["step"] for event in content["metadata"]["events"]] == [12]
    assert [line["step"] for line in metrics_of(tmp_path)] == list(range(3, 19, 3))
    assert len(content["training"]["history"]["validations"]) == 6


def test_train_broken_before_the_first_checkpoint_goes_back_to_the_initial_state(
    train_small, break_training, checkpoint
):
    steps = break_training(weight_not_finite, at=1)
    train_small()
    assert steps == [0, 1, *range(18)]
    assert load(checkpoint)["metadata"]["events"][0]["step"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("model", [NVLABS | {"spectral_normalization": True}, LADDER], ids=["nvlabs", "ladder"])
def test_train_recovers_with_all_features(run, break_training, checkpoint, model):
    break_training(batch_of_nan)
    features = {"ema_decay": 0.8, "early_stopping_patience": 9, "optimizer": "adam", "learning_rate": 1e-3}
    run(model, **LENGTH | features)
    content = load(checkpoint)
    assert content["training"]["progress"]["epoch"] == 6
    state = content["training"]["recovery"]
    assert (state["count"], state["doublings"]) == (1, 0 if model is LADDER else 1)


@pytest.mark.slow
def test_train_tries_with_more_change_every_time(train_small, break_training, checkpoint, tmp_path):
    break_training(batch_of_nan, times=3)
    train_small()
    content = load(checkpoint)
    assert len(content["metadata"]["events"]) == len(events_of(tmp_path)) == 3
    state = content["training"]["recovery"]
    assert (state["count"], state["tries"], state["halvings"], state["doublings"]) == (3, 3, 6, 3)


@pytest.mark.slow
@pytest.mark.parametrize("how", [batch_of_nan, exploding_weight, moment_not_finite])
def test_train_that_cannot_recover_ends_with_its_checkpoint_intact(
    train_small, break_training, checkpoint, tmp_path, how
):
    steps = break_training(how, times=math.inf)
    train_small(epochs=2)
    good = load(checkpoint)
    steps.clear()
    with pytest.raises(DivergenceError, match="learning_rate") as error:
        train_small()
    assert error.value.exit_code == 3
    assert len(steps) <= 4 * 10  # four times: to the next checkpoint, or until the skips have piled up
    content = load(checkpoint)
    assert content["training"]["progress"] == good["training"]["progress"]
    assert all(torch.equal(good["weights"][name], tensor) for name, tensor in content["weights"].items())
    assert [event["kind"] for event in events_of(tmp_path)] == ["recovery"] * 3 + ["divergence"]
    again = len(steps)
    with pytest.raises(DivergenceError):  # the tries are used up
        train_small()
    assert len(steps) - again <= 10


def test_train_with_a_loss_that_stays_far_higher_goes_back_once(train_small, break_training, checkpoint):
    """After going back, the window is empty, and the new losses are the usual ones."""
    break_training(huge_loss, times=math.inf)
    train_small()
    content = load(checkpoint)["training"]
    assert (content["progress"]["epoch"], content["recovery"]["count"]) == (6, 1)


def test_train_without_recoveries_ends_at_once(train_small, break_training, checkpoint):
    break_training(batch_of_nan, times=math.inf)
    with pytest.raises(DivergenceError):
        train_small(max_recoveries=0)
    content = load(checkpoint)
    assert content["training"]["progress"]["step"] == 6
    assert "events" not in content["metadata"]


@pytest.mark.slow
def test_train_that_skips_to_its_end_is_no_success(train_small, break_training, checkpoint):
    """The last steps are skipped, too few to pile up: their state is in doubt."""
    break_training(batch_of_nan, times=math.inf, at=15)
    with pytest.raises(DivergenceError):
        train_small()
    assert load(checkpoint)["training"]["progress"]["step"] == 12


# ------------------------------------------------------------------------------------------------------ interruptions


@pytest.mark.slow
@pytest.mark.parametrize("where", ["before the save", "after the save"])
def test_train_interrupted_within_a_recovery_resumes_exactly(
    train_small, break_training, checkpoint, monkeypatch, where
):
    break_training(batch_of_nan)
    train_small()
    whole = load(checkpoint)

    def interrupted(trainer, *arguments):
        if trainer.recovery.count == 1:
            raise KeyboardInterrupt
        save(trainer, *arguments)

    def interrupted_after(*arguments):
        recover(*arguments)
        raise KeyboardInterrupt

    save, recover = resuming.save_training, loop.recover
    with monkeypatch.context() as patch:
        if where == "before the save":
            patch.setattr(resuming, "save_training", interrupted)
        else:
            patch.setattr(loop, "recover", interrupted_after)
        with pytest.raises(KeyboardInterrupt):
            train_small(fresh=True)
    assert load(checkpoint)["training"]["progress"]["step"] == 6
    train_small()
    content = load(checkpoint)
    assert content["metadata"]["events"] == whole["metadata"]["events"]
    assert all(torch.equal(whole["weights"][name], tensor) for name, tensor in content["weights"].items())


@pytest.mark.slow
def test_train_stopped_in_doubt_keeps_the_last_good_checkpoint(train_small, break_training, checkpoint, monkeypatch):
    def nan_and_signal(trainer, patch):
        batch_of_nan(trainer, patch)
        if trainer.position.step == BROKEN_AT + 2 and not stopped:
            stopped.append(1)
            os.kill(os.getpid(), signal.SIGTERM)

    stopped = [1]
    break_training(nan_and_signal)
    train_small()
    whole = load(checkpoint)
    stopped.clear()
    with pytest.raises(Stopped) as error:
        train_small(fresh=True)
    assert error.value.code == 128 + signal.SIGTERM
    assert load(checkpoint)["training"]["progress"]["step"] == 6
    train_small()
    content = load(checkpoint)
    assert content["metadata"]["events"] == whole["metadata"]["events"]
    assert all(torch.equal(whole["weights"][name], tensor) for name, tensor in content["weights"].items())


def test_train_stopped_in_the_step_that_diverges_stops_after_going_back(train_small, break_training, checkpoint):
    def nan_and_signal(trainer, patch):
        weight_not_finite(trainer, patch)
        os.kill(os.getpid(), signal.SIGTERM)

    steps = break_training(nan_and_signal)
    with pytest.raises(Stopped):
        train_small()
    assert steps == list(range(BROKEN_AT + 1))
    assert load(checkpoint)["training"]["progress"]["step"] == 6
    assert load(checkpoint)["training"]["recovery"]["count"] == 1


# --------------------------------------------------------------------------------------------- the rule for the loss


def numbers(loss, weighted_kl=0.0, gradient_norm=1.0, largest_buffer=1.0):
    return StepNumbers(loss, weighted_kl, gradient_norm, largest_buffer)


def recorded(losses, kl=0.0, weight=1.0):
    state = Recovery()
    for step, loss in enumerate(losses):
        state.record(numbers(loss, weight * kl), weight, False, step)
    return state


def test_highest_usual_is_far_above_the_median():
    assert highest_usual([1.0, 2.0, 3.0]) == 2 + 20 * 1
    assert highest_usual([100.0, 100.0, 101.0]) == 100 + 20 * 5
    assert highest_usual([-100.0] * 3) == -100 + 20 * 5


def test_loss_is_compared_once_the_window_is_full():
    losses = [float(i % 10) for i in range(recovery.WINDOW)]  # median 4.5, highest 9
    assert recorded(losses[1:]).reason_to_skip(numbers(1e30), 1.0, SCHEDULE) is None
    state = recorded([1e9, *losses])  # the first one has left the window
    assert state.reason_to_skip(numbers(94.4), 1.0, SCHEDULE) is None
    assert state.reason_to_skip(numbers(94.6), 1.0, SCHEDULE) is not None
    assert state.reason_to_skip(numbers(-1e30), 1.0, SCHEDULE) is None
    never = TrainingParameters(skip_high_losses=False, gradient_skip_threshold=5.0)
    assert state.reason_to_skip(numbers(1e30), 1.0, never) is None
    assert state.reason_to_skip(numbers(math.nan), 1.0, never) is not None
    assert state.reason_to_skip(numbers(1.0, gradient_norm=6.0), 1.0, never) is not None


def test_loss_that_the_kl_warmup_raises_is_usual():
    """From one step to the next, the weight of a KL of 10,000 nats rises from 1e-4 to 1."""
    state = recorded([100.0] * recovery.WINDOW, kl=1e4, weight=1e-4)
    assert state.reason_to_skip(numbers(1e4 + 99, 1e4), 1.0, SCHEDULE) is None
    assert state.reason_to_skip(numbers(1e4 + 99, 1.0), 1e-4, SCHEDULE) is not None
    assert state.reason_to_skip(numbers(3e5, 1e4), 1.0, SCHEDULE) is not None


@pytest.mark.parametrize("field", StepNumbers._fields)
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_number_not_finite_is_a_reason_to_skip(field, value):
    assert Recovery().reason_to_skip(numbers(1.0)._replace(**{field: value}), 1.0, SCHEDULE) is not None


def test_step_far_above_the_last_losses_changes_only_the_counts(make_trainer, sensitive, monkeypatch):
    trainer = make_trainer(epochs=9)
    advance(trainer, recovery.WINDOW)
    before = everything(trainer)
    huge_loss(trainer, monkeypatch)
    (metrics,) = advance(trainer, 1)
    assert metrics["skipped"] and math.isfinite(metrics["loss"])
    counts = {
        ".progress.step",
        ".progress.image",
        ".progress.images_seen",
        ".progress.skipped_steps",
        ".progress.epoch",
    }
    assert differences(before, everything(trainer)) <= counts | {".recovery.excess_skips"}


@pytest.mark.slow
def test_resume_restores_the_window(make_trainer, sensitive, tmp_path):
    whole, first, second = (make_trainer(epochs=9, warmup_epochs=6.0) for _ in range(3))
    advance(whole, 12)
    advance(first, 7)
    save_training(first, tmp_path / "a.checkpoint")
    resume_training(second, tmp_path / "a.checkpoint")
    assert second.recovery.losses == first.recovery.losses and len(first.recovery.losses) == recovery.WINDOW
    advance(second, 5)
    assert not differences(everything(whole), everything(second))


# ------------------------------------------------------------------------------------------------- state and schedule


def test_tries_count_from_zero_after_progress_and_changes_stay():
    state = Recovery()
    state.change(diverged_at=500, regularized=True)
    state.change(diverged_at=400, regularized=True)
    state.record(numbers(1.0), 1.0, False, 500 + recovery.PROGRESS_STEPS - 1)
    assert state.tries == 2
    state.record(numbers(1.0), 1.0, False, 500 + recovery.PROGRESS_STEPS)
    assert (state.tries, state.count) == (0, 2)
    assert (state.learning_rate_factor, state.regularization_factor) == (1 / 8, 4)
    state.change(diverged_at=2000, regularized=False)
    assert (state.learning_rate_factor, state.regularization_factor) == (1 / 16, 4)


def test_regularization_is_doubled_six_times_at_most():
    state = Recovery()
    for _ in range(9):
        state.change(1, regularized=True)
    assert state.regularization_factor == 64


def test_resume_with_a_changed_key_takes_the_key_as_it_is(make_trainer, tmp_path):
    trainer = make_trainer()
    trainer.recovery.change(1, regularized=True)
    save_training(trainer, tmp_path / "a.checkpoint")
    for changes, factors in (
        ({}, (0.5, 2, 1)),
        ({"epochs": 4}, (0.5, 2, 0)),
        ({"learning_rate": 0.02}, (1, 2, 0)),
        ({"regularization_constant": 0.2}, (0.5, 1, 0)),
    ):
        again = make_trainer(**changes)
        resume_training(again, tmp_path / "a.checkpoint")
        state = again.recovery
        assert (state.learning_rate_factor, state.regularization_factor, state.tries) == factors
        assert state.count == 1


def test_recovery_changes_order_noise_and_augmentation(make_trainer):
    dataset = {"name": "toy_faces", "horizontal_flip": True, "random_crop": 2}
    trainer, other = (make_trainer({"dataset": dataset}) for _ in range(2))
    other.recovery.count = 1
    assert not torch.equal(trainer.order(), other.order())
    assert sorted(other.order().tolist()) == list(range(14))
    images = trainer.data.training[:4]
    assert not torch.equal(trainer.inputs_and_targets(images).images, other.inputs_and_targets(images).images)
    assert trainer.step(images)["loss"] != other.step(images)["loss"]
    trainer, other = make_trainer(), make_trainer()
    other.recovery.count = 1
    assert torch.equal(trainer.inputs_and_targets(images).images, other.inputs_and_targets(images).images)
    assert trainer.step(images)["loss"] != other.step(images)["loss"]  # of other noise


@pytest.mark.parametrize(
    ("elbos", "elbo", "bits", "diverged"),
    [
        ([], -1e9, 1e9, False),
        ([-100.0, -100.0], -1e9, 1e9, False),
        ([-100.0] * 3, -199.0, 20.0, False),
        ([-100.0] * 3, -201.0, 20.0, True),
        ([-100.0] * 3, -201.0, 11.0, False),  # a uniform distribution needs 8 bits/dim
        ([-100.0, -200.0, -100.0], -2000.0, 20.0, False),
        ([-100.0, -200.0, -100.0], -2101.0, 20.0, True),
        ([], math.nan, math.nan, True),
        ([], -math.inf, math.inf, True),
    ],
)
def test_validation_far_below_the_last_ones_is_a_divergence(make_trainer, elbos, elbo, bits, diverged):
    trainer = make_trainer(warmup_epochs=2.0, epochs=20)
    trainer.position.epoch = 2 + len(elbos)
    trainer.history.validations = [Validation(1.0, -1e30)]  # within the warm-up
    trainer.history.validations += [Validation(2.0 + i, value) for i, value in enumerate(elbos)]
    if diverged:
        with pytest.raises(DivergenceError):
            check_validation(trainer, elbo, bits)
    else:
        check_validation(trainer, elbo, bits)


def test_validation_after_a_recovery_is_a_divergence_if_far_worse_than_uniform(make_trainer):
    trainer = make_trainer(warmup_epochs=2.0, epochs=20)
    trainer.recovery.tries = 1
    check_validation(trainer, -1e9, 13.0)  # within the warm-up
    trainer.position.epoch = 2
    check_validation(trainer, -1e9, 12.0)
    with pytest.raises(DivergenceError):
        check_validation(trainer, -1e9, 13.0)


def test_recovery_after_a_start_with_changed_data_goes_back_to_the_checkpoint(make_trainer, tmp_path, data):
    """The checkpoint on the disk still names the images of before, which the user has accepted to change."""
    trainer, changed = make_trainer(), make_trainer()
    advance(trainer, 2)
    save_training(trainer, tmp_path / "a.checkpoint")
    changed.data = replace(data, training=data.training.flip(0))
    resume_training(changed, tmp_path / "a.checkpoint", changed_data=True)
    advance(changed, 1)
    resuming.recover(changed, tmp_path / "a.checkpoint", DivergenceError("the loss became nan.", "Advice."))
    assert (changed.position.step, changed.recovery.count) == (2, 1)


@pytest.mark.parametrize("missing", ["a.checkpoint", "folder"])
def test_recovery_without_its_checkpoint_tells_the_divergence_too(make_trainer, tmp_path, missing):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DivergenceError) as caught:
        resuming.recover(make_trainer(), tmp_path / missing, DivergenceError("the loss became nan.", "It is intact."))
    assert caught.value.problem == "the loss became nan."
    assert str(tmp_path / missing) in caught.value.advice
    assert "intact" not in str(caught.value)
