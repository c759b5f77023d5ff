"""The files of a run: which checkpoint its training continues from, which copies stay, and what a killed run left."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

from nvae.checkpoint import FOLDER as WEIGHTS
from nvae.checkpoint import CheckpointError, checkpoint_path, is_whole, model_path
from nvae.system.errors import InvalidValueError, Remedy, UserError
from nvae.system.files import link_or_copy, previous_path, remove_unfinished, unused_path, writing
from nvae.system.torch_files import DamagedFileError, exists
from nvae.training.loggers import FOLDER as RUNS
from nvae.training.resuming import resume_training
from nvae.training.trainer import Trainer

MAX_NAME_BYTES = 180  # of a run; the names of its files are longer, and file systems allow 255
COPY = r"\.(best|best_fid|epoch_\d{4,})"  # what copies of a checkpoint have behind the name of the run


class RunFiles:
    """The files of a run: saved_weights/NAME.* and runs/NAME/ in a folder."""

    def __init__(self, name: str, folder: Path) -> None:
        """Raises UserError for a name that is no name of a file, or whose files would be those of another run."""
        if not (re.fullmatch(r"\w[^/\\]*", name) and name.isprintable() and len(os.fsencode(name)) <= MAX_NAME_BYTES):
            raise InvalidValueError(
                "the name of the run",
                repr(name),
                f"a letter, a digit or _, then a text without / and \\, {MAX_NAME_BYTES} bytes at most",
                "",
                Remedy.RUN_NAME,
            )
        if re.fullmatch(f".+{COPY}", name):
            raise UserError(
                f"the name of the run is {name!r}: expected another end than .best, .best_fid and .epoch_ with a "
                "number, which copies of checkpoints have. Give the run another name.",
                Remedy.RUN_NAME,
            )
        self.name, self.root = name, folder
        self.weights = folder / WEIGHTS
        self.checkpoint, self.model = checkpoint_path(name, folder), model_path(name, folder)
        self.previous = previous_path(self.checkpoint)
        self.best = checkpoint_path(f"{name}.best", folder)
        self.best_fid = checkpoint_path(f"{name}.best_fid", folder)
        self.lock = self.weights / f"{name}.lock"
        self.folder = folder / RUNS / name

    def epoch_copy(self, epoch: int) -> Path:
        """Return the path of the checkpoint that is kept from an epoch."""
        return self.weights / f"{self.name}.epoch_{epoch:04d}.checkpoint"

    def copies(self) -> list[Path]:
        """Return the checkpoints that are kept beside the newest one: the best ones, then the latest ones."""
        pattern = re.compile(re.escape(self.name) + r"\.epoch_(\d{4,})\.checkpoint")
        names = os.listdir(self.weights) if self.weights.is_dir() else []
        epochs = sorted((int(match[1]) for match in map(pattern.fullmatch, names) if match), reverse=True)
        return [path for path in (self.best, self.best_fid, *map(self.epoch_copy, epochs)) if path.exists()]

    def remove_unfinished(self) -> None:
        """Remove the temporary files of this run that killed processes have left. Call this under the run's lock."""
        name = re.escape(self.name)
        written = re.compile(
            rf"({name}({COPY})?\.checkpoint|final_result_{name}\.model)(\.previous)?|{name}\.lock\.json"
        )
        remove_unfinished(self.weights.glob("*"), lambda name: bool(written.fullmatch(name)), age=0)
        remove_unfinished(self.folder.rglob("*"), age=0)

    # -------------------------------------------------------------------------------------------------- continuing

    def resume(self, trainer: Trainer, changed_data: bool = False) -> tuple[Path | None, list[str]]:
        """Restore the newest checkpoint that is whole; return its path and warnings, or None if there is none.

        A damaged checkpoint is kept under another name. Raises UserError, and then changes nothing: if the files are
        damaged, if they are of another run, or if they do not fit the trainer.
        """
        from_first = trainer.ranks.from_first  # the process whose files count
        paths = (self.checkpoint, self.previous)
        exist, has_copies = from_first(lambda: ([*map(exists, paths)], bool(self.copies())))
        if not any(exist) and not has_copies:
            return None, []
        problems = []
        for path, is_there in zip(paths, exist, strict=True):
            if not is_there:
                problems.append("is missing")
                continue
            try:
                warnings = resume_training(trainer, path, self.name, changed_data)
            except DamagedFileError:
                problems.append("is damaged")
                continue
            if path == self.previous:
                fate = from_first(self._use_previous)
                warnings.insert(
                    0,
                    f"{self.checkpoint} {problems[0]}{fate}: training continues from {path.name}, the checkpoint saved "
                    f"before, at step {trainer.position.step}.",
                )
            return path, warnings
        advice, remedy = from_first(self._advice)
        raise CheckpointError(
            f"{self.checkpoint} {problems[0]}, and {self.previous.name} {problems[1]}: nothing was changed. {advice}",
            remedy,
        )

    def _use_previous(self) -> str:
        """Make the previous checkpoint the newest one; return what happened to a damaged one, for a warning."""
        fate = ""
        with writing(self.checkpoint):
            if self.checkpoint.exists():
                damaged = unused_path(self.weights, f"{self.checkpoint.name}.damaged", "")
                os.rename(self.checkpoint, damaged)
                fate = f" and is kept as {damaged.name}"
            link_or_copy(self.previous, self.checkpoint)
        return fate

    def _advice(self) -> tuple[str, Remedy]:
        whole = next(filter(is_whole, self.copies()), None)
        if whole is not None:
            return f"Start over from {whole}, which is whole.", Remedy.START_OVER_FROM_FILE
        return f"Copy a whole checkpoint to {self.checkpoint}, or start over.", Remedy.START_OVER

    def put_aside(self) -> Iterator[tuple[Path, Path]]:
        """Rename all files of the run with the first number that is free for all of them; yield old and new paths."""
        paths = [self.checkpoint, self.previous, *self.copies(), self.model, self.folder]

        def aside(path: Path, number: int) -> Path:
            return path.with_name(f"{path.name}.{number}")

        number = next(n for n in itertools.count(1) if not any(os.path.lexists(aside(path, n)) for path in paths))
        for path in filter(Path.exists, paths):
            with writing(aside(path, number)):
                os.rename(path, aside(path, number))
            yield path, aside(path, number)

    # ------------------------------------------------------------------------------------------------------ copies

    def keep_copies(self, trainer: Trainer, best_quality: bool = False) -> None:
        """Keep the checkpoint of this position if its validation is the best so far, or if `keep_every` is due.

        best_quality: keep the checkpoint as that of the best samples too, if `keep_best` is on.
        Call this when the checkpoint holds the state of the trainer. Raises OSError.
        """
        schedule, validations = trainer.schedule, trainer.history.validations
        copies = []
        if schedule.keep_best and validations and validations[-1].epoch == trainer.position.in_epochs:
            *earlier, last = (validation.elbo for validation in validations)
            if last > max(earlier, default=-math.inf):
                copies.append(self.best)
        if schedule.keep_best and best_quality:
            copies.append(self.best_fid)
        if trainer.position.completes(schedule.keep_every):
            copies.append(self.epoch_copy(trainer.position.epoch))
        for copy in copies:
            link_or_copy(self.checkpoint, copy)
