"""The facts of a run as short texts, for the terminal and for the page: key figures, commands, evaluation."""

from __future__ import annotations

import math
import os
import shlex
from pathlib import Path
from typing import Any, NamedTuple

from nvae.config import available_configs, load_config
from nvae.schema import ModelConfig
from nvae.system.errors import UserError
from nvae.training.metrics import COLLAPSED_KL, duration_text
from nvae.training.report.record import EARLY_STOPPING, RunRecord, Validation


class Fact(NamedTuple):
    """A key figure: its name, its value, and a remark, which may be empty."""

    name: str
    value: str
    remark: str = ""


class Command(NamedTuple):
    """A command line and what it does."""

    purpose: str
    line: str


def number(value: float) -> str:
    """Return a number as a short text: three to five significant digits."""
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.3g}"


def config_line(record: RunRecord) -> str:
    """Return the config in one line; empty if it is not known."""
    config = record.config
    if config is None:
        return ""
    schedule, size = config.training_parameters, config.input_dimension
    return (
        f"{config.family}, {len(record.groups)} latent groups, {config.image_channels} x {size} x {size} pixels, "
        f"likelihood {config.sampling_method}, {schedule.optimizer}, batch size {schedule.batch_size}, "
        f"learning rate {schedule.learning_rate:g}"
    )


def data_line(record: RunRecord) -> str:
    """Return the data set, where it is, and the number of images of an epoch, as far as they are known."""
    parts = []
    if record.config is not None:
        parts.append(record.config.dataset.name)
        if path := getattr(record.config.dataset, "path", None):
            parts.append(f"from {path}")
    per_epoch = [line["images"] / line["epoch"] for line in record.metrics if line["epoch"] >= 1 and "images" in line]
    if per_epoch:
        parts.append(f"with {per_epoch[-1]:,.0f} images per epoch")
    return " ".join(parts)


def state_text(record: RunRecord) -> str:
    """Return the state of the run and its epochs, such as "stopped, epoch 2.5 of 4"."""
    if record.position is None:
        return record.state
    of = "" if record.epochs is None else f" of {record.epochs}"
    return f"{record.state}, epoch {record.position.epoch:.4g}{of}"


def key_facts(record: RunRecord) -> list[Fact]:
    """Return the key figures that are known."""
    facts, position = [], record.position
    last, best = next(reversed(record.validations), None), record.best
    if last is not None and best is not None:
        facts.append(Fact("best validation", *_validation_texts(best)))
        facts.append(Fact("last validation", *_validation_texts(last)))
    if position is not None:
        images = "" if position.images is None else f"{position.images:,} images seen"
        facts.append(Fact("steps", f"{position.step:,}", images))
    if record.training_seconds is not None:
        facts.append(Fact("training time", f"about {duration_text(record.training_seconds)}", "steps only"))
    line = next((line for line in reversed(record.metrics) if "gradient_norm" in line), {})
    speed = record.metrics[-1].get("images_per_second") if record.metrics else None
    if speed:
        facts.append(Fact("speed", f"{speed:,.1f} images/s", "lately"))
    if record.kl_per_group:
        total = f"{sum(record.kl_per_group):,.1f} nats"
        active = f"{record.active_groups} of {len(record.kl_per_group)} groups above {COLLAPSED_KL} nats"
        facts.append(Fact("KL", total, active))
    if line:
        remark = (
            f"mean, lately; maximum {number(line['gradient_norm_max'])}" if "gradient_norm_max" in line else "lately"
        )
        facts.append(Fact("gradient norm", number(line["gradient_norm"]), remark))
    if position is not None and position.skipped_steps is not None:
        facts.append(
            Fact("skipped steps", f"{position.skipped_steps:,}", _share(position.skipped_steps, position.step))
        )
    return facts


def evaluation_facts(evaluation: dict[str, Any]) -> list[Fact]:
    """Return the bounds of an evaluation.json with their standard errors; damaged parts are left out."""
    facts = []
    for key, name in (("elbo", "ELBO"), ("log_likelihood", "log p(x)")):
        nats, bits = (_estimate(evaluation.get(part)) for part in (key, f"{key}_bits"))
        if nats and bits:
            samples = evaluation.get("samples")
            if key == "log_likelihood":
                name = f"{name}, {samples} samples" if evaluation.get("is_bound") is True else "not a bound"
            facts.append(Fact(name, f"{_with_error(nats, 2)} nats", f"{_with_error(bits, 4)} bits/dim"))
    return facts


def evaluation_images(evaluation: dict[str, Any]) -> str:
    """Return the images of an evaluation, such as "500 test images"."""
    count, part = evaluation.get("images"), evaluation.get("part")
    return f"{count:,} {part} images" if isinstance(count, int) and isinstance(part, str) else "images"


def commands(record: RunRecord) -> list[Command]:
    """Return how to continue the run, and how to use its model; the lines work in `record.root`."""
    name = shlex.quote(record.name)
    return [
        *filter(None, [continuation(record)]),
        Command("sample", f"python3 -m nvae sample {name} 0.7"),
        Command("pick the best samples", f"python3 -m nvae cherry {name} 0.7"),
        Command("explore the latent groups", f"python3 -m nvae explore {name} 0.7"),
        Command("evaluate", f"python3 -m nvae evaluate {name} --nll"),
        Command("refresh report.html", f"python3 -m nvae summary {name} --html"),
    ]


def continuation(record: RunRecord) -> Command | None:
    """Return the command that continues the run; None without its config."""
    what = _config_argument(record)
    if what is None:
        return None
    line = f"python3 -m nvae train {what}"
    if record.events and record.events[-1]["kind"] == EARLY_STOPPING:
        return Command("train on", f"{line} --set training_parameters.early_stopping_patience=null")
    if record.state == "finished" and record.epochs:
        return Command("train for more epochs", f"{line} --epochs {2 * record.epochs}")
    return Command("continue", line)


def _config_argument(record: RunRecord) -> str | None:
    """Return the name of the config if it is that of the run, or else the run's config.yaml with the run's name."""
    if record.name in available_configs() and _loaded(record.name) == record.config:
        return shlex.quote(record.name)
    file = record.folder / "config.yaml"
    if _loaded(file) is None:
        return None
    return shlex.join([str(file.relative_to(record.root)), "--name", record.name])


def _loaded(name: str | Path) -> ModelConfig | None:
    try:
        return load_config(name)
    except UserError:
        return None


def in_folder(record: RunRecord, line: str) -> str:
    """Return a command line that works in the working directory."""
    if os.path.realpath(record.root) == os.path.realpath("."):
        return line
    return f"cd {shlex.quote(str(record.root))} && {line}"


def _validation_texts(validation: Validation) -> tuple[str, str]:
    nats, epoch = f"ELBO {validation.elbo:,.2f} nats", f"epoch {validation.epoch:g}"
    if validation.bits_per_dimension is None:
        return nats, epoch
    return f"{validation.bits_per_dimension:.4g} bits/dim", f"{nats}, {epoch}"


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2g}% of the steps" if part and whole > 0 else ""


def _estimate(value: Any) -> tuple[float, float | None] | None:
    """Return the mean and the standard error of a part of evaluation.json; None if it has no finite mean."""
    mean, error = (value.get(key) if isinstance(value, dict) else None for key in ("mean", "standard_error"))
    if not _is_finite(mean):
        return None
    return mean, error if _is_finite(error) else None


def _is_finite(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def _with_error(estimate: tuple[float, float | None], digits: int) -> str:
    mean, error = estimate
    return f"{mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")
