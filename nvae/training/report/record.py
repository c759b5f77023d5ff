"""Collect what is known of a run: from its folder, its checkpoint or model file, or a training in progress."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, FiniteFloat, ValidationError

from nvae.checkpoint import FOLDER as CHECKPOINTS
from nvae.checkpoint import CheckpointError, checkpoint_path, load, model_path, name_of_file
from nvae.config import load_config
from nvae.models.families import build_model
from nvae.models.group_names import group_names
from nvae.schema import ModelConfig
from nvae.system.errors import UserError
from nvae.system.files import previous_path, root_folder
from nvae.system.locks import holder_of
from nvae.system.texts import counted
from nvae.training.loggers import EVENTS_FILE, METRICS_FILE, is_event, is_number, read_events, read_metrics
from nvae.training.loggers import FOLDER as RUNS
from nvae.training.metrics import COLLAPSED_KL, seconds_left, wall_times
from nvae.training.position import COUNTS, whole_number
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


class SavedEstimate(BaseModel):
    """A mean and its standard error in evaluation.json; None for the error of a single image."""

    mean: FiniteFloat
    standard_error: FiniteFloat | None


class SavedEvaluation(BaseModel):
    """What is shown of evaluation.json: bounds in nats, and in bits per dimension."""

    images: int
    part: str = "evaluation"  # earlier versions had neither this key nor the next two
    is_normalized: bool = True
    is_bound: bool = True
    samples: int
    elbo: SavedEstimate
    elbo_bits: SavedEstimate
    log_likelihood: SavedEstimate
    log_likelihood_bits: SavedEstimate


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
    evaluation: SavedEvaluation | None = None
    problems: list[str] = field(default_factory=list)
    holder: str | None = None  # the process that trains the run now

    @property
    def folder(self) -> Path:
        """The folder of the run, runs/NAME."""
        return self.root / RUNS / self.name

    @property
    def lock(self) -> Path:
        """The lock that a training of this run holds."""
        return self.root / CHECKPOINTS / f"{self.name}.lock"

    @property
    def saved_files(self) -> list[Path]:
        """The paths of the checkpoint, of the checkpoint saved before, and of the model file."""
        checkpoint = checkpoint_path(self.name, self.root)
        return [checkpoint, previous_path(checkpoint), model_path(self.name, self.root)]

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
        """Whether the training is "finished", "running", or was "stopped", or else "unfinished"."""
        last = self.events[-1]["kind"] if self.events else ""
        if last in (FINISHED, EARLY_STOPPING) or (
            self.position and self.epochs is not None and self.position.epoch >= self.epochs
        ):
            return "finished"
        if self.holder is not None:
            return "running"
        return "stopped" if last == STOPPED else "unfinished"

    @property
    def active_groups(self) -> int:
        """The number of latent groups whose KL is not below COLLAPSED_KL."""
        return sum(kl >= COLLAPSED_KL for kl in self.kl_per_group)

    @property
    def training_seconds(self) -> float | None:
        """About the time of the training, with validations and pictures; None if there are no metrics."""
        seconds = sum(seconds for _, seconds in wall_times([{}, *self.metrics]))
        return seconds if seconds and math.isfinite(seconds) else None

    @property
    def seconds_left(self) -> float | None:
        """About the time to the end of all epochs; None if the training is finished, or if the time is not known."""
        if self.state == "finished" or self.position is None or self.epochs is None:
            return None
        return seconds_left(self.metrics, self.position.epoch, self.epochs)


def find_run(what: str) -> RunRecord | None:
    """Return the record of a run given by name, by its folder, or by a checkpoint or model file; None if there is none.

    Raises UserError for a folder or a file of which nothing is known.
    """
    path = Path(what)
    if os.path.isfile(path):  # unlike the method of Path, without an error for a name that is too long
        record = RunRecord(name_of_file(path).removeprefix("final_result_"), _root_of(path, CHECKPOINTS))
    elif os.path.isdir(path):
        record = RunRecord(path.resolve().name, _root_of(path, RUNS))
    else:
        record = RunRecord(what, root_folder())
        if not any(map(os.path.exists, (record.folder, *record.saved_files))):
            return None
    record.holder = holder_of(record.lock)
    files = ([path] if os.path.isfile(path) else []) + record.saved_files
    metadata = _read_saved(record, list(dict.fromkeys(filter(Path.exists, files))))
    _read_folder(record, metadata)
    if record.config is None and record.is_empty:
        raise UserError(f"nothing is known of the run '{record.name}': {' '.join(record.problems)}")
    return record


def record_of(
    trainer: Trainer, name: str, root: Path, line: dict[str, Any] | None = None, running: bool = True
) -> RunRecord:
    """Return the record of a training in this process. root: the folder with runs/.

    line: metrics since the last line. running: whether the training goes on.
    """
    now = trainer.position
    position = Position(now.step, now.in_epochs, now.images_seen, now.skipped_steps)
    record = RunRecord(name, root, trainer.config, position, groups=group_names(trainer.model))
    record.holder = "this process" if running else None
    _read_folder(record, trainer.metadata)
    record.metrics += [] if line is None else [line]
    return record


def _root_of(path: Path, folder: Path) -> Path:
    """Return the folder that has runs/ and saved_weights/, of a path in its folder of that name."""
    parent = path.absolute().parent
    return Path(os.path.relpath(parent.parent if parent.name == folder.name else parent))


def _read_saved(record: RunRecord, files: list[Path]) -> dict[str, Any]:
    """Read config, position and validations of the first file that is whole, and return its metadata."""
    checkpoint, previous, _ = record.saved_files
    if not files:
        record.problems.append(f"there is no checkpoint {checkpoint}.")
    for path in files:
        try:
            content = load(path)
        except CheckpointError as error:
            record.problems.append(str(error))
            continue
        if path == previous:
            missing = [] if checkpoint.exists() else [f"there is no checkpoint {checkpoint}."]
            record.problems += [*missing, f"the position is that of {path}, the checkpoint saved before."]
        record.config = content["config"]
        if (training := content.get("training")) is not None:
            try:
                record.position = _position(training["progress"])
                pairs = training.get("history", {"validations": []})["validations"]  # older files have no history
                record.validations = [Validation(float(epoch), float(elbo), None) for epoch, elbo in pairs]
            except (LookupError, TypeError, ValueError, ArithmeticError) as error:
                record.problems.append(f"{path} has a damaged training state: {error}.")
        return content["metadata"]
    return {}


def _position(progress: dict[str, Any]) -> Position:
    """Raises KeyError, TypeError or ValueError for anything but counts."""
    counts = {name: whole_number(progress, name) for name in COUNTS}
    epoch, image, images_seen = float(counts["epoch"]), counts["image"], counts["images_seen"]
    if epoch and images_seen > image:  # all complete epochs so far have the same number of images
        epoch += image * epoch / (images_seen - image)
    return Position(counts["step"], epoch, images_seen, counts["skipped_steps"])


def _read_folder(record: RunRecord, metadata: dict[str, Any]) -> None:
    """Read the files in runs/NAME/. metadata: of the checkpoint or model, for what is not there."""
    config_file = record.folder / "config.yaml"
    if record.config is None and config_file.exists():
        try:
            record.config = load_config(config_file)
        except UserError as error:
            record.problems.append(str(error))
    if record.config is not None and not record.groups:
        with torch.device("meta"):
            record.groups = group_names(build_model(record.config))
    if not record.folder.is_dir():
        record.problems.append(f"there is no folder {record.folder} with the metrics of the run.")
    _read_metrics(record, metadata.get("kl_per_group"))
    _read_events(record, metadata.get("events"))
    if record.position is None and record.metrics:
        line = record.metrics[-1]
        record.position = Position(line["step"], line["epoch"], line.get("images"), line.get("skipped_steps"))
    elif record.position is not None:  # a line has a more exact epoch
        same = [entry for entry in [*record.metrics, *record.events] if entry["step"] == record.position.step]
        record.position = record.position._replace(epoch=same[-1]["epoch"] if same else record.position.epoch)
    if (file := record.folder / "evaluation.json").is_file():
        try:
            record.evaluation = SavedEvaluation.model_validate_json(file.read_bytes())
        except (OSError, ValidationError):
            record.problems.append(f"{file} is damaged.")


def _read_metrics(record: RunRecord, kl: Any) -> None:
    """Read the metrics, and with them the validations and the KL per group. kl: that of the checkpoint, if any."""
    groups = len(record.groups) or None
    metrics = _read(record, METRICS_FILE, lambda file: read_metrics(file, groups))
    record.metrics = sorted(metrics, key=lambda line: line["step"])
    both = [line.get("validation_kl_per_group", line.get("kl_per_group")) for line in record.metrics]
    lists = [values for values in both if values is not None]
    record.groups = record.groups or [str(i + 1) for i in range(len(lists[0]) if lists else 0)]
    known = isinstance(kl, list) and len(kl) == len(record.groups) and all(map(is_number, kl))
    record.kl_per_group = kl if known else lists[-1] if lists else []
    validated = [line for line in record.metrics if "validation_elbo" in line]
    record.validations = [
        Validation(line["epoch"], line["validation_elbo"], line.get("validation_bits_per_dimension"))
        for line in validated
    ] or record.validations


def _read_events(record: RunRecord, kept: Any) -> None:
    """Read the events; those that the checkpoint has kept and the file does not have come first."""
    exists = (record.folder / EVENTS_FILE).exists()  # older runs have none
    events = _read(record, EVENTS_FILE, read_events) if exists else []
    kept = [event for event in kept if is_event(event)] if isinstance(kept, list) else []
    record.events = [event for event in kept if event not in events] + events


def _read(
    record: RunRecord, name: str, read: Callable[[Path], tuple[list[dict[str, Any]], int]]
) -> list[dict[str, Any]]:
    """Return the lines of a file in the folder, and note damaged ones."""
    file = record.folder / name
    try:
        lines, damaged = read(file)
    except OSError as error:
        record.problems.append(f"{file} cannot be read: {error.strerror}.")
        return []
    if damaged:
        record.problems.append(f"{file} has {counted(damaged, 'damaged line')}, left out here.")
    elif not lines and record.folder.is_dir() and not record.holder:  # the first line of a training takes its time
        record.problems.append(f"{file} is {'empty' if file.exists() else 'missing'}.")
    return lines
