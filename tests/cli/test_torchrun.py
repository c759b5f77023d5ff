"""train.py, evaluate and quality under torchrun: several processes on this machine, with gloo."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from nvae.checkpoint import load
from nvae.evaluation.quality import features
from nvae.evaluation.quality.extractors import transformations

from .conftest import TINY_YAML

pytestmark = pytest.mark.slow
SETTINGS = {
    "dataset.horizontal_flip": "true",
    "training_parameters.batch_size": "6",
    "training_parameters.evaluation_samples": "2",
    "training_parameters.ema_decay": "0.9",
    "training_parameters.learning_rate_schedule": "constant",  # the same with another number of epochs
}
OPTIONS = ("small.yaml", *(f"--set={key}={value}" for key, value in SETTINGS.items()))
CHECKPOINT = Path("saved_weights/small.checkpoint")
METRICS = Path("runs/small/metrics.jsonl")
PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def start(folder, root, start_process):
    """A function: start train.py with torchrun in a folder of its own."""
    (folder / "small.yaml").write_text(TINY_YAML)
    return lambda *options, script=root / "train.py": start_process(
        *PROCESSES, script, *OPTIONS, "--device=cpu", *options, cwd=folder
    )


@pytest.fixture
def train_alone(command):
    """A function: run train.py in this process, to the end; returns the output."""

    def train_alone(*options):
        code, output, error = command("train.py", *OPTIONS, *options)
        assert code == 0, error
        return output

    return train_alone


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def has_trained():
    """Whether the training has written a line of metrics: it began, and takes signals."""
    return METRICS.exists() and METRICS.stat().st_size > 0


def progress():
    return load(CHECKPOINT)["training"]["progress"]


def test_torchrun_trains_as_one_process_and_another_number_continues(start, train_alone, folder):
    code, output = finish(start())
    assert code == 0, output
    assert output.count("epoch 2/2") == 1
    assert "Warning" not in output
    ranks = load(CHECKPOINT)
    (folder / "saved_weights").rename("of_ranks")
    (folder / "runs").rename("runs_of_ranks")
    train_alone()
    one = load(CHECKPOINT)
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(ranks["weights"][name], tensor, rtol=1e-3, atol=1e-4)
    assert ranks["training"]["progress"] == one["training"]["progress"]
    assert ranks["metadata"]["kl_per_group"] == pytest.approx(one["metadata"]["kl_per_group"], rel=1e-3, abs=1e-4)
    # One process continues what two began.
    (folder / "of_ranks" / "small.checkpoint").replace(CHECKPOINT)
    assert "epoch 3/3" in train_alone("--epochs", "3")
    assert progress()["epoch"] == 3


def test_torchrun_killed_process_ends_all_and_the_checkpoint_is_whole(start, train_alone, wait_until):
    process = start("--epochs", "100000")
    wait_until(has_trained, process)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    code, output = finish(process)
    assert code != 0
    assert "forcefully exiting" not in output
    epoch = progress()["epoch"] + 1
    train_alone("--epochs", str(epoch))
    assert progress()["epoch"] == epoch


ONE_FAILS = """
import os, pathlib, runpy, sys, time
import torch.distributed as dist

joining, join = pathlib.Path("joining"), dist.init_process_group
if os.environ["RANK"] == "1":
    while not joining.exists():
        time.sleep(0.02)
    sys.exit(2)


def announced(*arguments, **options):
    joining.touch()
    join(*arguments, **options)


dist.init_process_group = announced
runpy.run_path("TRAIN", run_name="__main__")
"""


def test_torchrun_process_that_fails_ends_another_that_waits_for_it(start, folder, root):
    script = folder / "one_fails.py"
    script.write_text(ONE_FAILS.replace("TRAIN", str(root / "train.py")))
    code, output = finish(start(script=script))
    assert code != 0 and (folder / "joining").exists()
    assert "forcefully exiting" not in output  # torchrun kills a process that SIGTERM does not end within 30 seconds


def test_torchrun_signal_stops_all_at_one_step_with_a_checkpoint(start, wait_until):
    process = start("--epochs", "100000")
    wait_until(has_trained, process)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code != 0
    assert output.count("stopped in epoch") == 1
    assert f"step {progress()['step']}," in output


SMALL_PARTS = """
from nvae.cli.main import console
from nvae.evaluation.quality import features
from nvae.evaluation.quality.extractors import transformations

features.PART, transformations.STEPS = 10, 2
console()
"""


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("evaluate", ("--nll", "--samples=3", "--part=training", "--batch-size=5")),
        ("quality", ("--metrics=fid,kid,precision-recall,copies", "--images=24", "--neighbors=3", "--iterations=2")),
    ],
)
def test_torchrun_measures_as_one_process(command, trained, start_process, tmp_path, monkeypatch, name, options):
    (tmp_path / "script.py").write_text(SMALL_PARTS)
    monkeypatch.setattr(features, "PART", 10)
    monkeypatch.setattr(transformations, "STEPS", 2)
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    results = []
    for out in ("ranks", "one"):
        arguments = (name, "little", *options, "--device=cpu", f"--out={out}")
        if out == "ranks":
            code, output = finish(start_process(*PROCESSES, tmp_path / "script.py", *arguments, cwd=trained))
            assert output.count("saved as") == 1
            shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        else:
            code, output, _ = command("-m", *arguments)
        assert code == 0, output
        (path,) = Path(out).glob("*images*.json")
        results.append(dict(leaves(json.loads(path.read_text()))))
    of_ranks, of_one = results
    assert of_ranks.keys() == of_one.keys() and len(of_one) > 20
    for key, value in of_one.items():
        if "seconds_per_image" not in key and key != ("command",):
            assert of_ranks[key] == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), key


def leaves(value, place=()):
    """The places and values of all numbers and texts in nested lists and dictionaries."""
    if not isinstance(value, dict | list):
        return [(place, value)]
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    return [leaf for key, part in pairs for leaf in leaves(part, (*place, key))]
