"""A short version of benchmarks/robustness.py: attacks on training and files, and their counts."""

import importlib.util
import random
import signal

import pytest

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
    spec = importlib.util.spec_from_file_location("robustness", root / "benchmarks" / "robustness.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_nothing_bad(counts):
    assert not {key: count for key, count in counts.items() if count and key in BAD}, counts


@pytest.mark.parametrize("numbers", [[signal.SIGKILL], [signal.SIGTERM, signal.SIGHUP]])
def test_interrupted_runs_equal_their_twins(robustness, numbers):
    counts = robustness.interrupted(2, numbers, random.Random(0))
    assert_nothing_bad(counts)
    assert counts["interruptions"] == 2 and counts["finished"] >= 1


def test_full_disks_lose_nothing(robustness):
    counts = robustness.full_disks(1, random.Random(1))
    assert_nothing_bad(counts)
    assert counts["disks"] == 1


def test_damaged_checkpoints_are_refused_or_read_as_saved(robustness):
    counts = robustness.damaged_checkpoints(60, random.Random(0))
    assert_nothing_bad(counts)
    assert counts["refused"] + counts["read as saved"] == 60 and counts["refused"] > 40


def test_hostile_files_run_nothing(robustness):
    counts = robustness.hostile_files()
    assert_nothing_bad(counts)
    assert counts["files"] == 30


def test_generated_configs_are_valid_or_refused(robustness):
    counts = robustness.generated_configs(150, random.Random(0))
    assert_nothing_bad(counts)
    assert counts["texts"] >= 150
