"""The folder of a run, runs/NAME/, and the loggers that write there. A new logger is one line of LOGGERS."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from PIL import Image

from nvae.config import config_to_yaml
from nvae.schema import ModelConfig
from nvae.system.errors import UserError
from nvae.system.files import WriteError, atomic_write
from nvae.system.texts import counted

FOLDER = Path("runs")
METRICS_FILE = "metrics.jsonl"
EVENTS_FILE = "events.jsonl"
WANDB_ID_FILE = "wandb_id.txt"


class Logger:
    """Records a run in one format. A logger overrides what it records."""

    def log(self, metrics: dict[str, Any]) -> None:
        """Record a line of metrics: numbers and lists of numbers, with its `step`."""

    def log_images(self, tag: str, image: Image.Image, step: int) -> None:
        """Record a picture."""

    def close(self) -> None:
        """Finish writing."""


class TensorBoard(Logger):
    """Event files of TensorBoard, with scalars and pictures. Needs the extra `tensorboard`."""

    def __init__(self, folder: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def log(self, metrics: dict[str, Any]) -> None:
        for tag, number in _scalars(metrics).items():
            self._writer.add_scalar(tag, number, metrics["step"])
        self._writer.flush()

    def log_images(self, tag: str, image: Image.Image, step: int) -> None:
        self._writer.add_image(tag, np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class WandB(Logger):
    """A run of Weights & Biases in the project `nvae`, with scalars and pictures. Needs the extra `wandb`.

    A resumed run has the id of the earlier one, which is kept in the run's folder. The axis of the charts is the metric
    `step`: a training that goes back to a checkpoint repeats steps, and W&B drops what is logged at a smaller number of
    its own step (https://docs.wandb.ai/guides/track/log/customize-logging-axes).
    """

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UserError("install the extra 'wandb' with pip install -e '.[wandb]'") from error
        id_file = folder / WANDB_ID_FILE
        if not id_file.exists():
            with atomic_write(id_file) as temporary:
                temporary.write_text(uuid4().hex, encoding="utf-8")
        self._image = wandb.Image
        self._run = wandb.init(
            project="nvae",
            name=folder.name,
            dir=str(folder),
            config=config.model_dump(),
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            mode=config.training_parameters.wandb,
            settings=wandb.Settings(silent=True, console="off", disable_git=True, save_code=False),
        )
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, metrics: dict[str, Any]) -> None:
        self._run.log(_scalars(metrics))

    def log_images(self, tag: str, image: Image.Image, step: int) -> None:
        self._run.log({tag: self._image(image), "step": step})

    def close(self) -> None:
        self._run.finish()


def _scalars(metrics: dict[str, Any]) -> dict[str, float]:
    """Return metrics with a name for every number of a list: kl_per_group/0, kl_per_group/1, ..."""
    scalars: dict[str, float] = {}
    for key, value in metrics.items():
        scalars |= {f"{key}/{i}": v for i, v in enumerate(value)} if isinstance(value, list) else {key: value}
    return scalars


def open_tensorboard(folder: Path, config: ModelConfig, step: int) -> Logger | None:
    """Open TensorBoard if its package is installed."""
    try:
        return TensorBoard(folder, step)
    except ImportError:
        return None


def open_wandb(folder: Path, config: ModelConfig, step: int) -> Logger | None:
    """Open Weights & Biases if the config asks for it."""
    return None if config.training_parameters.wandb is None else WandB(folder, config)


# By name: functions of the run's folder, the config and the step to continue from, which open a logger or return None.
LOGGERS: dict[str, Callable[[Path, ModelConfig, int], Logger | None]] = {
    "TensorBoard": open_tensorboard,
    "Weights & Biases": open_wandb,
}


class RunLogger:
    """The lines of a run, in metrics.jsonl and events.jsonl, and all other loggers.

    Lines that cannot be written, as on a full disk, are written with the next ones or by `close`. Another logger that
    fails is removed. Both give one warning, and the training continues.
    """

    def __init__(
        self, folder: Path, config: ModelConfig, step: int, groups: int, warn: Callable[[str], object]
    ) -> None:
        """Open the folder of a run at a step; metrics of later steps are removed from the file.

        groups: number of latent groups. warn: receives warnings. `metrics` holds all lines of the run.
        """
        self.folder, self._config, self._warn = folder, config, warn
        self.metrics: list[dict[str, Any]] = []
        self._missing_events: list[dict[str, Any]] = []
        self._failing: set[str] = set()
        self._loggers: dict[str, Logger] = {}
        self._has_earlier_lines = True  # in `metrics`, so that the file can be written anew
        try:
            lines, damaged = read_metrics(folder / METRICS_FILE, groups)
        except OSError as error:
            warn(f"{folder / METRICS_FILE} cannot be read, and new lines are appended to the file: {error}")
            lines, damaged, self._has_earlier_lines = [], 0, False
        if damaged:
            warn(f"{folder / METRICS_FILE} has {counted(damaged, 'damaged line')}, which training removes.")
        self.metrics = [line for line in lines if line["step"] <= step]
        with self._retried(METRICS_FILE):
            self._write_all()
        for name, open_logger in LOGGERS.items():
            with self._attempt(name):
                logger = open_logger(folder, config, step)
                if logger is not None:
                    self._loggers[name] = logger

    def _write_all(self) -> None:
        """Write config.yaml, and metrics.jsonl with all lines, if they are known."""
        with atomic_write(self.folder / "config.yaml") as temporary:
            temporary.write_text(config_to_yaml(self._config), encoding="utf-8")
        if self._has_earlier_lines:
            with atomic_write(self.folder / METRICS_FILE) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.metrics), encoding="utf-8")

    def log(self, metrics: dict[str, Any]) -> None:
        """Record a line of metrics with every logger."""
        self.metrics.append(metrics)
        is_whole = METRICS_FILE not in self._failing or not self._has_earlier_lines
        with self._retried(METRICS_FILE):
            _append(self.folder / METRICS_FILE, metrics) if is_whole else self._write_all()
        self._for_all(lambda logger: logger.log(metrics))

    def log_event(self, event: dict[str, Any]) -> None:
        """Append an event to events.jsonl: `step` and `epoch` are the position, `kind` is a word, `text` a sentence.

        The file keeps all events of a run, also those after the step that a run continues from.
        """
        self._missing_events.append(event)
        self._write_events()

    def _write_events(self) -> None:
        with self._retried(EVENTS_FILE):
            while self._missing_events:
                _append(self.folder / EVENTS_FILE, self._missing_events[0])
                del self._missing_events[0]

    def log_images(self, tag: str, image: Image.Image, step: int) -> None:
        """Record a picture with every logger."""
        self._for_all(lambda logger: logger.log_images(tag, image, step))

    def close(self) -> None:
        """Write what is missing, and close every logger."""
        self._write_events()
        if METRICS_FILE in self._failing:
            with self._retried(METRICS_FILE):
                self._write_all()
        self._for_all(lambda logger: logger.close())

    def _for_all(self, action: Callable[[Logger], object]) -> None:
        for name, logger in list(self._loggers.items()):
            with self._attempt(name):
                action(logger)

    @contextmanager
    def _retried(self, name: str) -> Iterator[None]:
        """Remember whether a file could be written; only the first error in a row is a warning."""
        try:
            yield
            self._failing.discard(name)
        except (OSError, WriteError) as error:
            if name not in self._failing:
                self._warn(f"{self.folder / name} cannot be written now; what is missing is written later: {error}")
            self._failing.add(name)

    @contextmanager
    def _attempt(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._loggers.pop(name, None)
            self._warn(f"{self.folder}: {name} cannot be written and is left out from here on: {error}")


def read_metrics(file: Path, groups: int | None) -> tuple[list[dict[str, Any]], int]:
    """Return the lines of a metrics.jsonl, and the number of damaged lines.

    groups: number of latent groups; None if unknown, then that of the first line with a kl_per_group.
    """
    if groups is None:
        lists = (line.get("kl_per_group") for line in _parsed(file) if isinstance(line, dict))
        groups = next((len(kl) for kl in lists if isinstance(kl, list)), 0)
    return _valid(file, lambda line: _is_line(line, groups))


def read_events(file: Path) -> tuple[list[dict[str, Any]], int]:
    """Return the events of an events.jsonl, in the order in which they happened, and the number of damaged lines."""
    return _valid(file, is_event)


def new_event(kind: str, text: str, step: int, epoch: float) -> dict[str, Any]:
    """Return an event of a run: where it happened, its kind, and a text for people."""
    return {"step": step, "epoch": round(epoch, 4), "kind": kind, "text": text}


def is_event(value: Any) -> bool:
    """Return whether a value from a file is an event as `RunLogger.log_event` takes it."""
    return _has_position(value) and all(isinstance(value.get(key), str) for key in ("kind", "text"))


def is_number(value: Any) -> bool:
    """Return whether a value is a number from -1e200 to 1e200, not NaN, so that drawing cannot overflow."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e200


def _append(file: Path, content: dict[str, Any]) -> None:
    """Append a line with a JSON object to a file; a last line that was cut off stays a line of its own.

    Raises OSError, also for a symbolic link, which may lead out of the folder, and then leaves the file as it was.
    """
    line = json.dumps(content)
    no_link = getattr(os, "O_NOFOLLOW", 0)  # none on Windows
    with open(file, "ab+", buffering=0, opener=lambda path, flags: os.open(path, flags | no_link, 0o666)) as stream:
        size = stream.tell()
        if size:
            stream.seek(-1, os.SEEK_END)
            line = line if stream.read(1) == b"\n" else f"\n{line}"
        encoded = f"{line}\n".encode()
        if stream.write(encoded) < len(encoded):  # the disk is full now
            stream.truncate(size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(file))


def _parsed(file: Path) -> list[Any]:
    """Return the content of every line of a file, None for a damaged one; nothing without the file."""
    content = []
    for raw in file.read_bytes().splitlines() if file.is_file() else []:
        try:
            content.append(json.loads(raw))
        except (ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, or a number of too many digits
            content.append(None)
    return content


def _valid(file: Path, is_valid: Callable[[Any], bool]) -> tuple[list[dict[str, Any]], int]:
    parsed = _parsed(file)
    lines = [line for line in parsed if is_valid(line)]
    return lines, len(parsed) - len(lines)


def _has_position(value: Any) -> bool:
    if not isinstance(value, dict) or not isinstance(value.get("step"), int):
        return False
    return is_number(value["step"]) and is_number(value.get("epoch"))


def _is_line(line: Any, groups: int) -> bool:
    """Return whether a value has a position, numbers, and a list of numbers under names for every latent group."""
    if not _has_position(line):
        return False
    lists = [value for key, value in line.items() if key.endswith("_per_group")]
    numbers = [value for key, value in line.items() if not key.endswith("_per_group")]
    fits = all(isinstance(values, list) and len(values) == groups for values in lists)
    return fits and all(map(is_number, [*numbers, *(value for values in lists for value in values)]))
