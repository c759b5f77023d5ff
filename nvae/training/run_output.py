"""What a run tells and writes: messages, metrics, events, pictures and its page."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from nvae.data.images import Data
from nvae.models.families import clone
from nvae.models.group_names import group_names
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig, TrainingParameters
from nvae.summary import Cost, num_parameters, training_bytes
from nvae.system.devices import available_bytes
from nvae.system.errors import Remedy, UserError, is_out_of_memory
from nvae.system.files import atomic_write
from nvae.system.texts import counted
from nvae.training.events import Reporter
from nvae.training.loggers import RunLogger, new_event
from nvae.training.metrics import metrics_text, seconds_left
from nvae.training.report.page import write_page
from nvae.training.report.previews import draw_curves, draw_data, draw_film, draw_reconstructions, draw_samples
from nvae.training.report.record import record_of
from nvae.training.run_files import RunFiles
from nvae.training.trainer import Trainer

PAGE_SECONDS, PAGE_PORTION = 60, 0.01  # between two pages at least; of the time, pages between checkpoints at most
CURVES = ("bits_per_dimension.png", "kl_per_group.png")
MEMORY_ADVICE = (
    "Set a smaller training_parameters.batch_size, a larger gradient_accumulation, or use_tensor_checkpoints to True."
)


def memory_warning(config: ModelConfig, batch_size: int, device: torch.device, cost: Cost | None = None) -> str | None:
    """Compare the estimated memory of training with the memory of the device; return a warning if it is too small.

    cost: of the config, where it is known already.
    """
    needed, available = training_bytes(config, batch_size, cost), available_bytes(device)
    if available is None or needed <= available:
        return None
    return (
        f"training needs about {needed / 2**30:.1f} GiB with {counted(batch_size, 'image')} at a time, but {device} "
        f"has {available / 2**30:.1f} GiB. {MEMORY_ADVICE}"
    )


def picture_names(schedule: TrainingParameters) -> list[str]:
    """Return the names of the pictures of a run's model and metrics."""
    return ["samples.png", *(["reconstructions.png"] if schedule.write_reconstruction else []), *CURVES]


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error of PyTorch or Python into a UserError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(
                f"the memory is not enough for this training. {MEMORY_ADVICE}", Remedy.CONFIG_KEY
            ) from error
        raise


def model_for_pictures(trainer: Trainer) -> HierarchicalVAE:
    """Return `eval_model`, or a copy where its batch norms expect all ranks, so that one rank can recalibrate."""
    return clone(trainer.model) if trainer.ema is None and trainer.ranks.count > 1 else trainer.eval_model


def selection_warning(data: Data, schedule: TrainingParameters) -> str | None:
    """Return a warning if the test images decide what a training keeps or how it goes on, or None."""
    selecting = {
        "keep_best": schedule.keep_best,
        "early_stopping_patience": schedule.early_stopping_patience is not None,
        "learning_rate_schedule": schedule.learning_rate_schedule == "plateau",
    }
    keys = [key for key, selects in selecting.items() if selects]
    if not data.validation_is_test or not keys:
        return None
    return (
        f"the validation images are the test images of the data set, and {' and '.join(keys)} depends on them, so a "
        "result on the test images is too good. Keep training images for validation: set dataset.validation_images, or "
        "add a validation array to the file. Or turn the selection off."
    )


class RunOutput:
    """The output of a run: messages to a reporter, and files in runs/NAME/.

    Of several processes only the first one opens the folder and writes there. An error while a picture, the page or a
    report is written becomes a warning, and the training continues; `finish` tries again.
    """

    def __init__(self, trainer: Trainer, files: RunFiles, reporter: Reporter) -> None:
        self.trainer, self.files, self.reporter = trainer, files, reporter
        self.folder = files.folder
        self._logger: RunLogger | None = None
        self._missing: dict[str, Callable[[], object]] = {}
        self._page_due = math.inf

    def open(self) -> None:
        """Open the folder at the present step, without the metrics of later ones."""
        self.close()
        trainer, groups = self.trainer, len(self.trainer.model.groups)
        self._logger = RunLogger(self.folder, trainer.config, trainer.position.step, groups, self.reporter.warn)

    def close(self) -> None:
        """Close the loggers."""
        if self._logger is not None:
            self._logger.close()
            self._logger = None

    def finish(self) -> None:
        """Write what could not be written, the last page, which is not refreshed any more, and close the loggers."""
        for what, write in list(self._missing.items()):
            self.attempt(what, write)
        self.close()
        self.page(is_last=True)

    @property
    def logger(self) -> RunLogger:
        """The loggers of the open folder."""
        assert self._logger is not None, "open the output before anything is written"
        return self._logger

    # ------------------------------------------------------------------------------------------------------ messages

    def introduce(self, start: str | Path | None, warnings: list[str]) -> None:
        """Report the size of the model and of the data set, the checkpoint that training continues from, warnings."""
        trainer, info = self.trainer, self.reporter.info
        data = trainer.data
        parts = {"training": data.training, "validation": data.validation, "test": data.test}
        counts = ", ".join(
            counted(len(images), f"{part} image") for part, images in parts.items() if images is not None
        )
        precision = f" in {str(trainer.half).removeprefix('torch.')}" if trainer.half else ""
        if trainer.schedule.half_precision and not trainer.half:
            precision = " in float32, because this processor has no AMX"
        info(
            f"{self.files.name}: {num_parameters(trainer.model):,} parameters, "
            f"{counted(len(trainer.model.groups), 'latent group')}; {counts}; on {trainer.device}{precision}"
        )
        if reason := trainer.execution.reason:
            info(f"training_parameters.compile: {trainer.schedule.compile} does not have its whole effect: {reason}")
        if trainer.has_batch_norm and len(trainer.position.part_sizes) > 1:
            info(
                f"batch norm uses the statistics of each of the {len(trainer.position.part_sizes)} parts of a batch, "
                f"{trainer.position.part_sizes[0]} images, not of the whole batch"
            )
        epochs, done = trainer.schedule.epochs, trainer.position.epoch
        if start and done >= epochs:
            info(
                f"{start} is trained: {counted(done, 'epoch')} of {epochs} done. To "
                f"continue, set training_parameters.epochs to more than {done}, for example {2 * done}."
            )
        elif start and not trainer.stopped_early:
            info(f"continuing {start}, epoch {done + 1}, step {trainer.position.step}")
        memory = memory_warning(trainer.config, max(trainer.position.part_sizes), trainer.device)
        selection = selection_warning(data, trainer.schedule)
        for warning in filter(None, [*data.warnings, selection, *warnings, memory]):
            self.reporter.warn(warning)

    def introduce_result(self) -> None:
        """Report why training ended early, and which weights the result has."""
        trainer, info = self.trainer, self.reporter.info
        best, patience = trainer.best_weights.best, trainer.schedule.early_stopping_patience
        if trainer.stopped_early:
            info(
                f"training stopped early in epoch {trainer.position.in_epochs:g}: no better validation for {patience} "
                "epochs. To continue, set training_parameters.early_stopping_patience to a larger number or to null."
            )
        if best is not None:
            info(
                f"the result has the weights of epoch {best.validation.epoch:g}, the best validation whose weights "
                f"were kept: ELBO {best.validation.elbo:.1f} nats"
            )

    # --------------------------------------------------------------------------------------------------------- files

    def metrics(self, line: dict[str, Any]) -> None:
        """Log and report a line of metrics."""
        self.logger.log(line)
        epochs = self.trainer.schedule.epochs
        left = seconds_left(self.logger.metrics, self.trainer.position.in_epochs, epochs)
        self.reporter.metrics(metrics_text(line, epochs, left), line)

    def event(self, kind: str, text: str) -> None:
        """Log an event at the present position."""
        self.logger.log_event(new_event(kind, text, self.trainer.position.step, self.trainer.position.in_epochs))

    def copies(self, best_quality: bool = False) -> None:
        """Keep copies of the checkpoint that are due. best_quality: its samples are the best so far."""
        self.attempt("a copy of the checkpoint", lambda: self.files.keep_copies(self.trainer, best_quality))

    def data(self) -> None:
        """Draw the first training images, and write which pictures are left out or changed: data_report.txt."""
        self.attempt("the report on the pictures", self._write_data_report)
        self.attempt("the picture of the data", lambda: draw_data(self.trainer.data, self.trainer.config, self.folder))

    def _write_data_report(self) -> None:
        path, report = self.folder / "data_report.txt", self.trainer.data.report
        if report:
            with atomic_write(path) as temporary:
                temporary.write_text(report, encoding="utf-8")
            self.reporter.info(f"{path} has the pictures that are left out or changed")
        else:
            path.unlink(missing_ok=True)

    def pictures(self, model: HierarchicalVAE | None = None) -> None:
        """Draw samples and reconstructions of a model (default: of the trainer's, for pictures), and curves."""
        trainer, model = self.trainer, model or model_for_pictures(self.trainer)
        model.eval()

        def samples() -> None:
            step = trainer.position.step  # when drawn, which may be at the end of the training
            self.logger.log_images("samples", draw_samples(model, self.folder, step), step)

        def reconstructions() -> None:
            step = trainer.position.step
            picture = draw_reconstructions(model, trainer.data, self.folder, step)
            self.logger.log_images("reconstructions", picture, step)

        self.attempt("the samples", samples)
        if trainer.schedule.write_reconstruction:
            self.attempt("the reconstructions", reconstructions)
        self.attempt("the curves", lambda: draw_curves(self.logger.metrics, group_names(model), self.folder))

    @property
    def lacks_pictures(self) -> bool:
        """Whether a picture of the model is missing, because the disk was full for example."""
        names = [name for name in picture_names(self.trainer.schedule) if self.logger.metrics or name not in CURVES]
        return not all((self.folder / name).exists() for name in names)

    def film(self) -> None:
        """Draw the film of the samples over the steps."""
        self.attempt("the film of the samples", lambda: draw_film(self.folder))

    def page(self, line: dict[str, Any] | None = None, is_last: bool = False) -> None:
        """Write report.html. line: metrics of the steps since the last line. is_last: training ends."""
        trainer, files, start = self.trainer, self.files, time.monotonic()
        self.attempt(
            "the page of the run", lambda: write_page(record_of(trainer, files.name, files.root, line, not is_last))
        )
        end = time.monotonic()
        self._page_due = end + max(PAGE_SECONDS, (end - start) / PAGE_PORTION)

    @property
    def page_is_due(self) -> bool:
        """Whether the page is so old that it is worth its time, between two checkpoints."""
        return time.monotonic() >= self._page_due

    def attempt(self, what: str, write: Callable[[], object]) -> None:
        """Call a function that writes what training does not need; its error becomes a warning."""
        self._missing.pop(what, None)
        try:
            write()
        except Exception as error:  # from files, fonts, backends, recalibration, pictures of any content
            step = self.trainer.position.step
            self.reporter.warn(f"{what} of step {step} could not be written: {error}", once=f"{what}: {error}")
            self._missing[what] = write
