"""Check and measure training and sampling on one GPU, in one call of at most eight minutes.

    python3 benchmarks/gpu.py [--minutes 8] [--json gpu.json]
    python3 benchmarks/gpu.py --device cpu --quick --minutes 1    # a test of this program

Needs PyTorch, numpy, pyyaml and pydantic, and no data set: the images are random. Pillow, tqdm and filelock, which the
package imports, are replaced by empty stand-ins where they are missing: nothing here uses them.

Every part is guarded: an error is a line of the table, and the other parts go on. The parts are ordered by importance;
those that the time is too short for are named. Prints a Markdown table; the JSON file is rewritten after every part.
"""

from __future__ import annotations

import argparse
import gc
import json
import lzma
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import torch
from clock import synchronize
from provenance import commit, processor
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


class StandIns(MetaPathFinder, Loader):
    """Imports packages that the measured code names but does not use, where they are missing."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(name, self, is_package=True) if name.split(".")[0] in ("PIL", "tqdm", "filelock") else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock()

    def exec_module(self, module: Any) -> None:
        """Do nothing: a stand-in has every name."""


sys.meta_path.append(StandIns())  # after the finders of what is installed

from nvae.config import config_from_dict, load_config  # noqa: E402
from nvae.data.images import Data  # noqa: E402
from nvae.interop.importer import import_checkpoint  # noqa: E402
from nvae.models.families import build_model  # noqa: E402
from nvae.models.hierarchy import FromNoise, FromPosterior  # noqa: E402
from nvae.objective import elbo_terms  # noqa: E402
from nvae.system.devices import choose_device, set_deterministic, set_fast_defaults  # noqa: E402
from nvae.system.seeds import seeded  # noqa: E402
from nvae.training.compiled import FIRST_CALLS  # noqa: E402
from nvae.training.position import Position  # noqa: E402
from nvae.training.resuming import resume_training, save_training  # noqa: E402
from nvae.training.trainer import Phase, Scalars, Trainer  # noqa: E402

RECORDINGS = ("nvlabs_bernoulli", "nvlabs_logistic_mixture_flows", "mgp123_logistic_mixture", "mgp123_gaussian_flows")
TOLERANCES = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # of the largest number of a recording; float32 without TF32
FAMILIES = ("nvae_small", "vdvae_small", "ladder_mnist", "dvp_mnist_evening")
STEP_NAMES = {False: "plain", "auto": "recorded", True: "compiled"}
PART_SECONDS = 150  # at most, so that one compilation does not take the time of all
IMAGES = 50_000  # of the epochs that the schedules see
# Keys of a network that takes a moment.
QUICK = ["channel_towers=8", "num_blocks_prepost=1", "input_dimension=16", "dataset.training_images=8"]


# ------------------------------------------------------------------------------------------------------------- trainers


def make_trainer(
    name: str, device: torch.device, batch: int, half: bool = False, compile: bool | str = "auto", keys: Any = ()
) -> tuple[Trainer, Tensor]:
    """Return a trainer of a config of this project, and random images, uint8 (batch, C, S, S), on the device."""
    values = {"batch_size": batch, "half_precision": half, "compile": compile, "gradient_accumulation": 1}
    overrides = [*keys, *(f"training_parameters.{key}={value}" for key, value in values.items())]
    config = load_config(name, overrides)
    shape = (batch, config.image_channels, config.input_dimension, config.input_dimension)
    images_u8 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(config, Data(images_u8, images_u8[:1]), device)
    trainer.position = Position(trainer.schedule, IMAGES)
    return trainer, images_u8.to(device)


def largest_difference(a: Trainer, b: Trainer) -> float:
    """Return the largest difference between the weights of two trainers."""
    pairs = zip(a.model.state_dict().values(), b.model.state_dict().values(), strict=True)
    return max((x.double() - y.double()).abs().max().item() for x, y in pairs)


@contextmanager
def exact_algorithms() -> Iterator[None]:
    """Use algorithms that give the same numbers every time, in full float32."""
    set_deterministic(True)
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = True
        set_deterministic(False)


# ---------------------------------------------------------------------------------------------------------- correctness


@torch.no_grad()
def check_recording(name: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Compare the KL and the log-likelihood of a posterior pass with a recording of an original program."""
    content = lzma.decompress((ROOT / "tests" / "data" / f"{name}.pt.xz").read_bytes())
    recorded = torch.load(BytesIO(content), weights_only=True)
    checkpoint = {"epoch": 4, "state_dict": recorded["state_dict"], "optimizer": {"state": {}}}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        if "args" in recorded:
            torch.save(checkpoint | {"args": argparse.Namespace(**recorded["args"])}, path)
            model = import_checkpoint(path).model
        else:
            torch.save(checkpoint | {"model_arch": "elsewhere/x.yaml"}, path)
            model = import_checkpoint(path, config_from_dict(recorded["config"], name)).model
    model = model.to(device).eval()
    images, padding = recorded["x"].to(device), model.config.padding
    noise = [group.to(device) for group in recorded["noise"]]
    with torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext():
        # Recorded images include the padding, which the model would add.
        output = model.top_down(FromPosterior(model.encoder(images), noise), len(images))
    side = images.shape[-1]
    terms = elbo_terms(output, images[..., padding : side - padding, padding : side - padding])
    expected, worst = recorded["eval"], 0.0
    ours = {"kl": terms.kl, "log_likelihood": terms.log_likelihood, "reconstruction": -terms.log_likelihood}
    for key in ours.keys() & expected.keys():
        error = (ours[key].cpu().float() - expected[key].float()).abs().max() / expected[key].abs().max()
        worst = max(worst, error.item())
    return {"worst_relative_error": worst, "passed": worst <= TOLERANCES[dtype]}


def check_family(name: str, device: torch.device, keys: Any) -> dict[str, Any]:
    """Compare the loss and the gradient of a step with those of the CPU, from the same noise."""
    cpu, results = torch.device("cpu"), []
    for where in (cpu, device):
        trainer, images_u8 = make_trainer(name, cpu, 4, compile=False, keys=keys)
        images, targets = (x.to(where) for x in trainer.inputs_and_targets(images_u8))
        trainer = make_trainer(name, where, 4, compile=False, keys=keys)[0]
        noise = trainer.model.train().draw_noise(4, seeded(0, "benchmark"), posterior=True)
        scalars = Scalars(*(torch.full((), value, device=where) for value in (0.5, 0.01, 0.0, 0.0)))
        phase = Phase(False, is_balanced=True, is_regularized=bool(trainer.regularizers), is_weighted=False)
        values = trainer.set_gradient(phase, images, targets, noise, scalars)
        results.append({key: values[key].item() for key in ("loss", "gradient_norm")})
    errors = {key: abs(results[1][key] / value - 1) for key, value in results[0].items()}
    return {"worst_relative_error": max(errors.values()), "passed": max(errors.values()) < 1e-3}


def compared(difference: float, noise: float, limit: float = 0.0) -> dict[str, Any]:
    """Return a result: the difference of two trainings may be that of two equal ones, about.

    noise: the difference of two equal ones, which is not 0 where an operation adds in any order.
    """
    passed = difference <= max(10 * noise, limit)
    return {"largest_difference": difference, "plain_twice_difference": noise, "passed": passed}


def check_steps(name: str, device: torch.device, compile: bool | str, half: bool, keys: Any) -> dict[str, Any]:
    """Take the same steps plain, plain again and another way; compare the weights. A recording changes no number."""
    trainers, skipped = [], 0
    for way in (False, False, compile):
        trainer, images_u8 = make_trainer(name, device, 4, half, way, keys)
        skipped += sum(trainer.step(images_u8)["skipped"] for _ in range(FIRST_CALLS + 3))
        trainers.append(trainer)
    plain, again, other = trainers
    differences = largest_difference(plain, other), largest_difference(plain, again)
    return compared(*differences, 0.01 if compile is True else 0.0) | {"skipped": skipped}


def check_resume(name: str, device: torch.device, keys: Any) -> dict[str, Any]:
    """Compare a training that was saved and continued with uninterrupted ones."""
    steps = FIRST_CALLS + 2
    (whole, images_u8), *others = (make_trainer(name, device, 4, keys=keys) for _ in range(4))
    again, first, second = (trainer for trainer, _ in others)

    def advance(trainer: Trainer, count: int) -> None:
        for _ in range(count):
            trainer.step(images_u8)

    with tempfile.TemporaryDirectory() as folder:
        advance(first, steps)
        save_training(first, Path(folder) / "a.checkpoint")
        resume_training(second, Path(folder) / "a.checkpoint")
    for trainer, count in ((whole, 2 * steps), (again, 2 * steps), (second, steps)):
        advance(trainer, count)
    return compared(largest_difference(whole, second), largest_difference(whole, again))


# ---------------------------------------------------------------------------------------------------------------- speed


def seconds_per_call(work: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Return the median time of a call, from at least 3 calls and at least `seconds`."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < seconds:
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def kernels_of(work: Callable[[], object], device: torch.device) -> dict[str, Any]:
    """Count the kernels of a call, and measure the share of its time without a kernel."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    synchronize(device)
    with profile(activities=[ProfilerActivity.CUDA]) as profiler:
        work()
        synchronize(device)
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    )
    if not spans:
        return {"kernels": 0}
    busy, end = 0.0, spans[0][0]
    for start, stop in spans:
        busy, end = busy + max(0.0, stop - max(start, end)), max(end, stop)
    return {"kernels": len(spans), "idle_share": 1 - busy / (end - spans[0][0]), "kernel_ms": busy / 1000}


def measure_steps(
    name: str, device: torch.device, batch: int, half: bool, compile: bool | str, keys: Any, seconds: float
) -> dict[str, Any]:
    """Measure training steps: speed, memory, kernels."""
    trainer, images_u8 = make_trainer(name, device, batch, half, compile, keys)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    skipped = sum(trainer.step(images_u8)["skipped"] for _ in range(FIRST_CALLS + 2))
    synchronize(device)
    prepared = time.perf_counter() - start
    step = seconds_per_call(lambda: trainer.step(images_u8), device, seconds)
    row = {"images_per_second": batch / step, "ms": 1000 * step, "first_steps_s": prepared, "skipped": skipped}
    if device.type == "cuda":
        peaks = torch.cuda.max_memory_allocated(device), torch.cuda.max_memory_reserved(device)
        row |= dict(zip(("peak_mib", "reserved_mib"), (peak / 2**20 for peak in peaks), strict=True))
    return row | kernels_of(lambda: trainer.step(images_u8), device)


@torch.no_grad()
def measure_sampling(
    name: str, device: torch.device, batch: int, half: bool, keys: Any, seconds: float
) -> dict[str, Any]:
    """Measure mean images of top-down passes from the prior."""
    model = build_model(load_config(name, [*keys])).to(device).eval()
    noise = model.draw_noise(batch, seeded(0, "benchmark"))

    def sample() -> None:
        with torch.autocast(device.type, torch.bfloat16) if half else nullcontext():
            output = model.top_down(FromNoise(noise, 0.7), batch, mean_only=True)
        output.px_z.mean()

    sample()
    per_call = seconds_per_call(sample, device, seconds)
    return {"images_per_second": batch / per_call, "ms": 1000 * per_call} | kernels_of(sample, device)


# ---------------------------------------------------------------------------------------------------------------- parts


def parts(device: torch.device, quick: bool) -> Iterator[tuple[str, Callable[[], dict[str, Any]]]]:
    """Yield names and functions of the parts, the most important ones first."""
    keys, seconds = (QUICK, 0.0) if quick else ((), 2.0)

    def step(name: str, batch: int, half: bool, compile: bool | str) -> tuple[str, Callable[[], dict[str, Any]]]:
        precision = "bfloat16" if half else "float32"
        title = f"{name}, batch {batch}, {precision}, {STEP_NAMES[compile]}"
        return title, lambda: measure_steps(name, device, batch, half, compile, keys, seconds)

    def sampling(name: str, batch: int, half: bool) -> tuple[str, Callable[[], dict[str, Any]]]:
        title = f"{name}, {batch} samples, {'bfloat16' if half else 'float32'}"
        return title, lambda: measure_sampling(name, device, batch, half, keys, seconds)

    def exact(check: Callable[..., dict[str, Any]], *arguments: Any) -> Callable[[], dict[str, Any]]:
        def run() -> dict[str, Any]:
            with exact_algorithms():
                return check(*arguments)

        return run

    for dtype in TOLERANCES:
        for name in RECORDINGS[: 1 if quick else None]:
            title = f"recording {name}, {str(dtype).removeprefix('torch.')}, to {TOLERANCES[dtype]:g}"
            yield title, exact(check_recording, name, device, dtype)
    yield "plain and recorded steps, nvae_small", exact(check_steps, "nvae_small", device, "auto", False, keys)
    yield "continued and uninterrupted steps, nvae_small", exact(check_resume, "nvae_small", device, keys)
    if quick:
        yield step("nvae_small", 2, False, False)
        yield sampling("nvae_small", 2, False)
        return
    for compile in ("auto", False):
        yield step("nvae_mnist", 400, True, compile)
    for name in FAMILIES:
        yield f"loss and gradient of a CPU, {name}", exact(check_family, name, device, ())
        yield f"plain and recorded steps, {name}, bfloat16", exact(check_steps, name, device, "auto", True, ())
    for name, batch in (("vdvae_cifar10", 32), ("nvae_cifar10", 32), ("quickstart", 32), ("nvae_mnist", 144)):
        yield step(name, batch, True, "auto")
        yield step(name, batch, True, False)
    for name in ("nvae_mnist", "vdvae_cifar10", "nvae_cifar10", "quickstart"):
        yield sampling(name, 64, True)
    yield "plain and compiled steps, nvae_small, to 0.01", exact(check_steps, "nvae_small", device, True, False, ())
    yield step("quickstart", 32, True, True)
    for name, batch in (("nvae_mnist", 400), ("vdvae_cifar10", 32), ("nvae_cifar10", 32), ("quickstart", 32)):
        yield step(name, batch, False, "auto")
        yield step(name, batch, False, False)
        yield sampling(name, 64, False)
    for name, batch in (("vdvae_cifar10", 32), ("nvae_mnist", 400), ("nvae_cifar10", 32)):
        yield step(name, batch, True, True)


def guarded(function: Callable[[], dict[str, Any]], limit: float) -> dict[str, Any]:
    """Return the result of a part, or its error; a part that exceeds `limit` seconds is stopped."""

    def stop(*arguments: object) -> None:
        raise TimeoutError("stopped: out of time")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, limit)
    start = time.monotonic()
    try:
        result = function()
    except Exception as error:  # of any part: the others go on
        result = {"error": f"{type(error).__name__}: {str(error).splitlines()[0][:300] if str(error) else ''}"}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return result | {"part_s": time.monotonic() - start}


COLUMNS = {
    "passed": "passed",
    "images_per_second": "images/s",
    "ms": "ms",
    "first_steps_s": "first steps, s",
    "peak_mib": "peak MiB",
    "reserved_mib": "reserved MiB",
    "kernels": "kernels",
    "kernel_ms": "kernels, ms",
    "idle_share": "time without a kernel",
    "skipped": "skipped",
    "note": "note",
}


def cell(key: str, row: dict[str, Any]) -> str:
    """Return a cell of the table as a text."""
    if key == "note":
        errors = [name for name in row if name.endswith(("_error", "_difference"))]
        return row.get("error") or ", ".join(f"{name.replace('_', ' ')} {row[name]:.2g}" for name in errors)
    value = row.get(key, "")
    if not isinstance(value, float):
        return str(value)
    return f"{value:.0%}" if key == "idle_share" else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"


def machine(device: torch.device) -> dict[str, str]:
    """Return what a figure needs beside it: machine, versions, commit."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
    return {
        "machine": name,
        "torch": torch.__version__,
        "cuda": str(torch.version.cuda),
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device")
    parser.add_argument("--minutes", type=float, default=8.0, help="of all parts together (default: 8)")
    parser.add_argument("--quick", action="store_true", help="a tiny network, as a test of this program")
    parser.add_argument("--json", type=Path, default=Path("gpu.json"), help="the file of all numbers")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    device = choose_device(options.device)
    warnings.filterwarnings("ignore", message=".*deterministic.*")
    set_fast_defaults()
    facts, rows = machine(device), []
    for name, function in parts(device, options.quick):
        left = end - time.monotonic()
        result = guarded(function, min(left, PART_SECONDS)) if left > 5 else {"error": "not measured: out of time"}
        rows.append({"part": name} | result)
        options.json.write_text(json.dumps(facts | {"rows": rows}, indent=1) + "\n")
        print(f"{name}: {json.dumps(result)}", file=sys.stderr, flush=True)
    print(", ".join(f"{key} {value}" for key, value in facts.items()) + "\n")
    print("| part | " + " | ".join(COLUMNS.values()) + " |\n" + "| --- " * (len(COLUMNS) + 1) + "|")
    for row in rows:
        print(f"| {row['part']} | " + " | ".join(cell(key, row) for key in COLUMNS) + " |")


if __name__ == "__main__":
    main()
