"""The quality of samples during training."""

import json
import math
import signal

import pytest
import torch

from nvae.checkpoint import load, load_model
from nvae.evaluation.quality.extractors import transformations
from nvae.system.errors import UserError
from nvae.system.signals import StopRequest
from nvae.training import validation
from nvae.training.run_files import RunFiles
from nvae.training.validation import FID, sample_quality

from .helpers import differences, everything

pytestmark = pytest.mark.usefixtures("no_pictures")
KEYS = {"fid_self", "kid_self", "precision_self", "recall_self"}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(transformations, "STEPS", 2)


@pytest.fixture
def lines(tmp_path):
    return lambda: [
        json.loads(line) for line in (tmp_path / "runs" / "small" / "metrics.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def files(tmp_path):
    return RunFiles("small", tmp_path)


@pytest.mark.slow
def test_metrics_have_the_quality_at_the_chosen_epochs(run, lines):
    _, events = run(epochs=5, evaluate_quality_every=2, epochs_per_checkpoint=None)
    by_epoch = {line["epoch"]: line for line in lines()}
    assert [epoch for epoch, line in by_epoch.items() if line.keys() >= KEYS] == [2, 4]
    assert all(math.isfinite(by_epoch[2][key]) for key in KEYS)
    assert "validation_elbo" in by_epoch[2]  # with a checkpoint
    texts = " ".join(event.text for event in events)
    assert f"FID(self) {by_epoch[2][FID]:.2f}" in texts


@pytest.mark.slow
def test_weights_are_those_of_a_training_without_measurements(run):
    path, _ = run(epochs=2, evaluate_quality_every=1)
    with_quality = load_model(path).state_dict()
    path, _ = run(epochs=2, name="other")
    without = load_model(path).state_dict()
    assert all(torch.equal(with_quality[name], tensor) for name, tensor in without.items())


@pytest.mark.slow
def test_checkpoint_of_the_best_samples_is_kept(run, files, monkeypatch):
    values = iter([3.0, 1.0, 2.0, 1.0])
    result = dict.fromkeys(KEYS, 0.5)
    monkeypatch.setattr(validation, "sample_quality", lambda trainer, stop, warn: result | {FID: next(values)})
    kept = []

    def on_event(event):
        if files.best_fid.exists():
            kept.append(load(files.best_fid)["training"]["progress"]["step"])

    run(epochs=4, evaluate_quality_every=1, on_event=on_event)
    assert set(kept) == {3, 6}  # of the epochs 1 and 2
    assert files.best_fid in files.copies()
    assert load_model(files.best_fid).config.training_parameters.evaluate_quality_every == 1


@pytest.mark.slow
def test_best_samples_are_not_kept_without_keep_best(run, files):
    run(epochs=1, evaluate_quality_every=1, keep_best=False)
    assert not files.best_fid.exists() and not files.best.exists()


@pytest.mark.slow
def test_continued_run_compares_with_the_earlier_measurements(run, files, monkeypatch):
    values = iter([1.0, 2.0])
    monkeypatch.setattr(validation, "sample_quality", lambda trainer, stop, warn: dict.fromkeys(KEYS, next(values)))
    run(epochs=1, evaluate_quality_every=1)
    before = files.best_fid.read_bytes()
    run(epochs=2, evaluate_quality_every=1)
    assert files.best_fid.read_bytes() == before


@pytest.mark.slow
def test_error_is_a_warning_and_training_goes_on(run, lines, monkeypatch):
    def fail(*arguments, **options):
        raise UserError("no features")

    monkeypatch.setattr(validation, "measure_quality", fail)
    _, events = run(epochs=2, evaluate_quality_every=1)
    warnings = [event.text for event in events if event.kind == "warning" and "quality of samples" in event.text]
    assert len(warnings) == 1 and "no features" in warnings[0]
    assert not any(FID in line for line in lines())
    assert len(lines()) == 2


def test_signal_ends_the_measurement(make_trainer):
    stop = StopRequest()
    stop.signal = signal.SIGTERM
    assert sample_quality(make_trainer(), stop, print) == {}


def test_measurement_changes_no_number_of_the_trainer(make_trainer):
    trainer = make_trainer(ema_decay=0.9)
    before, random = everything(trainer), torch.random.get_rng_state()
    warned = []
    assert sample_quality(trainer, StopRequest(), lambda text, once: warned.append(once)).keys() == KEYS
    assert warned == ["few images"]
    assert not differences(before, everything(trainer))
    assert torch.equal(torch.random.get_rng_state(), random)


def test_quality_is_due_at_whole_multiples(make_trainer):
    position = make_trainer().position
    due = []
    for position.epoch, position.image in ((0, 0), (1, 0), (2, 0), (2, 4), (3, 0), (4, 0)):
        due.append(position.completes(2))
    assert due == [False, False, True, False, False, True]
    assert not position.completes(None)
