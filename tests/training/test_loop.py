import json

import pytest
import torch

from nvae.evaluation.likelihood import evaluate
from nvae.training import loop
from nvae.training.loggers import Records, read_metrics
from nvae.training.loop import checkpoint_due, train


def position_after(run, steps):
    for _ in range(steps):
        first = run.position.image
        run.step(run.data.training[run.order()[first : first + run.batch_size]])


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
def test_checkpoints_are_due_by_epochs_by_images_and_at_the_end(make_run, changes, due):
    run = make_run(**changes)
    found = []
    for step in range(1, 10):
        position_after(run, 1)
        if checkpoint_due(run):
            found.append(step)
    assert found == due


@pytest.fixture
def trained(make_run, data, tmp_path, monkeypatch):
    """The run and the metrics of a whole small training."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "load_data", lambda config: data)
    config = make_run().config
    train(config, "small", "cpu")
    return config, read_metrics(tmp_path / "runs" / "small" / "metrics.jsonl")


def test_the_numbers_are_those_of_the_bound(trained, data):
    _, metrics = trained
    for entry in metrics:
        assert entry["kl"] == pytest.approx(sum(entry["kl_per_group"]), rel=1e-6)
        assert entry["elbo"] == pytest.approx(entry["log_likelihood"] - entry["kl"], rel=1e-5)
        assert entry["kl"] > 0
    assert [entry["step"] for entry in metrics] == [3, 6, 9]


def test_validation_is_on_the_validation_images(trained, data):
    from nvae.checkpoint import load_model_and_metadata, model_path

    _, metrics = trained
    model, metadata = load_model_and_metadata("saved_weights/small.checkpoint")
    found = evaluate(model, data.validation, 4)
    assert metrics[-1]["validation_elbo"] == pytest.approx(found.elbo.mean, rel=1e-5)
    assert metrics[-1]["validation_elbo"] != pytest.approx(evaluate(model, data.training, 4).elbo.mean, rel=1e-3)
    # Checkpoint and result know what every group is worth there, as of their own weights.
    assert metadata["kl_per_group"] == pytest.approx(found.kl_per_group, rel=1e-5)
    assert metadata["kl_per_group"] != pytest.approx(metrics[-2]["validation_kl_per_group"], rel=1e-2)
    assert metadata == load_model_and_metadata(model_path("small"))[1]


def test_metrics_after_the_checkpoint_are_forgotten(trained, tmp_path):
    config, metrics = trained
    file = tmp_path / "runs" / "small" / "metrics.jsonl"
    with file.open("a") as lines:
        lines.write(json.dumps(metrics[-1] | {"step": 12}) + "\n" + '{"step": 15, "lo')
    records = Records("small", config, 9)
    records.close()
    assert [entry["step"] for entry in read_metrics(file)] == [3, 6, 9]


def test_tensorboard_gets_the_numbers_when_it_is_installed(trained, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = accumulator.EventAccumulator(str(tmp_path / "runs" / "small")).Reload()
    assert [scalar.step for scalar in events.Scalars("elbo")] == [3, 6, 9]
    assert "kl_per_group/0" in events.Tags()["scalars"]


def test_reconstructions_stand_below_their_images(make_model, data, tmp_path):
    import numpy as np
    from PIL import Image

    from nvae.data.images import to_float
    from nvae.inference.reconstruction import reconstruct
    from nvae.tools.grids import grid
    from nvae.training.previews import draw_reconstructions

    model = make_model()
    draw_reconstructions(model, data, tmp_path / "a.png", step=1)
    originals = to_float(data.validation, "cpu")
    expected = grid(torch.cat([originals, reconstruct(model, originals)]), 6, 96, ["image", "model"])
    with Image.open(tmp_path / "a.png") as picture:
        assert np.array_equal(np.asarray(picture), np.asarray(expected))
