"""Fixtures of all tests: tiny models, random generators, and recordings of the original programs."""

from __future__ import annotations

import functools
import io
import lzma
import os
import re
import runpy
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from nvae import summary
from nvae.config import config_from_dict
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.network import NVAE
from nvae.schema import ModelConfig

# One thread, also in the programs that tests start: on tiny tensors, more threads are slower.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["MPLBACKEND"] = "agg"  # no window on a developer's desktop

ROOT = Path(__file__).resolve().parent.parent

TINY_DVP = {
    "family": "dvp",
    "input_dimension": 8,
    "latents_per_scale": [1, 2],
    "latent_size": 2,
    "channels": 8,
    "encoder_blocks_per_scale": 1,
    "sampling_method": "bernoulli",
    "context_size": 3,
    "diffusion_steps": 4,
    "unet_blocks": 1,
}
TINY = {
    "channel_towers": 4,
    "number_of_scales": 2,
    "initial_splits_per_scale": 2,
    "latent_size": 2,
    "input_dimension": 8,
    "num_blocks_prepost": 1,
    "num_cells_per_block_prepost": 1,
    "cells_per_split_enc": 1,
    "cells_per_input_dec": 1,
}


@pytest.fixture(scope="session")
def root() -> Path:
    """The folder of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder with the recordings of the original programs; it is not part of the repository."""
    folder = ROOT.parent / "shared" / "reference"
    if not folder.is_dir():
        pytest.skip(f"the recordings of the original programs are not here ({folder})")
    return folder


@pytest.fixture(scope="session")
def recording() -> Callable[[str], dict[str, Any]]:
    """A function: a recording of an original program with random weights, by the name of its file in tests/data."""

    @functools.cache
    def recording(name: str) -> dict[str, Any]:
        content = lzma.decompress((ROOT / "tests" / "data" / f"{name}.pt.xz").read_bytes())
        return torch.load(io.BytesIO(content), weights_only=True)

    return recording


@pytest.fixture(scope="session")
def make_config() -> Callable[..., ModelConfig]:
    """A function: the config of a tiny model (four groups on two scales, 8x8 pixels), with some keys changed.

    A model of another family has only the size of the images in common.
    """

    def make(**changes: Any) -> ModelConfig:
        base = {"input_dimension": TINY["input_dimension"]} if "family" in changes else TINY
        return config_from_dict(base | changes, "the test's config")

    return make


@pytest.fixture
def resident() -> Callable[[Path], int]:
    """A function: the bytes of a memory-mapped file that count as memory of this process (Linux)."""

    def resident(file: Path) -> int:
        total, counts = 0, False
        for line in Path("/proc/self/smaps").read_text().splitlines():
            if "-" in line.split(" ", 1)[0]:  # the first line of a mapping
                counts = line.endswith(f" {file}")
            elif counts and line.startswith("Rss:"):
                total += 1024 * int(line.split()[1])
        return total

    return resident


@pytest.fixture
def config(make_config: Callable[..., ModelConfig]) -> ModelConfig:
    """The config of a tiny model."""
    return make_config()


@pytest.fixture(scope="session")
def make_model(make_config: Callable[..., ModelConfig]) -> Callable[..., HierarchicalVAE]:
    """A function: a tiny model in evaluation mode, with some keys of its config changed and the same weights always.

    Batch norms and weight norms get random values too: at their initial ones and zeros a mistake could hide.
    """

    def make(seed: int = 0, **changes: Any) -> HierarchicalVAE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = NVAE(make_config(**changes))
            for module in model.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
                    torch.nn.init.normal_(module.bias, std=0.2)
                    module.running_mean.normal_(std=0.2)
                    module.running_var.uniform_(0.5, 1.5)
        return model.to(memory_format=torch.channels_last).eval()

    return make


@pytest.fixture(scope="session")
def make_dvp() -> Callable[..., HierarchicalVAE]:
    """A function: a tiny DVP-VAE in evaluation mode, with some keys of its config changed: three groups on two scales.

    Its weights are random, also those that are zero at first.
    """

    def make(**changes: Any) -> HierarchicalVAE:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_model(config_from_dict(TINY_DVP | changes, "the test's config"))
            model.calibrate(torch.randint(0, 256, (20, 3, 8, 8), dtype=torch.uint8))
            for parameter in model.parameters():
                if not parameter.any():
                    torch.nn.init.normal_(parameter, std=0.1)
        return model.eval()

    return make


@pytest.fixture(scope="session", autouse=True)
def _cache_of_the_tests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing is left in the cache folder of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NVAE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _cost_of_an_architecture_is_counted_once() -> Iterator[None]:
    """Each start of a training counts the cost of its network, which takes longer than some steps."""
    count, costs = summary.cost_per_image, {}

    def count_once(config: ModelConfig) -> summary.Cost:
        network = config.model_dump_json(exclude={"dataset", "training_parameters"})
        key = network, config.training_parameters.use_tensor_checkpoints
        if key not in costs:
            costs[key] = count(config)
        return costs[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(summary, "cost_per_image", count_once)
        yield


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training draws no pictures, which take more time than its steps; `training/test_loop.py` tests them."""
    from nvae.training import run_output

    for name in ("pictures", "film", "page"):
        monkeypatch.setattr(run_output.RunOutput, name, lambda *arguments, **options: None)
    monkeypatch.setattr(run_output, "draw_data", lambda *arguments: None)


@pytest.fixture
def generator() -> torch.Generator:
    """A new random generator with the same seed in every test."""
    return torch.Generator().manual_seed(0)


# ------------------------------------------------------------------------------------------ the scripts, as they are

COMMANDS_ON_A_DEVICE = ("evaluate", "interpolate", "reconstruct")


class Result(NamedTuple):
    """The exit code and the output of a command."""

    code: int
    out: str
    error: str

    def assert_refused(self, pattern: str) -> None:
        """Assert exit code 2 and one line of error text that matches the pattern."""
        assert self.code == 2, self
        assert re.search(pattern, self.error), self.error
        assert "Traceback" not in self.error
        assert len(self.error.strip().splitlines()) == 1


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def command(
    root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """A function that runs a script, or with "-m" a command of the package, in this process, on the CPU."""

    def command(script: str, *arguments: Any) -> Result:
        path = str(root / script)
        on_a_device = script != "-m" or arguments[:1] in [(name,) for name in COMMANDS_ON_A_DEVICE]
        device = ["--device", "cpu"] if on_a_device and "--device" not in arguments else []
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments), *device])
        with pytest.raises(SystemExit) as exit:
            if script == "-m":
                runpy.run_module("nvae", run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(path, run_name="__main__")
        output = capsys.readouterr()
        return Result(exit.value.code or 0, output.out, output.err)

    return command


# ----------------------------------------------------------------------------------------------- processes of their own

MARK = "NVAE_TEST_PROCESS"  # an environment variable, which the children of a process inherit


def kill_marked(mark: str) -> None:
    """Kill every process that has the mark in its environment, also in another session or without a parent (Linux)."""
    for environment in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # of another user, or just ended
            if f"{MARK}={mark}".encode() in environment.read_bytes().split(b"\0"):
                os.kill(int(environment.parent.name), signal.SIGKILL)


@pytest.fixture
def start_process(root: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """A function that starts Python with some arguments, with pipes as standard input and output.

    It imports this repository's package. What still runs at the end of the test is killed, with its children, also if
    the test fails.
    """
    mark, started = secrets.token_hex(8), []

    def start_process(*arguments: object, **options: Any) -> subprocess.Popen[str]:
        environment = os.environ | {"PYTHONPATH": str(root), MARK: mark}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        command = [sys.executable, *map(str, arguments)]
        started.append(subprocess.Popen(command, env=environment, **pipes | options))
        return started[-1]

    yield start_process
    for process in started:
        process.kill()
    kill_marked(mark)
    for process in started:
        process.wait()
        for pipe in filter(None, (process.stdin, process.stdout, process.stderr)):
            with suppress(OSError):  # what was never written to a process that has ended
                pipe.close()


@pytest.fixture(scope="session")
def wait_until() -> Callable[..., None]:
    """A function that waits until a condition holds, and fails if the process ends before."""

    def wait_until(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
        while not condition():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)

    return wait_until
