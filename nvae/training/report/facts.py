"""The facts of a run as short texts, for the terminal and for the page; and the commands that use the run."""

from __future__ import annotations

import shlex
from contextlib import suppress
from typing import NamedTuple

from nvae.checkpoint import checkpoint_path
from nvae.config import available_configs, load_config
from nvae.system.errors import UserError
from nvae.system.texts import counted
from nvae.training.metrics import COLLAPSED_KL, duration_text
from nvae.training.report.charts import number
from nvae.training.report.record import EARLY_STOPPING, RunRecord, SavedEstimate, Validation


class Fact(NamedTuple):
    """A fact: its name, its value, and a remark, which may be empty."""

    name: str
    value: str
    remark: str = ""


class Command(NamedTuple):
    """A command line and what it does."""

    purpose: str
    line: str


def state_text(record: RunRecord) -> str:
    """Return the state of the run and its epochs, such as "stopped, epoch 2.5 of 4"."""
    if record.position is None:
        return record.state
    of = "" if record.epochs is None else f" of {record.epochs}"
    return f"{record.state}, epoch {record.position.epoch:.4g}{of}"


def facts_of(record: RunRecord) -> list[Fact]:
    """Return all that is known, the config and the data first."""
    facts, position, metrics = [], record.position, record.metrics
    if (config := record.config) is not None:
        schedule, size = config.training_parameters, config.input_dimension
        text = (
            f"{config.family}, {counted(len(record.groups), 'latent group')}, {config.image_channels} x {size} x "
            f"{size} pixels, likelihood {config.sampling_method}, {schedule.optimizer}, batch size "
            f"{schedule.batch_size}, learning rate {schedule.learning_rate:g}"
        )
        path = getattr(config.dataset, "path", None)
        data = config.dataset.name + (f" from {path}" if path else "")
        facts += [Fact("config", text), Fact("data", data + _images_per_epoch(record))]
    if record.best is not None:
        facts.append(Fact("best validation", *_validation_texts(record.best)))
        facts.append(Fact("last validation", *_validation_texts(record.validations[-1])))
    if position is not None:
        images = "" if position.images is None else f"{position.images:,} images seen"
        facts.append(Fact("steps", f"{position.step:,}", images))
    if record.training_seconds is not None:
        facts.append(Fact("training time", f"about {duration_text(record.training_seconds)}"))
    if record.seconds_left is not None:
        facts.append(Fact("time left", f"about {duration_text(record.seconds_left)}"))
    if metrics and metrics[-1].get("images_per_second"):
        facts.append(Fact("speed", f"{metrics[-1]['images_per_second']:,.1f} images/s", "lately"))
    if record.kl_per_group:
        active = f"{record.active_groups} of {len(record.kl_per_group)} groups above {COLLAPSED_KL} nats"
        facts.append(Fact("KL", f"{sum(record.kl_per_group):,.1f} nats", active))
    if line := next((line for line in reversed(metrics) if "gradient_norm" in line), None):
        maximum = f"mean, lately; maximum {number(line['gradient_norm_max'])}" if "gradient_norm_max" in line else ""
        facts.append(Fact("gradient norm", number(line["gradient_norm"]), maximum or "lately"))
    if position is not None and position.skipped_steps is not None:
        share = f"{100 * position.skipped_steps / max(position.step, 1):.2g}% of the steps"
        facts.append(Fact("skipped steps", f"{position.skipped_steps:,}", share if position.skipped_steps else ""))
    return facts + _evaluation_facts(record)


def _images_per_epoch(record: RunRecord) -> str:
    line = next((line for line in reversed(record.metrics) if line["epoch"] >= 1 and "images" in line), None)
    return f" with {line['images'] / line['epoch']:,.0f} images per epoch" if line else ""


def _validation_texts(validation: Validation) -> tuple[str, str]:
    nats, epoch = f"ELBO {validation.elbo:,.2f} nats", f"epoch {validation.epoch:g}"
    if validation.bits_per_dimension is None:
        return nats, epoch
    return f"{validation.bits_per_dimension:.4g} bits/dim", f"{nats}, {epoch}"


def _evaluation_facts(record: RunRecord) -> list[Fact]:
    if (evaluation := record.evaluation) is None:
        return []
    part, images = evaluation.part, f"{evaluation.images:,} images"
    samples = f"{images}, {counted(evaluation.samples, 'sample')}"
    no_bound = ", not a bound"
    rows = [
        (f"{part} ELBO", evaluation.elbo, evaluation.elbo_bits, images + no_bound * (not evaluation.is_normalized)),
        (
            f"{part} log p(x)",
            evaluation.log_likelihood,
            evaluation.log_likelihood_bits,
            samples + no_bound * (not evaluation.is_bound),
        ),
    ]
    return [
        Fact(name, f"{_with_error(nats, 2)} nats", f"{_with_error(bits, 4)} bits/dim, {of}")
        for name, nats, bits, of in rows
    ]


def _with_error(estimate: SavedEstimate, digits: int) -> str:
    error = estimate.standard_error
    return f"{estimate.mean:.{digits}f}" + ("" if error is None else f" ± {error:.{digits}f}")


def kl_bars(record: RunRecord) -> dict[str, dict[str, float]]:
    """Return the KL by name: of every latent group, and of every level where levels have several groups."""
    groups = dict(zip(record.groups, record.kl_per_group, strict=True)) if record.kl_per_group else {}
    levels: dict[str, float] = {}
    for name, kl in groups.items():
        level = name.partition(": ")[2]
        levels[level] = levels.get(level, 0.0) + kl
    return {"latent group": groups} | ({"level": levels} if 1 < len(levels) < len(groups) else {})


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


def continuation(record: RunRecord, in_root: bool = True) -> Command | None:
    """Return the command that continues the run; None without its config.

    in_root: the line works in `record.root`, else in the working directory.
    """
    what = _config_argument(record, in_root)
    if what is None:
        return None
    line = f"python3 -m nvae train {what}"
    if record.events and record.events[-1]["kind"] == EARLY_STOPPING:
        return Command("train on", f"{line} --set training_parameters.early_stopping_patience=null")
    if record.state == "finished" and record.epochs:
        return Command("train for more epochs", f"{line} --epochs {2 * record.epochs}")
    return Command("continue", line)


def _config_argument(record: RunRecord, in_root: bool) -> str | None:
    """Return the name of the run, if that finds its config, or else the run's config.yaml with the run's name."""
    with suppress(UserError):  # a config of this name that is not valid
        if record.name in available_configs():
            is_found = load_config(record.name) == record.config
        else:
            is_found = checkpoint_path(record.name, record.root).exists()
        if is_found:
            return shlex.quote(record.name)
    file = record.folder / "config.yaml"
    path = file.relative_to(record.root) if in_root else file
    return shlex.join([str(path), "--name", record.name]) if file.exists() else None
