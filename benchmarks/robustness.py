"""Break training and files in many ways, and count what happens: python3 benchmarks/robustness.py

Every line of the result is a kind of attack with its counts. "lost", "traceback", "hang", "executed", "wrong weights",
"no twin" and "different from the twin" must be absent. All of them take about three hours on two cores; --jobs shares
the attacks among processes. A short version runs in the test suite.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

from nvae.checkpoint import CheckpointError, load, load_model
from nvae.config import ConfigError, parse_config
from nvae.system.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
CONFIG = """channel_towers: 4
number_of_scales: 2
initial_splits_per_scale: 1
exponential_scaling: 1
latent_size: 2
input_dimension: 8
num_blocks_prepost: 1
num_cells_per_block_prepost: 1
cells_per_split_enc: 1
cells_per_input_dec: 1
dataset: {name: toy_faces, training_images: 64, validation_images: 8, horizontal_flip: true}
training_parameters:
  {batch_size: 8, epochs: 40, epochs_per_checkpoint: 8, evaluation_samples: 0, ema_decay: 0.9}
"""
LIMIT = 20.0  # seconds within which a process must end after a signal, or refuse a file
FOLDERS = ("saved_weights", "runs")


class Runs:
    """Runs of one config in a folder of their own."""

    def __init__(self, folder: Path, config: str = CONFIG) -> None:
        self.folder = folder
        (folder / "small.yaml").write_text(config)
        self.checkpoint = folder / "saved_weights" / "small.checkpoint"
        self.result = folder / "saved_weights" / "final_result_small.model"
        self.output = folder / "output.txt"

    def start(self, file_limit: int | None = None) -> subprocess.Popen[bytes]:
        """Start or continue the training. file_limit: the largest size of a file in bytes, like a disk that is full."""

        def prepare() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):  # a background process inherits that they are ignored
                signal.signal(number, signal.SIG_DFL)
            if file_limit:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        with self.output.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, str(ROOT / "train.py"), "small.yaml", "--device", "cpu"],
                cwd=self.folder,
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=prepare,
            )

    def ended(self, process: subprocess.Popen[bytes], timeout: float = 600) -> str:
        """Wait until the process has ended; return its output."""
        process.wait(timeout)
        return self.output.read_text()

    def finish(self, timeout: float = 600) -> str:
        """Train to the end; return the output."""
        process = self.start()
        output = self.ended(process, timeout)
        if process.returncode:
            raise AssertionError(f"exit code {process.returncode}:\n{output}")
        return output

    def final(self) -> dict[str, torch.Tensor]:
        return load(self.result)["weights"]

    def clear(self) -> None:
        for name in FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)


@contextlib.contextmanager
def new_runs(config: str = CONFIG) -> Iterator[Runs]:
    with tempfile.TemporaryDirectory() as folder:
        yield Runs(Path(folder), config)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------- interrupted runs


def interrupt(runs: Runs, process: subprocess.Popen[bytes], number: signal.Signals) -> Counter[str]:
    """Send the signal, wait for the end, and count what went wrong."""
    process.send_signal(number)
    before = time.monotonic()
    output = runs.ended(process)
    return Counter(
        {
            "interruptions": 1,
            "hang": time.monotonic() - before > LIMIT,
            "traceback": "Traceback" in output,
            "inside a save": number == signal.SIGKILL and any(runs.folder.rglob("*.unfinished")),
        }
    )


def wait_for_a_moment(runs: Runs, process: subprocess.Popen[bytes], duration: float, chooser: random.Random) -> None:
    """Wait for a random part of the duration of a run, in seconds."""
    time.sleep(chooser.uniform(0.2, 0.9) * duration)


def interrupted(count: int, numbers: list[signal.Signals], chooser: random.Random) -> Counter[str]:
    """Interrupt runs at random moments, by each signal in turn; each finished run must equal its uninterrupted twin."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        start = time.monotonic()
        runs.finish()
        duration, twin = time.monotonic() - start, runs.final()
        runs.clear()
        while counts["interruptions"] < count:
            process = runs.start()
            wait_for_a_moment(runs, process, duration, chooser)
            if process.poll() is None:
                counts += interrupt(runs, process, numbers[counts["interruptions"] % len(numbers)])
                continue
            counts["traceback"] += "Traceback" in runs.ended(process)
            if process.returncode:
                counts["lost"] += 1
            else:
                counts["finished"] += 1
                counts["different from the twin"] += not equal(runs.final(), twin)
            runs.clear()
        runs.finish()
        counts["finished"] += 1
        counts["different from the twin"] += not equal(runs.final(), twin)
        counts["leftovers"] += len(list(runs.folder.rglob("*.unfinished")))
    return counts


def long_run(images: int, chooser: random.Random) -> Counter[str]:
    """Train toy_faces_64 twice at the same time, one run interrupted every few minutes; the results must be equal."""
    config = yaml.safe_load((ROOT / "model_configs" / "toy_faces_64.yaml").read_text())
    config["dataset"]["training_images"] = images // config["training_parameters"]["epochs"]
    config["training_parameters"]["images_per_checkpoint"] = max(1, images // 20)
    numbers = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    counts: Counter[str] = Counter()
    with new_runs(yaml.safe_dump(config)) as plain, new_runs(yaml.safe_dump(config)) as broken:
        start = time.monotonic()
        twin, process = plain.start(), broken.start()
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(chooser.uniform(40, 480))
                    break
                number = chooser.choice(numbers)
                counts += interrupt(broken, process, number)
                print(f"{time.monotonic() - start:.0f} s: {number.name}, exit code {process.returncode}", flush=True)
                process = broken.start()
            counts["minutes of the interrupted run"] = round((time.monotonic() - start) / 60)
            counts["traceback"] += "Traceback" in broken.ended(process)
            counts["lost"] += process.returncode != 0
            plain.ended(twin, 6 * 3600)
            counts["minutes of its twin"] = round((time.monotonic() - start) / 60)
            counts["no twin"] += twin.returncode != 0
            if not counts["lost"] and not counts["no twin"]:
                counts["finished"] += 1
                counts["different from the twin"] += not equal(broken.final(), plain.final())
        finally:
            twin.kill()
            process.kill()
    return counts


def full_disks(count: int, chooser: random.Random) -> Counter[str]:
    """Limit the size of files to a random number of bytes, as a full disk or a quota does."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        runs.finish()
        twin, size = runs.final(), runs.checkpoint.stat().st_size
        for _ in range(count):
            runs.clear()
            process = runs.start(chooser.randrange(1, 2 * size))
            output = runs.ended(process)
            counts["disks"] += 1
            counts[f"exit code {process.returncode}"] += 1
            counts["traceback"] += "Traceback" in output
            if runs.checkpoint.exists():
                try:
                    load(runs.checkpoint)
                except CheckpointError:
                    counts["lost"] += 1
            runs.finish()
            counts["different from the twin"] += not equal(runs.final(), twin)
    return counts


# --------------------------------------------------------------------------------------------------- damaged files


def damaged_checkpoints(count: int, chooser: random.Random) -> Counter[str]:
    """Flip bits, cut, overwrite and lengthen a checkpoint: either refused, or read as what was saved."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        runs.finish()
        whole, expected = runs.checkpoint.read_bytes(), load(runs.checkpoint)
        directory = whole.rfind(b"PK\x05\x06") - 6000
        for index in range(count):
            content = bytearray(whole)
            kind = index % 5
            if kind < 3:  # one bit: anywhere, in the directory, at the beginning
                places = (range(len(content)), range(max(0, directory), len(content)), range(4096))[kind]
                content[chooser.choice(places)] ^= 1 << chooser.randrange(8)
            elif kind == 3:
                del content[chooser.randrange(len(content)) :]
            else:
                first = chooser.randrange(len(content))
                content[first : first + 4096] = chooser.randbytes(4096)
            runs.checkpoint.write_bytes(content)
            counts["files"] += 1
            before = time.monotonic()
            try:
                read = load(runs.checkpoint)
            except CheckpointError:
                counts["refused"] += 1
            except Exception:
                counts["traceback"] += 1
            else:
                same = equal(read["weights"], expected["weights"]) and read["config"] == expected["config"]
                counts["read as saved" if same else "wrong weights"] += 1
            counts["hang"] += time.monotonic() - before > LIMIT
    return counts


class Evil:
    """An object whose pickle runs a command."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.marker}",)


def hostile_files() -> Counter[str]:
    """Load thirty files that were made to run code, to take the memory, or to confuse."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        runs.finish()
        content = torch.load(runs.checkpoint, weights_only=True)
        del content["digest"]  # as in files of earlier versions, so that not the digest refuses what was changed
        marker, file = runs.folder / "executed", runs.folder / "hostile.checkpoint"
        for write in _hostile_writers(content, marker, runs.checkpoint):
            if file.is_dir():
                file.rmdir()
            file.unlink(missing_ok=True)
            write(file)
            counts["files"] += 1
            before = time.monotonic()
            try:
                load_model(file)
                counts["read"] += 1
            except UserError:
                counts["refused"] += 1
            except Exception:
                counts["traceback"] += 1
            counts["hang"] += time.monotonic() - before > LIMIT
            counts["executed"] += marker.exists()
    return counts


def _hostile_writers(content: dict[str, Any], marker: Path, sound: Path) -> list[Callable[[Path], object]]:
    def changed(**parts: Any) -> Callable[[Path], object]:
        return lambda file: torch.save(content | parts, file)

    def config(**keys: Any) -> Callable[[Path], object]:
        return changed(config=content["config"] | keys)

    def zipped(names: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Callable[[Path], object]:
        def write(file: Path) -> None:
            with zipfile.ZipFile(file, "w", compression) as archive:
                for name, data in names.items():
                    archive.writestr(name, data)

        return write

    weights = content["weights"]
    first = next(iter(weights))
    bomb = zipped({"a/data.pkl": pickle.dumps({}), "a/data/0": bytes(2**28)}, zipfile.ZIP_DEFLATED)
    raw = io.BytesIO()
    torch.save({"weights": torch.zeros(3)}, raw)
    return [
        lambda file: file.write_bytes(b""),
        lambda file: file.write_bytes(b"PK"),
        lambda file: file.write_bytes(b"\x80\x04."),
        lambda file: file.write_bytes(os.urandom(10_000)),
        lambda file: file.write_bytes(b"PK\x03\x04" + os.urandom(10_000)),
        lambda file: file.write_bytes(pickle.dumps(Evil(marker))),
        lambda file: file.write_bytes(raw.getvalue()),
        lambda file: file.mkdir(),
        lambda file: torch.save({"evil": Evil(marker)}, file),
        lambda file: torch.save(content | {"metadata": {"evil": Evil(marker)}}, file),
        zipped({"a/data.pkl": pickle.dumps(Evil(marker)), "a/version": b"3"}),
        zipped({"../../data.pkl": pickle.dumps({})}),
        bomb,
        changed(weights={first: torch.zeros(1).expand(10**9)}),
        changed(weights=weights | {first: torch.zeros(10**8).to_sparse()}),
        changed(weights=weights | {first: weights[first].to(torch.complex64)}),
        changed(weights=weights | {first: weights[first] * float("nan")}),
        changed(weights=weights | {first: torch.zeros(1, 1)}),
        changed(weights={}),
        changed(weights=[1, 2, 3]),
        changed(version=-1),
        changed(version=10**9),
        changed(version="2"),
        changed(format="other"),
        changed(metadata={"kl_per_group": ["x"]}),
        config(latent_size=10**9),
        config(input_dimension=10**6),
        config(initial_splits_per_scale=12_000),
        config(family="nothing"),
        config(channel_towers=None),
    ]


def generated_configs(count: int, chooser: random.Random) -> Counter[str]:
    """Parse YAML texts that hypothesis generates: refused with a ConfigError, or a valid config."""
    from hypothesis import HealthCheck, given, seed, settings
    from hypothesis import strategies as st

    counts: Counter[str] = Counter()
    base = [line for line in CONFIG.splitlines() if line and not line.startswith((" ", "training", "dataset"))]
    usual = dict(line.split(": ") for line in base)
    own = list(usual)
    keys = st.sampled_from([*own, "family", "style", "dataset", "training_parameters"])
    scalars = st.one_of(
        st.integers(-(10**20), 10**20), st.integers(0, 10), st.floats(), st.text(max_size=20), st.booleans(), st.none()
    )
    values = st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10) | keys, inner, max_size=3),
        max_leaves=6,
    )
    small = st.dictionaries(st.sampled_from(own), st.integers(0, 9), max_size=3)
    texts = st.one_of(
        st.text(max_size=200),
        small.map(lambda changed: "\n".join(f"{key}: {value}" for key, value in (usual | changed).items())),
        st.dictionaries(keys, values, max_size=4).map(
            lambda changed: "\n".join(
                [line for line in base if line.split(":")[0] not in changed]
                + [f"{key}: {json.dumps(value)}" for key, value in changed.items()]
            )
        ),
    )

    @seed(chooser.randrange(2**32))
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(texts)
    def check(text: str) -> None:
        counts["texts"] += 1
        before = time.monotonic()
        try:
            parse_config(text)
            counts["valid"] += 1
        except ConfigError as error:
            counts["refused"] += 1
            counts["control characters"] += not all(c.isprintable() for c in str(error))
        except Exception:
            counts["traceback"] += 1
        counts["hang"] += time.monotonic() - before > LIMIT

    check()
    return counts


# ----------------------------------------------------------------------------------------------------------- the table


class Attack(NamedTuple):
    """full: how many, of what the function counts. divisible: processes can share the number."""

    full: int
    run: Callable[[int, random.Random], Counter[str]]
    divisible: bool = True


STOPS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
ATTACKS = {
    "SIGKILL": Attack(200, lambda count, chooser: interrupted(count, [signal.SIGKILL], chooser)),
    "SIGTERM, SIGINT, SIGHUP": Attack(50, lambda count, chooser: interrupted(count, STOPS, chooser)),
    "full disks": Attack(50, full_disks),
    "damaged checkpoints": Attack(500, damaged_checkpoints),
    "generated YAML": Attack(2000, generated_configs),
    "hostile files": Attack(1, lambda count, chooser: hostile_files()),
    "long run": Attack(50_000, long_run, divisible=False),
}


def attack(name: str, count: int, seed: int) -> Counter[str]:
    return ATTACKS[name].run(count, random.Random(seed))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", help=f"some of the attacks by name (default: all): {'; '.join(ATTACKS)}")
    parser.add_argument("--share", type=float, default=1.0, help="part of the full numbers, such as 0.1 (default: 1)")
    parser.add_argument("--jobs", type=int, default=1, help="processes that share an attack (default: 1)")
    options = parser.parse_args()
    unknown = [name for name in options.attacks if name not in ATTACKS]
    if unknown or options.jobs < 1 or not options.share > 0:
        parser.error(f"unknown attacks: {unknown}" if unknown else "--jobs and --share must be above 0")
    with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as processes:
        for name in options.attacks or ATTACKS:
            start = time.monotonic()
            count = max(1, round(options.share * ATTACKS[name].full))
            jobs = min(options.jobs, count) if ATTACKS[name].divisible else 1
            shares = [count // jobs + (job < count % jobs) for job in range(jobs)]
            results = [processes.submit(attack, name, share, seed) for seed, share in enumerate(shares)]
            counts = sum((result.result() for result in results), Counter())
            print(f"{name}: {json.dumps(counts)} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
