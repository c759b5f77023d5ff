"""Checkpoints that are always found: damage, copies, names, leftovers and the lock, through `train` of a tiny model."""

import errno
import math
import os
import warnings

import pytest
import torch

from nvae.checkpoint import load, load_model, save
from nvae.system import locks
from nvae.system.errors import InvalidValueError, Remedy, UserError
from nvae.system.files import WriteError, previous_path
from nvae.system.locks import RunLockedError, run_lock
from nvae.system.torch_files import CheckpointError
from nvae.training import loop
from nvae.training.loop import Stopped, train
from nvae.training.resuming import save_training
from nvae.training.run_files import RunFiles
from nvae.training.run_output import CURVES
from nvae.training.validation import is_complete, record_validation

from .helpers import advance

pytestmark = pytest.mark.usefixtures("no_pictures")
SMALL = {"initial_splits_per_scale": 1, "number_of_scales": 1}


@pytest.fixture
def run(make_config, schedule, data, tmp_path, monkeypatch):
    """A function: train a tiny model in tmp_path, some parameters changed; returns its events."""
    monkeypatch.setattr(loop, "load_data", lambda config, progress: data)

    def run(name="small", fresh=False, checkpoint=None, init_from=None, model=None, **changes):
        parameters = schedule | {"epochs_per_checkpoint": 1, "evaluation_samples": 0} | changes
        config, events = make_config(training_parameters=parameters, **SMALL, **(model or {})), []
        options = {"folder": tmp_path, "progress": False, "on_event": events.append}
        train(config, name, "cpu", fresh, checkpoint=checkpoint, init_from=init_from, **options)
        return events

    return run


@pytest.fixture
def files(tmp_path):
    return RunFiles("small", tmp_path)


@pytest.fixture
def trainer(make_trainer):
    return make_trainer(SMALL, epochs_per_checkpoint=1)


def warnings_of(events):
    return [event.text for event in events if event.kind == "warning"]


def position(path):
    return load(path)["training"]["progress"]["step"]


def damage(path):
    path.write_bytes(path.read_bytes()[:-1000])
    return path.read_bytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------------------------ damaged or missing


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["damaged", "empty", "missing"])
def test_train_continues_from_the_previous_checkpoint_as_if_nothing_had_happened(run, files, fault):
    run(epochs=3)
    result = load(files.model)["weights"]
    if fault == "missing":
        files.checkpoint.unlink()
    elif fault == "empty":
        files.checkpoint.write_bytes(b"")
    kept = damage(files.checkpoint) if fault == "damaged" else b""
    files.model.unlink()
    assert position(files.previous) == 6
    (warning,) = warnings_of(run(epochs=3))
    assert files.previous.name in warning and "step 6" in warning
    damaged = files.weights / "small.checkpoint.damaged"
    assert damaged.exists() == (fault != "missing")
    assert fault == "missing" or damaged.read_bytes() == kept
    assert all(torch.equal(tensor, result[name]) for name, tensor in load(files.model)["weights"].items())
    assert (position(files.checkpoint), position(files.previous)) == (9, 6)
    assert warnings_of(run(epochs=3)) == []


def test_train_sets_every_damaged_checkpoint_aside_under_a_name_of_its_own(run, files):
    run(epochs=2)
    kept = []
    for name in ("small.checkpoint.damaged", "small.checkpoint.damaged_2"):
        kept.append(damage(files.checkpoint))
        assert len(warnings_of(run(epochs=2))) == 1
        assert (files.weights / name).read_bytes() == kept[-1]
    assert (files.weights / "small.checkpoint.damaged").read_bytes() == kept[0]


@pytest.mark.slow
def test_train_with_both_damaged_changes_nothing_and_recommends_a_whole_copy(run, files):
    run(epochs=3, keep_every=1)
    for path in (files.checkpoint, files.previous, files.best):
        damage(path)
    before = contents(files.weights)
    with pytest.raises(CheckpointError) as raised:
        run(epochs=3)
    assert files.epoch_copy(1).name in str(raised.value)  # the copies of later epochs are links to damaged files
    assert files.epoch_copy(3).name not in str(raised.value)
    assert len(str(raised.value).splitlines()) == 1
    assert raised.value.remedies == (Remedy.START_OVER_FROM_FILE,)
    assert contents(files.weights) == before
    events = run(epochs=2, fresh=True, checkpoint=files.epoch_copy(1))
    assert warnings_of(events) == [] and position(files.checkpoint) == 6
    kept = [files.weights / f"{path.name}.1" for path in (files.checkpoint, files.previous, files.best)]
    assert all(path.read_bytes() == before[path.with_suffix("")] for path in kept)


def test_train_with_both_lost_does_not_overwrite_the_copies(run, files):
    run(epochs=1)
    files.checkpoint.unlink()
    files.previous.unlink()
    before = files.best.read_bytes()
    with pytest.raises(CheckpointError, match=r"small\.best\.checkpoint"):
        run(epochs=1)
    assert files.best.read_bytes() == before
    files.best.unlink()
    assert warnings_of(run(epochs=1)) == []  # no file at all: a new run


def test_train_does_not_set_aside_what_is_whole_but_does_not_fit(run, files):
    run(epochs=2)
    before = contents(files.weights)
    with pytest.raises(UserError, match=r"training_parameters\.seed"):
        run(epochs=2, seed=5)
    assert contents(files.weights) == before


def test_train_with_a_checkpoint_that_cannot_be_read_now_changes_nothing(run, files, monkeypatch):
    """An error of the disk may pass, so that a whole checkpoint is not set aside for an older one."""

    def fail(*args, **kwargs):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    run(epochs=2)
    before = contents(files.weights)
    with monkeypatch.context() as patch, pytest.raises(UserError, match=os.strerror(errno.EIO)):
        patch.setattr("torch.load", fail)
        run(epochs=3)
    assert contents(files.weights) == before
    assert warnings_of(run(epochs=3)) == []


def test_train_refuses_a_checkpoint_of_another_run(run, files, tmp_path):
    run(epochs=1)
    other = RunFiles("other", tmp_path)
    files.checkpoint.rename(other.checkpoint)
    before = contents(tmp_path)
    with pytest.raises(CheckpointError, match="'small'") as raised:
        run("other", epochs=1)
    assert raised.value.remedies == (Remedy.START_OVER_FROM_FILE,)
    assert contents(tmp_path) == before
    run("other", epochs=2, fresh=True, checkpoint=other.checkpoint)  # deliberately
    assert load(other.checkpoint)["run"] == "other" and position(other.checkpoint) == 6
    assert load(other.model)["run"] == "other"


def test_train_continues_a_checkpoint_from_before_names(run, files):
    run(epochs=1)
    content = load(files.checkpoint)
    model = load_model(files.checkpoint)
    save(model, files.checkpoint, content["training"], content["metadata"])
    assert "run" not in load(files.checkpoint)
    assert warnings_of(run(epochs=2)) == []
    assert load(files.checkpoint)["run"] == "small"


@pytest.mark.parametrize("name", ["a.best", "a.epoch_0012", "b.a.best"])
def test_names_of_copies_are_refused_as_names_of_runs(run, tmp_path, name):
    with pytest.raises(UserError) as raised:
        run(name)
    assert raised.value.remedies == (Remedy.RUN_NAME,)
    assert names(tmp_path) == []
    assert RunFiles(f"{name}s", tmp_path).name == f"{name}s"


# ------------------------------------------------------------------------------------------------------------ copies


def test_keep_every_keeps_epochs_and_makes_their_checkpoints_due(run, files):
    run(epochs=7, keep_every=3, epochs_per_checkpoint=None, keep_best=False)
    assert names(files.weights) == sorted(
        ["final_result_small.model", "small.checkpoint", "small.checkpoint.previous"]
        + ["small.epoch_0003.checkpoint", "small.epoch_0006.checkpoint"]
    )
    assert [position(path) for path in files.copies()] == [18, 9]
    assert load_model(files.epoch_copy(3)).config.training_parameters.keep_every == 3


@pytest.mark.parametrize("links", [True, False], ids=["hard links", "no hard links"])
def test_keep_best_keeps_the_best_validation(trainer, files, monkeypatch, links):
    def no_links(*paths):
        raise OSError(errno.EPERM, "no hard links")

    if not links:
        monkeypatch.setattr(os, "link", no_links)
    best = []
    for elbo in (-9.0, -7.0, -8.0, -7.0):
        advance(trainer, 1)
        record_validation(trainer, elbo, [1.0])
        save_training(trainer, files.checkpoint)
        files.keep_copies(trainer)
        best.append(position(files.best))
    advance(trainer, 1)
    save_training(trainer, files.checkpoint)
    files.keep_copies(trainer)  # not validated here
    assert [*best, position(files.best)] == [1, 2, 2, 2, 2]
    assert not previous_path(files.best).exists()


def test_train_makes_up_for_a_copy_that_a_killed_process_did_not_make(run, files):
    run(epochs=1, keep_every=1)
    copies = files.copies()
    assert len(copies) == 2
    for path in copies:
        path.unlink()
    run(epochs=1, keep_every=1)
    assert files.copies() == copies


def test_a_copy_that_cannot_be_written_is_a_warning(run, files, monkeypatch):
    def full(*paths):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr("nvae.training.run_files.link_or_copy", full)
    assert warnings_of(run(epochs=2))
    assert position(files.checkpoint) == 6 and not files.best.exists()


def test_fresh_puts_all_files_of_the_run_aside(run, files):
    run(epochs=2, keep_every=1)
    before = names(files.weights)
    run(epochs=1, fresh=True)
    assert {f"{name}.1" for name in before} < set(names(files.weights))
    assert position(files.checkpoint) == 3 and position(files.best) == 3


# --------------------------------------------------------------------------------------------- the lock and leftovers


def test_train_is_refused_while_the_run_is_trained(run, files, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.01)
    with run_lock(files.lock, "small", pytest.fail):
        for fresh in (False, True):
            with pytest.raises(RunLockedError):
                run(epochs=1, fresh=fresh)
        assert names(files.weights) == ["small.lock", "small.lock.json"]
        run("other", epochs=1)
        load_model(RunFiles("other", files.weights.parent).checkpoint)
    run(epochs=1)
    with run_lock(files.lock, "small", pytest.fail):
        load_model(files.checkpoint)  # reading needs no lock


def test_train_holds_the_lock_until_it_ends(run, files, data, monkeypatch):
    held = []

    def look(config, progress):
        held.append(locks.holder_path(files.lock).exists())
        raise Stopped(1, "") if len(held) > 1 else UserError("no data")

    monkeypatch.setattr(loop, "load_data", look)
    for error in (UserError, Stopped):
        with pytest.raises(error):
            run(epochs=1)
        assert names(files.weights) == []
    assert held == [True, True]


def test_train_removes_what_killed_processes_of_this_run_left(run, files):
    files.folder.mkdir(parents=True)
    files.weights.mkdir()
    left = [
        files.weights / f"{name}.123.0123abcd.unfinished"
        for name in (
            *("small.checkpoint", "small.checkpoint.previous", "small.best.checkpoint", "small.epoch_0012.checkpoint"),
            *("final_result_small.model", "final_result_small.model.previous", "small.lock.json"),
        )
    ]
    left += [files.folder / "samples.png.7.0123abcd.unfinished"]
    others = [
        files.weights / name
        for name in (
            *("other.checkpoint.123.0123abcd.unfinished", "small.2.checkpoint.123.0123abcd.unfinished"),
            *("small.checkpoint.unfinished", "small.checkpoint.statistics.1.0123abcd.unfinished", "notes.unfinished"),
        )
    ]
    for path in (*left, *others):
        path.write_text("half")
    folder = files.folder / "samples" / "film.7.0123abcd.unfinished"
    folder.mkdir(parents=True)
    (folder / "a.png").touch()
    run(epochs=1)
    assert not [path for path in (*left, folder) if path.exists()]
    assert all(path.read_text() == "half" for path in others)


# ----------------------------------------------------------------------------------------------- faults of 2026-11-29


@pytest.mark.parametrize("name", ["", "../x", "a/b", "a\\b", "a\0b", "a\x1b[2J", "-x", ".x", "..", "\ud800", "x" * 181])
def test_name_that_is_no_name_of_a_file_is_refused_and_nothing_is_written(run, tmp_path, name):
    with pytest.raises(InvalidValueError) as caught:
        run(name=name)
    assert (caught.value.got, caught.value.remedies) == (repr(name), (Remedy.RUN_NAME,))
    assert not list(tmp_path.iterdir())
    assert not (tmp_path.parent / "x.checkpoint").exists()


@pytest.mark.parametrize("name", ["my run, 2nd try", "Ünicode.猫", "2024-01-01", "x" * 180])
def test_name_may_be_any_name_of_a_file(tmp_path, name):
    assert RunFiles(name, tmp_path).checkpoint == tmp_path / "saved_weights" / f"{name}.checkpoint"


@pytest.mark.parametrize("tails", ["exact", "original"])
def test_finished_run_reads_no_images(run, files, monkeypatch, tails):
    run(model={"likelihood_tails": tails}, epochs=1)  # run again without the key, as before its default changed
    for name in ("data.png", "report.html", "samples.png", "reconstructions.png", *CURVES):  # see no_pictures
        (files.folder / name).touch()
    before = files.model.read_bytes(), files.checkpoint.stat().st_mtime_ns
    loads = []
    monkeypatch.setattr(loop, "load_data", lambda *arguments: loads.append(arguments))
    (event,) = run(epochs=1)
    assert event.kind == "info"
    assert loads == []
    assert before == (files.model.read_bytes(), files.checkpoint.stat().st_mtime_ns)


@pytest.mark.parametrize(("every", "epochs"), [(3, 2), (2, 3)])
def test_finished_run_is_complete_with_the_copies_that_it_has(run, files, every, epochs):
    run(epochs=epochs, keep_every=every)
    for name in ("data.png", "report.html", "samples.png", "reconstructions.png", *CURVES):
        (files.folder / name).touch()
    config = load(files.checkpoint)["config"]
    assert is_complete(config, files) and not is_complete(config, files, only_images=4)
    for copy in files.checkpoint.parent.glob("*.epoch_*"):
        copy.unlink()
        assert not is_complete(config, files)


@pytest.mark.parametrize("lost", ["model", "best", "evaluation"])
def test_finished_run_without_one_of_its_files_writes_it_again(run, files, lost):
    run(epochs=1, evaluation_samples=1)
    path = {"model": files.model, "best": files.best, "evaluation": files.folder / "evaluation.json"}[lost]
    content = path.read_bytes()
    path.unlink()
    run(epochs=1, evaluation_samples=1)
    assert path.read_bytes() == content or lost == "best"
    assert path.exists()


def test_fresh_run_looks_at_init_from_before_it_puts_the_old_run_aside(run, files, tmp_path):
    run(epochs=1)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.checkpoint")}
    bad = tmp_path / "bad.checkpoint"
    bad.write_bytes(b"no checkpoint")
    for source in (bad, tmp_path / "absent.model", tmp_path):
        with pytest.raises(CheckpointError):
            run(epochs=1, fresh=True, init_from=source)
    assert {path: path.read_bytes() for path in before} == before
    assert not files.checkpoint.with_name("small.checkpoint.1").exists()


def test_fresh_run_may_start_from_the_weights_of_the_run_itself(run, files, monkeypatch):
    run(epochs=1)
    trained = load(files.checkpoint)["weights"]
    started = []
    monkeypatch.setattr(loop, "save_training", lambda trainer, *where: started.append(trainer.model.state_dict()))
    monkeypatch.setattr(loop._Training, "_train_and_recover", lambda self: None)
    run(epochs=1, fresh=True, init_from=files.checkpoint)
    assert all(torch.equal(tensor, trained[name]) for name, tensor in started[0].items())
    assert files.checkpoint.with_name("small.checkpoint.1").exists()


def test_weights_that_are_not_finite_are_refused_as_a_start(run, trainer, tmp_path):
    broken = tmp_path / "broken.model"
    next(trainer.model.parameters()).data.fill_(math.nan)
    save(trainer.model, broken)
    with pytest.raises(CheckpointError) as caught:  # not DivergenceError, whose advice is about the last checkpoint
        run(init_from=broken)
    assert str(broken) in str(caught.value)
    assert not list(tmp_path.rglob("*.checkpoint"))


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "fifo"])
def test_what_stands_in_place_of_a_checkpoint_is_no_checkpoint(run, files, make, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    os.mkdir(files.weights)
    make(files.checkpoint)
    with pytest.raises(CheckpointError) as caught:
        run()
    assert str(files.checkpoint) in str(caught.value)
    with pytest.raises(CheckpointError) as caught:
        load("absent")
    assert "small.checkpoint" not in str(caught.value)  # among the existing files


def test_file_in_place_of_the_folder_is_named(run, files):
    files.weights.touch()
    with pytest.raises(WriteError) as caught:
        run()
    assert f"{files.weights} is a file" in str(caught.value)
    assert "free disk space" not in str(caught.value)


def test_model_without_a_training_step_is_opened_with_a_warning(trainer, tmp_path):
    path = tmp_path / "a.checkpoint"
    save_training(trainer, path)
    with pytest.warns(UserWarning, match="0 training steps"):
        load_model(path)
    advance(trainer, 1)
    save_training(trainer, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_model(path)
