import pytest
import torch

from nvae.checkpoint import CheckpointError, load, load_model_and_metadata
from nvae.config import ConfigError
from nvae.evaluation.likelihood import evaluate
from nvae.schema import TrainingParameters
from nvae.system.torch_files import write_whole
from nvae.training import loop, run_output, validation
from nvae.training.loggers import read_events
from nvae.training.resuming import resume_training, save_training
from nvae.training.schedules import Validation, stops_early
from nvae.training.validation import record_validation

from .helpers import advance, differences, everything
from .test_resume import put

ELBOS = [-900.0, -700.0, -800.0, -750.0, -760.0, -740.0, -730.0, -720.0]


def history(*elbos):
    return [Validation(epoch + 1.0, elbo) for epoch, elbo in enumerate(elbos)]


@pytest.mark.parametrize(
    ("elbos", "stops"),
    [([], False), ([1], False), ([1, 2], False), ([2, 1], False), ([2, 1, 1], True), ([2, 1, 3], False)]
    + [([2, 2, 2], True), ([1, 2, 0, 1.9], True), ([2, 0, 1, 3], False)],
)
def test_stops_early_after_two_epochs_without_a_better_validation(make_trainer, elbos, stops):
    """The best validation is the first one with the highest ELBO."""
    trainer = make_trainer(early_stopping_patience=2)
    for past in history(*elbos):
        trainer.history.validations.append(past)
        trainer.best_weights.add(past, [], trainer.model)
    assert trainer.stopped_early == stops
    if elbos:
        best, last = trainer.best_weights.best.validation, history(*elbos)[-1]
        assert not stops_early(best, last, TrainingParameters())
        assert not stops_early(best, last, TrainingParameters(early_stopping_patience=4))


@pytest.fixture
def run(make_config, schedule, data, tmp_path, monkeypatch):
    """A function: train with the validations of ELBOS, one per epoch; returns the result's path and the texts."""
    monkeypatch.setattr(loop, "load_data", lambda config, progress: data)
    checkpoint = tmp_path / "saved_weights" / "small.checkpoint"

    def scripted(model, images, *arguments, samples=1, **options):
        evaluation = evaluate(model, images, *arguments, **options)
        epoch = round(load(checkpoint)["training"]["progress"]["step"] / 3) if checkpoint.exists() else 0
        return evaluation._replace(elbo=evaluation.elbo._replace(mean=ELBOS[epoch]))

    monkeypatch.setattr(validation, "evaluate", scripted)

    def run(**changes):
        base = {"epochs": 8, "epochs_per_checkpoint": 1, "evaluation_samples": 0, "write_reconstruction": False}
        config, texts = make_config(training_parameters=schedule | base | changes), []
        path = loop.train(
            config, "small", "cpu", folder=tmp_path, progress=False, on_event=lambda event: texts.append(event.text)
        )
        return path, texts

    return run


@pytest.mark.slow
@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_train_stops_early_and_keeps_the_best_weights(run, tmp_path, monkeypatch, ema_decay):
    saved = {}
    record = validation.record_validation

    def recorded(trainer, elbo, kl):
        record(trainer, elbo, kl)
        saved[trainer.position.epoch] = {k: v.clone() for k, v in trainer.eval_model.state_dict().items()}, kl

    monkeypatch.setattr(validation, "record_validation", recorded)
    seen = {}
    monkeypatch.setattr(run_output, "draw_samples", lambda model, *_: seen.update(pictures=model.constant.clone()))
    monkeypatch.setattr(validation, "report", lambda _, model, __: seen.update(evaluation=model.constant.clone()))
    path, _ = run(early_stopping_patience=3, ema_decay=ema_decay, evaluation_samples=1)
    training = load(tmp_path / "saved_weights" / "small.checkpoint")["training"]
    assert training["progress"]["epoch"] == 5
    assert training["history"]["validations"] == history(*ELBOS[:5])
    assert training["best"]["validation"] == (2.0, -700.0)
    model, metadata = load_model_and_metadata(path)
    weights, kl = saved[2]
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(weights["constant"], saved[5][0]["constant"])
    assert metadata["kl_per_group"] == kl
    assert torch.equal(seen["pictures"], model.constant)
    assert torch.equal(seen["evaluation"], model.constant)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_stopped_early_stays_stopped_and_continues_with_more_patience(run, tmp_path):
    checkpoint = tmp_path / "saved_weights" / "small.checkpoint"
    path, _ = run(early_stopping_patience=3)
    result = load(path)["weights"]
    before = checkpoint.read_bytes()
    path, texts = run(early_stopping_patience=3)
    assert checkpoint.read_bytes() == before
    assert all(torch.equal(result[name], tensor) for name, tensor in load(path)["weights"].items())
    assert any("early_stopping_patience" in text for text in texts)
    events, _ = read_events(tmp_path / "runs" / "small" / "events.jsonl")
    assert [(event["kind"], event["epoch"]) for event in events] == [("started", 0.0), ("early stopping", 5.0)]
    run(early_stopping_patience=5)
    assert load(checkpoint)["training"]["progress"]["epoch"] == 7
    path, _ = run()  # without early stopping, to the end, with the last weights
    content = load(checkpoint)
    assert content["training"]["progress"]["epoch"] == 8
    assert content["training"]["best"] == {}
    assert all(torch.equal(content["weights"][name], tensor) for name, tensor in load(path)["weights"].items())


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_with_early_stopping_turned_on_again_counts_from_then_on(run, tmp_path):
    """The best weights of before are gone, so the validations of before neither stop the run nor are the result."""
    run(early_stopping_patience=3)  # stops in epoch 5, best in epoch 2
    run(epochs=6)
    run(early_stopping_patience=3, epochs=8)
    training = load(tmp_path / "saved_weights" / "small.checkpoint")["training"]
    assert training["progress"]["epoch"] == 8
    assert training["best"]["validation"] == (8.0, -720.0)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_checkpoint_opens_with_the_best_weights(run, tmp_path):
    path, _ = run(early_stopping_patience=3)
    from_checkpoint = load_model_and_metadata(tmp_path / "saved_weights" / "small.checkpoint")
    result = load_model_and_metadata(path)
    assert from_checkpoint[1]["kl_per_group"] == result[1]["kl_per_group"]
    weights = result[0].state_dict()
    assert all(torch.equal(weights[name], tensor) for name, tensor in from_checkpoint[0].state_dict().items())


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_with_early_stopping_turned_on_keeps_the_best_weights_from_then_on(run, tmp_path):
    run(epochs=3)
    run(early_stopping_patience=100, epochs=5)
    assert load(tmp_path / "saved_weights" / "small.checkpoint")["training"]["best"]["validation"] == (4.0, -750.0)


def test_early_stopping_needs_validations(make_config):
    off = {"epochs_per_checkpoint": None}
    with pytest.raises(ConfigError) as error:
        make_config(training_parameters=off | {"early_stopping_patience": 3})
    assert error.value.key == "training_parameters.early_stopping_patience"
    with pytest.raises(ConfigError) as error:
        make_config(training_parameters=off | {"learning_rate_schedule": "plateau"})
    assert error.value.key == "training_parameters.learning_rate_schedule"
    make_config(training_parameters=off | {"images_per_checkpoint": 5, "early_stopping_patience": 3})


DAMAGES = {
    "training.history": [
        put("history", 5),
        put("history", "validations", 5),
        put("history", "validations", [(1.0, "x")]),
        put("history", "validations", [(1.0,)]),
        put("history", "validations", [(1.0, float("nan"))]),
        put("history", "validations", [(10**400, 1.0)]),
    ],
    "training.best": [
        put("best", 5),
        put("best", "validation", (1.0, None)),
        put("best", "kl_per_group", [1.0]),
        put("best", "weights", {}),
        put("best", "weights", "constant", torch.zeros(2)),
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize(("key", "change"), [(key, change) for key in DAMAGES for change in DAMAGES[key]])
def test_resume_refuses_a_damaged_history_and_changes_nothing(make_trainer, tmp_path, key, change):
    path = tmp_path / "a.checkpoint"
    trainer, again = make_trainer(early_stopping_patience=2), make_trainer(early_stopping_patience=2)
    advance(trainer, 2)
    record_validation(trainer, -500.0, [1.0] * 4)
    save_training(trainer, path)
    content = torch.load(path, weights_only=True)
    change(content["training"])
    write_whole(content, path)
    before = everything(again)
    with pytest.raises(CheckpointError, match=key):
        resume_training(again, path)
    assert not differences(before, everything(again))
