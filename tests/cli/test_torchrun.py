"""train.py under torchrun: several processes on this machine, with gloo."""

import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from nvae.checkpoint import load

from .conftest import TINY_YAML

SETTINGS = {
    "dataset.horizontal_flip": "true",
    "training_parameters.batch_size": "6",
    "training_parameters.evaluation_samples": "2",
    "training_parameters.ema_decay": "0.9",
}
CHECKPOINT = "saved_weights/small.checkpoint"
PROCESSES = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


@pytest.fixture
def start(tmp_path, root):
    """A function: start train.py in tmp_path, as one process or with torchrun; all processes are ended at the end."""
    (tmp_path / "small.yaml").write_text(TINY_YAML)
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    started = []

    def start(*options, ranks=True, script=None):
        script = [
            str(script or root / "train.py"),
            "small.yaml",
            "--device=cpu",
            *(f"--set={key}={value}" for key, value in SETTINGS.items()),
        ]
        arguments = [sys.executable, *(PROCESSES if ranks else ()), *script, *options]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        process = subprocess.Popen(arguments, cwd=tmp_path, env=environment, start_new_session=True, **pipes)
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def finish(process):
    output, _ = process.communicate(timeout=150)
    return process.returncode, output


def wait_for(path, seconds=60):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} did not appear"
        time.sleep(0.1)


def test_torchrun_trains_as_one_process_and_another_number_continues(start, tmp_path):
    code, output = finish(start())
    assert code == 0, output
    assert output.count("epoch 2/2") == 1
    ranks = load(tmp_path / CHECKPOINT)
    (tmp_path / "saved_weights").rename(tmp_path / "of_ranks")
    (tmp_path / "runs").rename(tmp_path / "runs_of_ranks")
    assert finish(start(ranks=False))[0] == 0
    one = load(tmp_path / CHECKPOINT)
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(ranks["weights"][name], tensor, rtol=1e-3, atol=1e-4)
    assert ranks["training"]["progress"] == one["training"]["progress"]
    assert ranks["metadata"]["kl_per_group"] == pytest.approx(one["metadata"]["kl_per_group"], rel=1e-3, abs=1e-4)
    # One process continues what two began.
    (tmp_path / "of_ranks" / "small.checkpoint").replace(tmp_path / CHECKPOINT)
    code, output = finish(start("--epochs", "3", ranks=False))
    assert code == 0 and "epoch 3/3" in output


def test_torchrun_killed_process_ends_all_and_the_checkpoint_is_whole(start, tmp_path):
    process = start("--epochs", "100000")
    wait_for(tmp_path / CHECKPOINT)
    time.sleep(1)
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    assert len(workers) == 2
    os.kill(int(workers[1]), signal.SIGKILL)
    before = time.monotonic()
    code, _ = finish(process)
    assert code != 0 and time.monotonic() - before < 30
    step = load(tmp_path / CHECKPOINT)["training"]["progress"]["step"]
    code, output = finish(start("--epochs", str(step // 4 + 1), ranks=False))
    assert code == 0, output


ONE_FAILS = """
import os, pathlib, runpy, sys, time
import torch.distributed as dist

joining, join = pathlib.Path("joining"), dist.init_process_group
if os.environ["RANK"] == "1":
    while not joining.exists():
        time.sleep(0.1)
    time.sleep(0.5)
    sys.exit(2)


def announced(*arguments, **options):
    joining.touch()
    join(*arguments, **options)


dist.init_process_group = announced
runpy.run_path("TRAIN", run_name="__main__")
"""


def test_torchrun_process_that_fails_ends_another_that_waits_for_it(start, tmp_path, root):
    script = tmp_path / "one_fails.py"
    script.write_text(ONE_FAILS.replace("TRAIN", str(root / "train.py")))
    code, output = finish(start(script=script))
    assert code != 0 and (tmp_path / "joining").exists()
    assert "forcefully exiting" not in output  # torchrun kills a process that SIGTERM does not end within 30 seconds


def test_torchrun_signal_stops_all_at_one_step_with_a_checkpoint(start, tmp_path):
    process = start("--epochs", "100000")
    wait_for(tmp_path / CHECKPOINT)
    time.sleep(2)
    process.send_signal(signal.SIGTERM)
    code, output = finish(process)
    assert code != 0
    assert output.count("stopped in epoch") == 1
    progress = load(tmp_path / CHECKPOINT)["training"]["progress"]
    assert f"step {progress['step']}," in output
