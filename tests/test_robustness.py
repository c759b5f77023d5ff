"""A short version of benchmarks/robustness.py: attacks on training and files, and their counts."""

import functools
import importlib.util
import random
import shutil
import signal
import time

import pytest

from nvae.training.loop import train

pytestmark = pytest.mark.slow
BAD = {
    "lost",
    "traceback",
    "hang",
    "executed",
    "wrong weights",
    "no twin",
    "different from the twin",
    "control characters",
}


@pytest.fixture(scope="module")
def robustness(root):
    """The program, with a shorter training."""
    spec = importlib.util.spec_from_file_location("robustness", root / "benchmarks" / "robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    short = module.CONFIG.replace("epochs: 40, epochs_per_checkpoint: 8", "epochs: 16, epochs_per_checkpoint: 4")
    assert short != module.CONFIG
    module.new_runs = functools.partial(module.new_runs, short)
    return module


@pytest.fixture(scope="module")
def finished(robustness, tmp_path_factory):
    """The folder of a run that was trained to its end without an interruption."""
    with robustness.new_runs() as runs:
        train(str(runs.folder / "small.yaml"), device="cpu", folder=runs.folder, progress=False)
        return shutil.copytree(runs.folder, tmp_path_factory.mktemp("finished"), dirs_exist_ok=True)


@pytest.fixture
def finishing_here(robustness, finished, monkeypatch):
    """What nothing attacks is trained in this process, and from the beginning once only."""

    def finish(runs):
        if runs.checkpoint.exists():
            train(str(runs.folder / "small.yaml"), device="cpu", folder=runs.folder, progress=False)
        else:
            shutil.copytree(finished, runs.folder, dirs_exist_ok=True)

    monkeypatch.setattr(robustness.Runs, "finish", finish)


def assert_nothing_bad(counts):
    assert not {key: count for key, count in counts.items() if count and key in BAD}, counts


def wait_for_some_epochs(runs, process, duration, chooser):
    """Wait until the metrics of one to three epochs are written, or the process has ended; not for seconds."""
    file, seen = runs.folder / "runs" / "small" / "metrics.jsonl", None
    for _ in range(chooser.randrange(1, 4)):
        while process.poll() is None and (not file.exists() or file.read_bytes() in (b"", seen)):
            time.sleep(0.01)
        seen = file.read_bytes()


@pytest.mark.usefixtures("finishing_here")
def test_interrupted_runs_equal_their_twins(robustness, monkeypatch):
    monkeypatch.setattr(robustness, "wait_for_a_moment", wait_for_some_epochs)
    counts = robustness.interrupted(4, [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP], random.Random(0))
    assert_nothing_bad(counts)
    assert counts["interruptions"] == 4 and counts["finished"] >= 1


@pytest.mark.usefixtures("finishing_here")
def test_full_disks_lose_nothing(robustness):
    counts = robustness.full_disks(1, random.Random(1))
    assert_nothing_bad(counts)
    assert counts["disks"] == 1


@pytest.mark.usefixtures("finishing_here")
def test_damaged_checkpoints_are_refused_or_read_as_saved(robustness):
    counts = robustness.damaged_checkpoints(60, random.Random(0))
    assert_nothing_bad(counts)
    assert counts["refused"] + counts["read as saved"] == 60 and counts["refused"] > 40


@pytest.mark.usefixtures("finishing_here")
def test_hostile_files_run_nothing(robustness):
    counts = robustness.hostile_files()
    assert_nothing_bad(counts)
    assert counts["files"] == 30


def test_generated_configs_are_valid_or_refused(robustness):
    counts = robustness.generated_configs(150, random.Random(0))
    assert_nothing_bad(counts)
    assert counts["texts"] >= 150
