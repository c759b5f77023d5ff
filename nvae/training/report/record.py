"""Collect what is known of a run: from its folder, its checkpoint or model file, or a training in progress."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nvae.checkpoint import FOLDER as CHECKPOINTS
from nvae.checkpoint import CheckpointError, checkpoint_path, load, model_path, plain_name
from nvae.config import load_config
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.summary import group_name
from nvae.system.errors import UserError
from nvae.system.files import previous_path
from nvae.training.loggers import EVENTS_FILE, METRICS_FILE, is_event, read_events, read_metrics
from nvae.training.loggers import FOLDER as RUNS
from nvae.training.metrics import COLLAPSED_KL
from nvae.training.position import COUNTS, whole_number

if TYPE_CHECKING:
    from nvae.training.trainer import Trainer

# Kinds of events that the training loop logs.
STARTED, CONTINUED, STOPPED, FINISHED, EARLY_STOPPING = "started", "continued", "stopped", "finished", "early stopping"


class Position(NamedTuple):
    """How far the training is; None for what is not known."""

    step: int
    epoch: float
    images: int | None
    skipped_steps: int | None


class Validation(NamedTuple):
    """A validation of the run; None for bits per dimension that are not known."""

    epoch: float
    elbo: float
    bits_per_dimension: float | None


class Saved(NamedTuple):
    """What a checkpoint, a model file or a trainer knows of a run.

    position: None in a model file. groups: names of the latent groups, of a trainer only.
    """

    config: ModelConfig
    metadata: dict[str, Any]
    position: Position | None = None
    validations: tuple[Validation, ...] = ()
    groups: tuple[str, ...] = ()


@dataclass
class RunRecord:
    """All that is known of a run. Whatever is missing or damaged is empty, and `problems` has a sentence about it."""

    name: str
    root: Path  # the folder with runs/ and saved_weights/
    config: ModelConfig | None = None
    position: Position | None = None
    metrics: list[dict[str, Any]] = field(default_factory=list)
    validations: list[Validation] = field(default_factory=list)
    kl_per_group: list[float] = field(default_factory=list)  # of the last validation
    groups: list[str] = field(default_factory=list)  # names, top first
    events: list[dict[str, Any]] = field(default_factory=list)
    evaluation: dict[str, Any] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def folder(self) -> Path:
        """The folder of the run, runs/NAME."""
        return self.root / RUNS / self.name

    @property
    def lock(self) -> Path:
        """The lock that a training of this run holds."""
        return self.root / CHECKPOINTS / f"{self.name}.lock"

    @property
    def is_empty(self) -> bool:
        """Whether nothing is known but the config: no training has taken a step or left a file."""
        return not (self.position or self.metrics or self.events or self.evaluation)

    @property
    def best(self) -> Validation | None:
        """The validation with the highest ELBO."""
        return max(self.validations, key=lambda validation: validation.elbo, default=None)

    @property
    def epochs(self) -> int | None:
        return self.config.training_parameters.epochs if self.config else None

    @property
    def state(self) -> str:
        """Whether the training is "finished" or was "stopped", or else "unfinished"."""
        last = self.events[-1]["kind"] if self.events else ""
        if last in (FINISHED, EARLY_STOPPING) or (
            self.position and self.epochs is not None and self.position.epoch >= self.epochs
        ):
            return "finished"
        return "stopped" if last == STOPPED else "unfinished"

    @property
    def active_groups(self) -> int:
        """The number of latent groups whose KL is not below COLLAPSED_KL."""
        return sum(kl >= COLLAPSED_KL for kl in self.kl_per_group)

    @property
    def training_seconds(self) -> float | None:
        """About the time of all training steps, without validations and pictures; None if there are no metrics."""
        seconds, before = 0.0, 0
        for line in self.metrics:
            images, speed = line.get("images", before), line.get("images_per_second", 0)
            if speed > 0 and images > before:
                seconds += (images - before) / speed
            before = images
        return seconds if seconds and math.isfinite(seconds) else None


def find_run(what: str) -> RunRecord | None:
    """Return the record of a run given by name, by its folder, or by a checkpoint or model file; None if there is none.

    Raises UserError for a folder or a file of which nothing is known.
    """
    path, saved, problems = Path(what), None, []
    if _is(Path.is_file, path):
        name, root = run_name(path), _root_of(path, CHECKPOINTS)
        try:
            saved, problems = saved_in(path)
        except CheckpointError:
            if not _is(Path.is_dir, root / RUNS / name):
                raise
    elif _is(Path.is_dir, path):
        name, root = path.resolve().name, _root_of(path, RUNS)
    else:
        name, root = what, Path(".")
        files = (root / RUNS / name, checkpoint_path(name), previous_path(checkpoint_path(name)), model_path(name))
        if not any(_is(Path.exists, file) for file in files):
            return None
    record = read_run(name, root, saved)
    record.problems = problems + record.problems
    if record.config is None and record.is_empty:
        raise UserError(f"nothing is known of the run '{name}': {' '.join(record.problems)}")
    return record


def _is(test: Callable[[Path], bool], path: Path) -> bool:
    try:
        return test(path)
    except (OSError, ValueError):  # a name that is too long, or has a zero character
        return False


def _root_of(path: Path, folder: Path) -> Path:
    """Return the folder that has runs/ and saved_weights/, of a path in its folder of that name."""
    parent = path.absolute().parent
    return Path(os.path.relpath(parent.parent if parent.name == folder.name else parent))


def read_run(name: str, root: Path = Path("."), saved: Saved | None = None) -> RunRecord:
    """Return the record of the run NAME below a folder; `saved`: read already, or else from the run's files."""
    record = RunRecord(name, root)
    if saved is None:
        saved = _saved_of(record)
    if saved is not None:
        record.config, record.position = saved.config, saved.position
    elif (record.folder / "config.yaml").exists():
        try:
            record.config = load_config(record.folder / "config.yaml")
        except UserError as error:
            record.problems.append(str(error))
    record.groups = list(saved.groups) if saved and saved.groups else _group_names(record.config)
    if not record.folder.is_dir():
        record.problems.append(f"there is no folder {record.folder} with the metrics of the run.")
    _read_metrics(record, saved)
    _read_events(record, saved.metadata if saved else {})
    _complete_position(record)
    record.evaluation = _read_evaluation(record)
    return record


def record_of(trainer: Trainer, name: str, root: Path) -> RunRecord:
    """Return the record of a training in progress. root: the folder with runs/."""
    now = trainer.position
    position = Position(now.step, now.in_epochs, now.images_seen, now.skipped_steps)
    return read_run(name, root, Saved(trainer.config, trainer.metadata, position, groups=group_names(trainer.model)))


def run_name(path: Path) -> str:
    """Return the name of the run whose checkpoint or model file is at a path."""
    return plain_name(path).removeprefix("final_result_")


def saved_in(path: Path) -> tuple[Saved, list[str]]:
    """Return what a checkpoint or model file knows, and sentences about its damaged parts. Raises CheckpointError."""
    content = load(path)
    metadata, training = content["metadata"], content.get("training")
    if training is None:
        return Saved(content["config"], metadata), []
    progress = training.get("progress")
    try:
        for count in COUNTS:
            whole_number(progress, count)
    except (ValueError, TypeError, KeyError):
        return Saved(content["config"], metadata), [f"{path} has a damaged training state: its position is not known."]
    epoch, image = progress["epoch"], progress["image"]
    if epoch and progress["images_seen"] > image:  # all complete epochs so far have the same number of images
        epoch = epoch + image * epoch / (progress["images_seen"] - image)
    position = Position(progress["step"], epoch, progress["images_seen"], progress["skipped_steps"])
    history = training.get("history")
    pairs = history.get("validations") if isinstance(history, dict) else None
    pairs = pairs if isinstance(pairs, list) else []
    validations = tuple(Validation(*pair, None) for pair in pairs if _are_numbers(pair, 2))
    return Saved(content["config"], metadata, position, validations), []


def _saved_of(record: RunRecord) -> Saved | None:
    """Return what the run's checkpoint knows, or else the checkpoint saved before, or the model file."""
    checkpoint = checkpoint_path(record.name, record.root)
    paths = [checkpoint, previous_path(checkpoint), model_path(record.name, record.root)]
    for path in filter(Path.exists, paths):
        try:
            saved, problems = saved_in(path)
        except CheckpointError as error:
            record.problems.append(str(error))
        else:
            if path == paths[1]:
                missing = [] if checkpoint.exists() else [f"there is no checkpoint {checkpoint}."]
                record.problems += [*missing, f"the position is that of {path}, the checkpoint saved before."]
            record.problems += problems
            return saved
    if not any(map(Path.exists, paths)):
        record.problems.append(f"there is no checkpoint {paths[0]}.")
    return None


def _read_metrics(record: RunRecord, saved: Saved | None) -> None:
    file = record.folder / METRICS_FILE
    metrics = _read(record, lambda: read_metrics(file, len(record.groups) or None), file)
    record.metrics = sorted(metrics, key=lambda line: line["step"])
    if not record.groups:
        lists = (line["kl_per_group"] for line in record.metrics if "kl_per_group" in line)
        record.groups = [str(i + 1) for i in range(len(next(lists, [])))]
    validated = [line for line in record.metrics if "validation_elbo" in line]
    record.validations = [
        Validation(line["epoch"], line["validation_elbo"], line.get("validation_bits_per_dimension"))
        for line in validated
    ] or list(saved.validations if saved else ())
    kl = saved.metadata.get("kl_per_group") if saved else None
    if not _are_numbers(kl, len(record.groups)):
        lists = (line.get("validation_kl_per_group", line.get("kl_per_group")) for line in reversed(record.metrics))
        kl = next(filter(None, lists), [])
    record.kl_per_group = kl


def _are_numbers(values: Any, count: int) -> bool:
    """Return whether a value of a file is a list of `count` finite numbers."""
    is_list = isinstance(values, list | tuple) and len(values) == count
    return is_list and all(isinstance(value, float) and math.isfinite(value) for value in values)


def _read_events(record: RunRecord, metadata: dict[str, Any]) -> None:
    """Read events.jsonl; events of the checkpoint that are missing there come first."""
    file = record.folder / EVENTS_FILE
    events = _read(record, lambda: read_events(file), file) if file.exists() else []  # older runs have none
    kept = metadata.get("events")
    kept = [event for event in kept if is_event(event)] if isinstance(kept, list) else []
    record.events = [event for event in kept if event not in events] + events


def _read(record: RunRecord, read: Callable[[], tuple[list[dict[str, Any]], int]], file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file, and note damaged ones."""
    try:
        lines, damaged = read()
    except OSError as error:
        record.problems.append(f"{file} cannot be read: {error.strerror}.")
        return []
    if damaged:
        record.problems.append(f"{file} has {damaged} damaged lines, which are left out.")
    elif not lines and record.folder.is_dir():
        record.problems.append(f"{file} is {'empty' if file.exists() else 'missing'}.")
    return lines


def _complete_position(record: RunRecord) -> None:
    """Take the position from the last line of metrics where no checkpoint has one, and a more exact epoch."""
    known = [*record.metrics, *record.events]
    if record.position is None and record.metrics:
        line = record.metrics[-1]
        record.position = Position(line["step"], line["epoch"], line.get("images"), line.get("skipped_steps"))
    elif record.position is not None:
        epochs = [entry["epoch"] for entry in known if entry["step"] == record.position.step]
        record.position = record.position._replace(epoch=epochs[-1] if epochs else record.position.epoch)


def _read_evaluation(record: RunRecord) -> dict[str, Any]:
    """Return the content of evaluation.json; empty if there is none."""
    file = record.folder / "evaluation.json"
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError):
        content = None
    if isinstance(content, dict) and isinstance(content.get("elbo"), dict):
        return content
    record.problems.append(f"{file} is damaged.")
    return {}


def _group_names(config: ModelConfig | None) -> list[str]:
    if config is None:
        return []
    with torch.device("meta"):
        return list(group_names(build_model(config)))


def group_names(model: HierarchicalVAE) -> tuple[str, ...]:
    """Return the names of the latent groups of a model, top first."""
    return tuple(group_name(model, index) for index in range(len(model.groups)))
