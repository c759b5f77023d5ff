"""Break training and files in many ways, and count what happens: python3 benchmarks/robustness.py

Every line of the result is a kind of attack with its counts. "lost", "traceback", "hang", "executed", "wrong weights"
and "different from the twin" must be absent. A short version runs in the test suite.
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
from pathlib import Path
from typing import Any

import torch

from nvae.checkpoint import CheckpointError, load
from nvae.config import ConfigError, parse_config
from nvae.errors import UserError
from nvae.models.families import build_model

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
    """Runs of the small config in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "small.yaml").write_text(CONFIG)
        self.checkpoint = folder / "saved_weights" / "small.checkpoint"
        self.result = folder / "saved_weights" / "final_result_small.model"

    def start(self, file_limit: int | None = None) -> subprocess.Popen[str]:
        """Start or continue the training. file_limit: the largest size of a file in bytes, like a disk that is full."""

        def limit() -> None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))

        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        return subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), "small.yaml", "--device", "cpu"],
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            preexec_fn=limit if file_limit else None,
        )

    def finish(self) -> str:
        """Train to the end; return the output."""
        process = self.start()
        output, _ = process.communicate(timeout=600)
        if process.returncode:
            raise AssertionError(f"exit code {process.returncode}:\n{output}")
        return output

    def final(self) -> dict[str, torch.Tensor]:
        return load(self.result)["weights"]

    def clear(self) -> None:
        for name in FOLDERS:
            shutil.rmtree(self.folder / name, ignore_errors=True)


@contextlib.contextmanager
def new_runs() -> Iterator[Runs]:
    with tempfile.TemporaryDirectory() as folder:
        yield Runs(Path(folder))


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# ------------------------------------------------------------------------------------------------- interrupted runs


def interrupted(count: int, numbers: list[signal.Signals], chooser: random.Random) -> Counter[str]:
    """Interrupt runs at random moments; each finished run must equal its uninterrupted twin."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        start = time.monotonic()
        runs.finish()
        duration, twin = time.monotonic() - start, runs.final()
        runs.clear()
        while counts["interruptions"] < count:
            process = runs.start()
            time.sleep(chooser.uniform(0.2, 0.9) * duration)
            if process.poll() is None:
                number = chooser.choice(numbers)
                process.send_signal(number)
                counts["interruptions"] += 1
                before = time.monotonic()
                output, _ = process.communicate(timeout=600)
                counts["hang"] += time.monotonic() - before > LIMIT
                counts["traceback"] += "Traceback" in output
                unfinished = list(runs.folder.rglob("*.unfinished"))
                counts["inside a save"] += number == signal.SIGKILL and bool(unfinished)
                continue
            output, _ = process.communicate()
            counts["traceback"] += "Traceback" in output
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


def full_disks(count: int, chooser: random.Random) -> Counter[str]:
    """Limit the size of files to a random number of bytes, as a full disk or a quota does."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        runs.finish()
        twin, size = runs.final(), runs.checkpoint.stat().st_size
        for _ in range(count):
            runs.clear()
            process = runs.start(chooser.randrange(1, 2 * size))
            output, _ = process.communicate(timeout=600)
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


def hostile_files(chooser: random.Random) -> Counter[str]:
    """Load thirty files that were made to run code, to take the memory, or to confuse."""
    counts: Counter[str] = Counter()
    with new_runs() as runs:
        runs.finish()
        content = torch.load(runs.checkpoint, weights_only=True)
        marker, file = runs.folder / "executed", runs.folder / "hostile.checkpoint"
        for write in _hostile_writers(content, marker, runs.checkpoint):
            if file.is_dir():
                file.rmdir()
            file.unlink(missing_ok=True)
            write(file)
            counts["files"] += 1
            before = time.monotonic()
            try:
                read = load(file)
                build_model(read["config"]).load_state_dict(read["weights"])
                counts["read"] += 1
            except (UserError, RuntimeError) as error:
                counts["refused" if isinstance(error, UserError) else "traceback"] += 1
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


def generated_configs(count: int) -> Counter[str]:
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

    @seed(0)
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


def attacks(share: float) -> dict[str, Callable[[], Counter[str]]]:
    """Return the attacks by name. share: of the full number of each."""

    def number(full: int) -> int:
        return max(1, round(share * full))

    def chooser() -> random.Random:
        return random.Random(0)

    stops = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]
    return {
        "SIGKILL": lambda: interrupted(number(200), [signal.SIGKILL], chooser()),
        "SIGTERM, SIGINT, SIGHUP": lambda: interrupted(number(50), stops, chooser()),
        "full disks": lambda: full_disks(number(50), chooser()),
        "damaged checkpoints": lambda: damaged_checkpoints(number(500), chooser()),
        "generated YAML": lambda: generated_configs(number(2000)),
        "hostile files": lambda: hostile_files(chooser()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("attacks", nargs="*", help="some of the attacks by name (default: all)")
    parser.add_argument("--share", type=float, default=1.0, help="part of the full numbers, such as 0.1 (default: 1)")
    options = parser.parse_args()
    for name, attack in attacks(options.share).items():
        if not options.attacks or name in options.attacks:
            start = time.monotonic()
            counts = {key: value for key, value in attack().items() if value}
            print(f"{name}: {json.dumps(counts)} in {time.monotonic() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
