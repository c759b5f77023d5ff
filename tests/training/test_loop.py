import json
import math
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.checkpoint import load, load_model_and_metadata
from nvae.config import load_config
from nvae.data.images import to_float
from nvae.data.pictures.metadata import read_metadata
from nvae.data.registry import evaluation_images
from nvae.evaluation.likelihood import Estimate, evaluate
from nvae.inference.reconstruction import reconstruct
from nvae.schema import TrainingParameters
from nvae.system.errors import DivergenceError, UserError
from nvae.tools.grids import grid
from nvae.training import loop, run_output, validation
from nvae.training.loggers import read_events, read_metrics
from nvae.training.loop import Stopped, checkpoint_due
from nvae.training.report import previews
from nvae.training.report.previews import draw_reconstructions
from nvae.training.trainer import Trainer

from .helpers import advance

NO_TIMES = {"images_per_second": 0, "overall_images_per_second": 0}


def kinds_of(folder):
    """The kinds of the run's events with their steps."""
    events, damaged = read_events(folder / "runs" / "small" / "events.jsonl")
    assert not damaged
    return [(event["kind"], event["step"]) for event in events]


def warnings_of(events):
    return [event.text for event in events if event.kind == "warning"]


def metrics_of(folder):
    lines, damaged = read_metrics(folder / "runs" / "small" / "metrics.jsonl", 4)
    assert not damaged
    return lines


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "due"),
    [  # three steps of four images an epoch, three epochs
        ({"epochs_per_checkpoint": 1}, [3, 6, 9]),
        ({"epochs_per_checkpoint": 2}, [6, 9]),
        ({"epochs_per_checkpoint": None}, [9]),
        ({"epochs_per_checkpoint": None, "images_per_checkpoint": 8}, [2, 4, 6, 8, 9]),
        ({"epochs_per_checkpoint": None, "images_per_checkpoint": 3}, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ({"epochs_per_checkpoint": 2, "images_per_checkpoint": 20}, [5, 6, 9]),
    ],
)
def test_checkpoint_due_by_epochs_by_images_and_at_the_end(make_trainer, changes, due):
    trainer, steps = make_trainer(**changes), []
    for step in range(1, 10):
        advance(trainer, 1)
        if checkpoint_due(trainer):
            steps.append(step)
    assert steps == due


@pytest.mark.slow
def test_train_records_metrics_and_validation(run, data, tmp_path, capfd):
    path, events = run()
    assert path == tmp_path / "saved_weights" / "final_result_small.model"
    assert capfd.readouterr() == ("", "")
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [3, 6, 9]
    for line in lines:
        assert line["kl"] == pytest.approx(sum(line["kl_per_group"]), rel=1e-6)
        assert line["elbo"] == pytest.approx(line["log_likelihood"] - line["kl"], rel=1e-5)
        assert line["bits_per_dimension"] > 0
        assert line["gradient_norm_max"] >= line["gradient_norm"] > 0
        assert line["skipped_steps"] == 0
    assert [event.metrics for event in events if event.kind == "metrics"] == lines
    assert warnings_of(events) == []
    # Validation is on the validation images, and checkpoint and result know what every group is worth there.
    model, metadata = load_model_and_metadata(tmp_path / "saved_weights" / "small.checkpoint")
    evaluation = evaluate(model, data.validation, 4)
    assert lines[-1]["validation_elbo"] == pytest.approx(evaluation.elbo.mean, rel=1e-5)
    assert metadata["kl_per_group"] == pytest.approx(evaluation.kl_per_group, rel=1e-5)
    assert metadata == load_model_and_metadata(path)[1]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_with_gray_input_validates_on_binary_targets(run, data, tmp_path):
    dataset = {"name": "toy_faces", "binarize": True, "encoder_input": "gray"}
    path, _ = run({"dataset": dataset, "sampling_method": "bernoulli"}, evaluation_samples=3)
    model, _ = load_model_and_metadata(path)
    images, targets = evaluation_images(data, "validation", model.config)
    assert torch.equal(images, data.validation) and set(targets.unique().tolist()) == {0, 255}
    evaluation = evaluate(model, images, 4, targets_u8=targets)
    assert metrics_of(tmp_path)[-1]["validation_elbo"] == pytest.approx(evaluation.elbo.mean, rel=1e-5)
    evaluation = evaluate(model, images, 4, 3, targets_u8=targets)
    result = json.loads((tmp_path / "runs" / "small" / "evaluation.json").read_text())
    assert result["log_likelihood"]["mean"] == pytest.approx(evaluation.log_likelihood.mean, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_evaluates_the_result_on_the_test_images(run, data, tmp_path, monkeypatch):
    with_test = replace(data, test=data.training[:5].flip(2))
    monkeypatch.setattr(loop, "load_data", lambda config, progress: with_test)
    path, events = run()
    model, _ = load_model_and_metadata(path)
    result = json.loads((tmp_path / "runs" / "small" / "evaluation.json").read_text())
    assert (result["part"], result["images"]) == ("test", 5)
    assert result["elbo"]["mean"] == pytest.approx(evaluate(model, with_test.test, 4, 10).elbo.mean, rel=1e-5)
    texts = [event.text for event in events if event.kind == "info"]
    assert any("5 test images with" in text for text in texts)
    validation = metrics_of(tmp_path)[-1]["validation_elbo"]
    assert validation == pytest.approx(evaluate(model, data.validation, 4).elbo.mean, rel=1e-5)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_line_has_means_and_maximum_of_its_steps(run, make_trainer, tmp_path):
    run()
    trainer = make_trainer()
    for line in metrics_of(tmp_path):
        steps = advance(trainer, 3)
        norms = [metrics["gradient_norm"].item() for metrics in steps]
        assert line["gradient_norm"] == pytest.approx(sum(norms) / 3, rel=1e-5)
        assert line["gradient_norm_max"] == max(norms)
        assert line["loss"] == pytest.approx(sum(metrics["loss"].item() for metrics in steps) / 3, rel=1e-5)
        assert line["learning_rate"] == steps[-1]["learning_rate"]


@pytest.mark.slow
def test_train_draws_samples_numbered_and_a_film(run, tmp_path):
    run()
    folder = tmp_path / "runs" / "small"
    assert sorted(os.listdir(folder / "samples")) == ["step_00000006.png", "step_00000009.png"]
    with Image.open(folder / "samples" / "step_00000009.png") as picture:
        assert picture.size == (32, 32)  # four temperatures, four images each
        assert picture.text["step"] == "9"
    with Image.open(folder / "samples.webp") as film:
        assert film.n_frames >= 2
    assert {"samples.png", "reconstructions.png", "kl_per_group.png", "bits_per_dimension.png"} < set(
        os.listdir(folder)
    )


@pytest.mark.slow
def test_train_pictures_name_the_run_and_the_step(run, tmp_path):
    run()
    folder = tmp_path / "runs" / "small"
    pictures = [*sorted(folder.glob("[!d]*.png")), folder / "samples.webp"]  # the data set has no step
    assert len(pictures) == 6
    for path in pictures:
        metadata = read_metadata(path)
        assert metadata["model"] == "small"
        assert metadata.get("step") == (None if path.suffix == ".webp" else "9")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_continues_to_more_epochs_and_names_a_number_that_works(run, tmp_path):
    run()
    _, events = run(epochs=2)
    assert any("more than 3" in event.text for event in events)
    run(epochs=4)
    assert load(tmp_path / "saved_weights" / "small.checkpoint")["training"]["progress"]["epoch"] == 4
    assert [line["step"] for line in metrics_of(tmp_path)] == [3, 6, 9, 12]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_fresh_keeps_the_earlier_files(run, tmp_path):
    run(epochs=1)
    before = (tmp_path / "saved_weights" / "small.checkpoint").read_bytes()
    run(epochs=1, fresh=True)
    assert (tmp_path / "saved_weights" / "small.checkpoint.1").read_bytes() == before
    assert (tmp_path / "saved_weights" / "final_result_small.model.1").exists()
    assert (tmp_path / "runs" / "small.1" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_writes_the_report_of_the_data(run, tmp_path, data, monkeypatch):
    file, report = tmp_path / "runs" / "small" / "data_report.txt", "broken:\n  \N{SNOWMAN}.png\n"
    monkeypatch.setattr(loop, "load_data", lambda config, progress: replace(data, report=report))
    _, events = run(epochs=1)
    assert file.read_text("utf-8") == report
    assert any("data_report.txt" in event.text for event in events if event.kind == "info")
    monkeypatch.setattr(loop, "load_data", lambda config, progress: data)
    run(epochs=2)
    assert not file.exists()


@pytest.mark.slow
def test_train_draws_the_data_once_in_a_run(run, tmp_path):
    run(epochs=1)
    file = tmp_path / "runs" / "small" / "data.png"
    assert read_metadata(file)["model"] == "small"
    file.write_bytes(b"kept")
    run(epochs=2)
    assert file.read_bytes() == b"kept"
    run(epochs=1, fresh=True)
    assert file.read_bytes() != b"kept"


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_from_a_checkpoint_continues_another_run_exactly(run, tmp_path):
    run(epochs=3)
    whole = load(tmp_path / "saved_weights" / "small.checkpoint")
    run(epochs=1, fresh=True)
    first = tmp_path / "saved_weights" / "small.checkpoint"
    before = first.read_bytes()
    _, events = run(epochs=3, name="second", checkpoint=first)
    assert any(str(first) in event.text and "epoch 2, step 3" in event.text for event in events)
    assert first.read_bytes() == before
    second = load(tmp_path / "saved_weights" / "second.checkpoint")
    assert second["training"]["progress"] == whole["training"]["progress"]
    assert all(torch.equal(second["weights"][name], tensor) for name, tensor in whole["weights"].items())
    assert (tmp_path / "runs" / "second" / "metrics.jsonl").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_from_a_checkpoint_prefers_the_runs_own(run, tmp_path):
    run(epochs=1)
    run(epochs=2, name="other")
    other = tmp_path / "saved_weights" / "other.checkpoint"
    run(epochs=2, checkpoint=other)
    assert [line["step"] for line in metrics_of(tmp_path)] == [3, 6]
    _, events = run(epochs=3, checkpoint=other, fresh=True)
    assert any("epoch 3, step 6" in event.text for event in events)
    assert [line["step"] for line in metrics_of(tmp_path)] == [9]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_from_a_checkpoint_that_does_not_fit_changes_nothing(run, tmp_path):
    run(epochs=1)
    first = tmp_path / "saved_weights" / "small.checkpoint"
    before = sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file())
    for mistake in ({"checkpoint": tmp_path / "none.checkpoint"}, {"checkpoint": first, "model": {"latent_size": 3}}):
        with pytest.raises(UserError):
            run(name="second", **mistake)
        with pytest.raises(UserError):
            run(fresh=True, **mistake)
    for lock in tmp_path.rglob("*.lock"):  # they stay, empty
        lock.unlink()
    assert sorted((path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()) == before


@pytest.mark.slow
def test_train_stopped_by_a_signal_continues_as_one_run(run, tmp_path, monkeypatch):
    run()
    whole, lines = load(tmp_path / "saved_weights" / "small.checkpoint")["weights"], metrics_of(tmp_path)
    step = Trainer.step

    def interrupted(trainer, images_u8):
        if trainer.position.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, images_u8)

    monkeypatch.setattr(Trainer, "step", interrupted)
    with pytest.raises(Stopped) as stopped:
        run(fresh=True)
    assert stopped.value.code == 128 + signal.SIGTERM
    assert isinstance(stopped.value, KeyboardInterrupt) and "step 5, and saved" in str(stopped.value)
    assert load(tmp_path / "saved_weights" / "small.checkpoint")["training"]["progress"]["step"] == 5
    assert kinds_of(tmp_path) == [("started", 0), ("stopped", 5)]
    assert "stopped, epoch 1.667 of 3" in (tmp_path / "runs" / "small" / "report.html").read_text("utf-8")
    monkeypatch.setattr(Trainer, "step", step)
    run()
    resumed = load(tmp_path / "saved_weights" / "small.checkpoint")["weights"]
    assert all(torch.equal(whole[name], tensor) for name, tensor in resumed.items())
    assert kinds_of(tmp_path) == [("started", 0), ("stopped", 5), ("continued", 5), ("finished", 9)]
    assert "finished, epoch 3 of 3" in (tmp_path / "runs" / "small" / "report.html").read_text("utf-8")
    for before, after in zip(lines, metrics_of(tmp_path), strict=True):
        assert before | NO_TIMES == after | NO_TIMES


def test_train_stopped_before_the_first_line_of_metrics_has_a_page(run, tmp_path, monkeypatch):
    step = Trainer.step

    def interrupted(trainer, images_u8):
        os.kill(os.getpid(), signal.SIGTERM)
        return step(trainer, images_u8)

    monkeypatch.setattr(Trainer, "step", interrupted)
    events = []
    with pytest.raises(Stopped):
        run(on_event=events.append)
    assert not [event.text for event in events if event.kind == "warning" and "page" in event.text]
    assert "stopped, epoch 0.3333 of 3" in (tmp_path / "runs" / "small" / "report.html").read_text("utf-8")


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_of_a_finished_run_adds_no_event(run, tmp_path):
    run(epochs=1)
    before = kinds_of(tmp_path)
    run(epochs=1)
    assert kinds_of(tmp_path) == before == [("started", 0), ("finished", 3)]


@pytest.mark.slow
def test_train_writes_the_page_at_the_start_at_every_checkpoint_and_at_the_end(run, tmp_path, monkeypatch):
    def write_page(record):
        assert record.problems == []
        page = (record.position.step, len(record.metrics), record.state, bool(record.evaluation))
        pages.append((*page, record.holder is not None))

    pages = []
    monkeypatch.setattr(run_output, "write_page", write_page)
    run(epochs_per_checkpoint=2)
    assert pages == [
        (0, 0, "running", False, True),
        (6, 2, "running", False, True),
        (9, 3, "finished", False, True),
        (9, 3, "finished", True, False),
    ]
    pages.clear()
    monkeypatch.setattr(run_output, "PAGE_SECONDS", 0)
    monkeypatch.setattr(run_output, "PAGE_PORTION", math.inf)
    run(epochs_per_checkpoint=2, fresh=True)
    steps = [(step, lines) for step, lines, *_ in pages]
    assert steps == [(0, 0), (1, 1), (2, 1), (4, 2), (5, 2), (6, 2), (7, 3), (8, 3), (9, 3), (9, 3)]


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_calibrates_a_new_model_once(run, data, monkeypatch):
    from nvae.models.nvae.network import NVAE

    calls = []
    monkeypatch.setattr(NVAE, "calibrate", lambda model, images_u8: calls.append(images_u8))
    run(epochs=1)
    run(epochs=2)
    assert len(calls) == 1
    assert torch.equal(calls[0], data.training)


# ------------------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_stops_after_skipped_steps_and_keeps_the_checkpoint(run, tmp_path):
    run(epochs=1)
    path = tmp_path / "saved_weights" / "small.checkpoint"
    weights = load(path)["weights"]
    with pytest.raises(DivergenceError, match="gradient_skip_threshold"):
        run(epochs=60, gradient_skip_threshold=1e-9, max_recoveries=0)
    assert all(torch.equal(weights[name], tensor) for name, tensor in load(path)["weights"].items())


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_refuses_a_validation_that_is_not_finite(run, tmp_path, monkeypatch):
    run(epochs=1)
    before = (tmp_path / "saved_weights" / "small.checkpoint").read_bytes()
    nan = Estimate(math.nan, 0.0)
    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: evaluate(*a, **k)._replace(elbo=nan))
    with pytest.raises(DivergenceError, match="learning_rate"):
        run(max_recoveries=0)
    assert (tmp_path / "saved_weights" / "small.checkpoint").read_bytes() == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_warns_of_a_diverged_model(run):
    _, events = run(learning_rate=3.0)
    assert sum("divergence" in warning for warning in warnings_of(events)) == 2  # at a validation and at the end


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_warns_of_a_collapsed_kl(run, monkeypatch):
    monkeypatch.setattr(validation, "evaluate", lambda *a, **k: evaluate(*a, **k)._replace(kl_per_group=[0.009] * 4))
    _, events = run(epochs_per_checkpoint=1)
    assert sum("collapse" in warning for warning in warnings_of(events)) == 2


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_line_counts_skipped_steps(run, make_trainer, tmp_path):
    norms = [metrics["gradient_norm"].item() for metrics in advance(make_trainer(), 1)]
    run(epochs=1, gradient_skip_threshold=0.99 * norms[0], evaluation_samples=0)
    (line,) = metrics_of(tmp_path)
    progress = load(tmp_path / "saved_weights" / "small.checkpoint")["training"]["progress"]
    assert line["skipped_steps"] == progress["skipped_steps"] > 0


@pytest.mark.slow
@pytest.mark.parametrize("failing", ["draw_samples", "draw_curves", "draw_film", "save_report", "write_page"])
def test_train_survives_errors_while_drawing(run, monkeypatch, failing):
    def fail(*_):
        raise ValueError("no such backend")

    monkeypatch.setattr(validation if failing == "save_report" else run_output, failing, fail)
    path, events = run()
    assert path.exists()
    assert len(warnings_of(events)) == 1
    assert "no such backend" in warnings_of(events)[0]


def refreshes(folder):
    page = (folder / "runs" / "small" / "report.html").read_text("utf-8")
    return page.count('<meta http-equiv="refresh"')


@pytest.mark.parametrize("end", [ValueError("lost"), KeyboardInterrupt(), DivergenceError("diverged.", "Try again.")])
def test_train_that_fails_leaves_a_page_without_a_refresh_and_an_event(run, tmp_path, monkeypatch, end):
    step = Trainer.step

    def fails(trainer, images_u8):
        if trainer.position.step == 1:
            seen.append(refreshes(tmp_path))
            raise end
        return step(trainer, images_u8)

    seen = []
    monkeypatch.setattr(Trainer, "step", fails)
    with pytest.raises(type(end)):
        run(max_recoveries=0)
    assert seen == [1] and refreshes(tmp_path) == 0
    kinds = {ValueError: ["error"], KeyboardInterrupt: [], DivergenceError: ["divergence"]}[type(end)]
    assert [kind for kind, _ in kinds_of(tmp_path)] == ["started", *kinds]


@pytest.mark.slow
def test_train_writes_the_pictures_that_a_full_disk_refused(run, tmp_path, monkeypatch):
    save, full, folder = previews.save_picture, [True], tmp_path / "runs" / "small"

    def refused(picture, path, metadata):
        if full:
            raise OSError(28, "No space left on device", str(path))
        return save(picture, path, metadata)

    monkeypatch.setattr(previews, "save_picture", refused)
    evaluate_result = loop.evaluate_result

    def free(*arguments):  # after the last checkpoint
        full.clear()
        return evaluate_result(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "evaluate_result", free)
        _, events = run(epochs=1)
    assert {"samples.png", "reconstructions.png", "data.png"} <= set(os.listdir(folder))
    assert len(warnings_of(events)) == 3
    full.append(True)
    run(epochs=1, fresh=True)
    assert not (folder / "samples.png").exists() and (folder / "kl_per_group.png").exists()
    full.clear()
    run(epochs=1)  # finished, draws what is missing
    assert {"samples.png", "reconstructions.png", "data.png"} <= set(os.listdir(folder))
    drawn = (folder / "samples.png").stat().st_mtime_ns
    run(epochs=1)
    assert (folder / "samples.png").stat().st_mtime_ns == drawn


@pytest.mark.slow
def test_train_survives_a_failing_receiver_of_events(run):
    def gone(event):
        raise BrokenPipeError

    with pytest.warns(UserWarning, match="BrokenPipe"):
        path, _ = run(on_event=gone)
    assert path.exists()


@pytest.mark.slow
def test_train_survives_a_run_folder_that_cannot_be_written(run, tmp_path):
    (tmp_path / "runs").write_text("")
    path, events = run()
    assert path.exists()
    assert warnings_of(events)


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_train_explains_out_of_memory(run, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(Trainer, "step", fail)
    with pytest.raises(UserError, match="batch_size.*use_tensor_checkpoints"):
        run()


@pytest.mark.usefixtures("no_pictures")
def test_train_warns_of_too_little_memory(run, monkeypatch):
    monkeypatch.setattr(run_output, "available_bytes", lambda device: 2**20)
    _, events = run(epochs=1)
    assert sum("batch_size" in warning for warning in warnings_of(events)) == 1


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({}, ["keep_best"]),
        ({"keep_best": False}, []),
        ({"keep_best": False, "early_stopping_patience": 3}, ["early_stopping_patience"]),
        ({"learning_rate_schedule": "plateau"}, ["keep_best", "learning_rate_schedule"]),
    ],
    ids=str,
)
def test_selection_on_the_test_images_gives_a_warning(data, changes, keys):
    schedule = TrainingParameters(**changes)
    assert run_output.selection_warning(data, schedule) is None
    warning = run_output.selection_warning(replace(data, validation_is_test=True), schedule)
    every = ("keep_best", "early_stopping_patience", "learning_rate_schedule")
    assert [key for key in every if key in (warning or "")] == keys


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_train_on_test_images_for_validation_says_so(run, data, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "load_data", lambda config, progress: replace(data, validation_is_test=True))
    _, events = run()
    assert sum("keep_best" in warning for warning in warnings_of(events)) == 1
    result = json.loads((tmp_path / "runs" / "small" / "evaluation.json").read_text())
    assert (result["part"], result["images_are"]) == ("validation", "test images (the validation part)")


def test_memory_warning_depends_on_the_batch_and_spares_quickstart():
    config, cpu = load_config("quickstart"), torch.device("cpu")
    assert run_output.memory_warning(config, config.training_parameters.batch_size, cpu) is None
    assert "1,000,000 images" in run_output.memory_warning(config, 10**6, cpu)


def test_reconstructions_are_below_their_images(make_model, data, tmp_path):
    model = make_model()
    draw_reconstructions(model, data, tmp_path, step=1)
    originals = to_float(data.validation, "cpu")
    expected = grid(torch.cat([originals, reconstruct(model, originals)]), 6, 96, ["image", "model"])
    with Image.open(tmp_path / "reconstructions.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
    assert math.prod(picture.size) > 0


# ---------------------------------------------------------------------------------------- EMA, gradient accumulation


@pytest.mark.usefixtures("no_pictures")
def test_train_informs_about_batch_norms_of_parts(run):
    _, events = run(epochs=1, gradient_accumulation=2, evaluation_samples=0)
    assert any("batch norm" in event.text for event in events if event.kind == "info")
    _, events = run(epochs=1, evaluation_samples=0)
    assert not any("batch norm" in event.text for event in events)


@pytest.mark.slow
def test_train_validates_draws_and_writes_the_ema(run, data, tmp_path, monkeypatch):
    drawn = []
    draw = run_output.draw_samples

    def draw_samples(model, *arguments):
        drawn.append(model)
        return draw(model, *arguments)

    monkeypatch.setattr(run_output, "draw_samples", draw_samples)
    path, _ = run(ema_decay=0.9)
    content = load(tmp_path / "saved_weights" / "small.checkpoint")
    model, metadata = load_model_and_metadata(path)
    assert all(torch.equal(content["weights"][name], tensor) for name, tensor in model.state_dict().items())
    assert not torch.equal(content["training"]["model"]["constant"], content["weights"]["constant"])
    evaluation = evaluate(model, data.validation, 4)
    assert metrics_of(tmp_path)[-1]["validation_elbo"] == pytest.approx(evaluation.elbo.mean, rel=1e-5)
    assert metadata["kl_per_group"] == pytest.approx(evaluation.kl_per_group, rel=1e-5)
    assert torch.equal(drawn[-1].constant, model.constant)
