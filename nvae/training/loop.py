"""Training from start to result: epochs, checkpoints, pictures, and continuing where an earlier run stopped."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from nvae.checkpoint import checkpoint_path, model_path, save, weights_digest
from nvae.config import config_path, load_config
from nvae.data.registry import evaluation_images, load_data
from nvae.devices import choose_device, set_fast_defaults
from nvae.errors import DivergenceError
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.report import is_saved, report, save_report
from nvae.files import WriteError, atomic_write
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.signals import StopRequest, stop_requests
from nvae.summary import group_name, num_parameters
from nvae.training.events import Event, Reporter
from nvae.training.loggers import FOLDER as RUNS
from nvae.training.loggers import RunLogger
from nvae.training.memory import explained_out_of_memory, memory_warning
from nvae.training.metrics import Clock, health_warnings, metrics_line, metrics_text, with_bound
from nvae.training.previews import draw_curves, draw_data, draw_film, draw_reconstructions, draw_samples
from nvae.training.progress_bars import ProgressBars
from nvae.training.recovery import check_validation, divergence_event, recover
from nvae.training.trainer import Trainer


class Stopped(SystemExit):
    """Training was asked to stop by a signal, and has saved; the exit code is 128 plus the signal's number."""


def train(
    config: ModelConfig | str,
    name: str | None = None,
    device: str | None = None,
    fresh: bool = False,
    folder: str | Path = ".",
    on_event: Callable[[Event], object] | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> Path:
    """Train a model, or continue its training, to the end of its schedule; return the path of the result.

    config: a config, or the name or path of one. name: of the files, <folder>/saved_weights/<name>.checkpoint,
    <folder>/runs/<name>/ and so on (default: the config's name, or its family and data set).
    device: "cuda", "cuda:1", "mps" or "cpu" (default: the fastest one).
    fresh: start over; the checkpoint and the folder of an earlier run are kept under another name.
    on_event: receives what happens, `print_event` for example. progress: show progress bars.
    checkpoint: a .checkpoint file whose training is continued where the run has no checkpoint yet. The file stays as it
    is, and the same keys may change as in a run.
    Sets options of the whole process that make training faster. Raises UserError, DivergenceError where going back to a
    checkpoint does not help any more, and Stopped after Ctrl-C or SIGTERM, with the state saved.
    """
    if isinstance(config, str):
        config, name = load_config(config), name or config_path(config).stem
    name = name or f"{config.family}_{config.dataset.name}"
    set_fast_defaults()
    selected = choose_device(device)
    data = load_data(config, progress)
    with explained_out_of_memory():
        trainer = Trainer(config, data, selected)
        return _Training(trainer, name, Path(folder), Reporter(on_event), progress).run(fresh, checkpoint)


class _Training:
    """One call of `train`: the trainer and everything around it."""

    def __init__(self, trainer: Trainer, name: str, folder: Path, reporter: Reporter, progress: bool) -> None:
        self.trainer, self.name, self.reporter, self.progress = trainer, name, reporter, progress
        self.checkpoint, self.model_path = checkpoint_path(name, folder), model_path(name, folder)
        self.folder = folder / RUNS / name
        self.clock = Clock()

    def run(self, fresh: bool, checkpoint: str | Path | None) -> Path:
        trainer, reporter = self.trainer, self.reporter
        continues = self.checkpoint.exists() and not fresh
        start = self.checkpoint if continues else checkpoint
        warnings = [*trainer.data.warnings, *(trainer.resume(Path(start)) if start else [])]
        if fresh:
            self._put_aside(self.checkpoint, self.model_path, self.folder)
        self._introduce(start)
        warnings.append(memory_warning(trainer.config, max(trainer.part_sizes), trainer.device))
        for warning in filter(None, warnings):
            reporter.warn(warning)
        if not start:
            trainer.calibrate()
        if not continues:
            trainer.save(self.checkpoint)  # before the first step, so that a folder without write access fails early
        step = trainer.progress.step
        self._open_logger()
        self._write_data_report()
        self._try_to_draw(lambda: draw_data(trainer.data, trainer.config, self.folder))
        try:
            self._train_and_recover()
            model, metadata = self._result()
            save(model, self.model_path, metadata=metadata)
            if trainer.progress.step > step:
                if model is not trainer.eval_model:
                    self._try_to_draw(lambda: self._draw(model))
                self._try_to_draw(lambda: draw_film(self.folder))
            self._evaluate(model)
        finally:
            self.logger.close()
        reporter.info(f"the result is {self.model_path}; pictures and metrics are in {self.folder}/")
        return self.model_path

    # ------------------------------------------------------------------------------------------------ the epochs

    def _train_and_recover(self) -> None:
        """Train to the end; a training that diverges goes back to the last checkpoint and continues from there."""
        # Python handles signals in the main thread only.
        in_main_thread = threading.current_thread() is threading.main_thread()
        with stop_requests() if in_main_thread else nullcontext(StopRequest()) as stop:
            while True:
                try:
                    return self._train(stop)
                except DivergenceError as divergence:
                    self._recover(divergence)
                if stop.signal is not None:
                    self._stop(stop.signal)

    def _recover(self, divergence: DivergenceError) -> None:
        trainer = self.trainer
        try:
            event = recover(trainer, self.checkpoint, divergence)
        except DivergenceError as end:
            self.logger.log_event(divergence_event("divergence", str(end), trainer.progress.step, trainer.epoch))
            raise
        self.logger.close()
        self._open_logger()  # without the metrics of the steps that are taken again
        self.logger.log_event(event)
        self.reporter.warn(event["text"])

    def _train(self, stop: StopRequest) -> None:
        trainer = self.trainer
        epochs, progress = trainer.schedule.epochs, trainer.progress
        finished = trainer.is_finished
        self.bars = ProgressBars(epochs, trainer.steps_per_epoch, progress.epoch, self.progress)
        self.clock.reset()
        try:
            while not finished:
                epoch = progress.epoch
                for images_u8 in trainer.batches():
                    metrics = trainer.step(images_u8)
                    self.clock.step(len(images_u8))
                    number = progress.image // trainer.batch_size or trainer.steps_per_epoch
                    self.bars.step(number, lambda metrics=metrics: self._bar_numbers(metrics))
                    due = checkpoint_due(trainer)
                    if due or progress.epoch > epoch:
                        self.clock.stop()
                        self._report(metrics, due)
                        self.clock.start()
                    finished = trainer.is_finished
                    if stop.signal is not None and not finished:
                        self._stop(stop.signal)
                    if finished:
                        break
                self.bars.epoch(progress.epoch)
        finally:
            self.bars.close()

    def _report(self, last_step: dict[str, Any], checkpoint: bool) -> None:
        """Record a line of metrics; for a checkpoint also validate, save the state and draw the pictures."""
        trainer = self.trainer
        line = metrics_line(trainer, last_step, self.clock)
        if checkpoint:
            self.bars.activity("validating")
            line |= self._validate()
            trainer.record_validation(line["validation_elbo"], line["validation_kl_per_group"])
        trainer.running_mean.clear()
        self.clock.reset()
        self.reporter.metrics(metrics_text(line, trainer.schedule.epochs), line)
        self.logger.log(line)
        if checkpoint:
            self.bars.activity("saving")
            trainer.save(self.checkpoint)
            self.bars.activity("drawing")
            self._try_to_draw(lambda: self._draw(trainer.eval_model))
        self.bars.activity("")

    def _validate(self) -> dict[str, Any]:
        trainer, schedule = self.trainer, self.trainer.schedule
        images, targets = evaluation_images(trainer.data, "validation", trainer.config)
        evaluation = evaluate(
            trainer.eval_model, images, schedule.batch_size, 1, schedule.seed, targets, count_active=False
        )
        check_validation(trainer, evaluation.elbo.mean, evaluation.elbo_bits.mean)
        self._check_health(evaluation.kl_per_group, evaluation.elbo_bits.mean, "")
        return {
            "validation_elbo": evaluation.elbo.mean,
            "validation_bits_per_dimension": evaluation.elbo_bits.mean,
            "validation_kl_per_group": evaluation.kl_per_group,
        }

    def _check_health(self, kl_per_group: list[float], bits_per_dimension: float, when: str) -> None:
        warmed_up = self.trainer.current_kl_coefficient >= 1
        below = kl_per_group[self.trainer.model.num_contexts :]  # a context never collapses
        warnings = health_warnings(below, bits_per_dimension, self.trainer.config, warmed_up)
        for kind, warning in warnings.items():
            self.reporter.warn(warning, once=f"{kind} {when}")

    def _draw(self, model: HierarchicalVAE) -> None:
        trainer, step = self.trainer, self.trainer.progress.step
        model.eval()
        self.logger.log_images("samples", draw_samples(model, self.folder, step), step)
        if trainer.schedule.write_reconstruction:
            picture = draw_reconstructions(model, trainer.data, self.folder, step)
            self.logger.log_images("reconstructions", picture, step)
        names = [group_name(model, index) for index in range(len(model.groups))]
        draw_curves(self.logger.metrics, names, self.folder)

    def _try_to_draw(self, draw: Callable[[], object]) -> None:
        try:
            draw()
        except Exception as error:  # from files, fonts, backends, recalibration: training continues without the picture
            step = self.trainer.progress.step
            self.reporter.warn(f"the pictures of step {step} could not be drawn: {error}", once=f"drawing: {error}")

    # --------------------------------------------------------------------------------------- beginning and end

    def _result(self) -> tuple[HierarchicalVAE, dict[str, Any]]:
        """Return the result and its metadata, and report which weights the result has."""
        trainer = self.trainer
        best, patience = trainer.best_weights.best, trainer.schedule.early_stopping_patience
        if trainer.stopped_early:
            self.reporter.info(
                f"training stopped early in epoch {trainer.epoch:g}: no better validation for {patience} epochs. To "
                "continue, set training_parameters.early_stopping_patience to a larger number or to null."
            )
        if best is not None:
            self.reporter.info(
                f"the result has the weights of epoch {best.validation.epoch:g}, the best validation whose weights "
                f"were kept: ELBO {best.validation.elbo:.1f} nats"
            )
        return trainer.result()

    def _evaluate(self, model: HierarchicalVAE) -> None:
        """Evaluate the result: evaluation.json and .png, once for a trained model.

        The images are the test images, or the validation images of a data set without a test part.
        """
        trainer, schedule = self.trainer, self.trainer.schedule
        samples, stem = schedule.evaluation_samples, self.folder / "evaluation"
        metadata = {"model": self.name, "step": trainer.progress.step, "seed": schedule.seed}
        metadata |= {"weights": weights_digest(model)}
        if samples == 0 or is_saved(stem, metadata | {"samples": samples}):
            return
        part = "validation" if trainer.data.test is None else "test"
        images, targets = evaluation_images(trainer.data, part, trainer.config)
        self.reporter.info(f"evaluating on {len(images):,} {part} images with {samples} importance samples per image")
        evaluation = evaluate(
            model, images, schedule.batch_size, samples, schedule.seed, targets, progress=self.progress
        )
        self.reporter.info(report(evaluation, model, f"{part} images"))
        self._check_health(evaluation.kl_per_group, evaluation.elbo_bits.mean, "at the end")
        self._try_to_draw(lambda: save_report(evaluation, model, stem, metadata | {"part": part}))

    def _open_logger(self) -> None:
        """Open the folder of the run at the present step, without the metrics of later ones."""
        trainer = self.trainer
        step, groups = trainer.progress.step, len(trainer.model.groups)
        self.logger = RunLogger(self.folder, trainer.config, step, groups, self.reporter.warn)

    def _write_data_report(self) -> None:
        """Write which pictures are left out or changed: data_report.txt, where there are any."""
        path = self.folder / "data_report.txt"
        try:
            if self.trainer.data.report:
                with atomic_write(path) as temporary:
                    temporary.write_text(self.trainer.data.report, encoding="utf-8")
                self.reporter.info(f"{path} has the names of all pictures that are left out")
            elif path.exists():
                path.unlink()
        except (WriteError, OSError) as error:  # training continues without the report
            self.reporter.warn(f"the report on the pictures could not be written: {error}")

    def _stop(self, signal_number: int) -> None:
        trainer = self.trainer
        try:
            trainer.save(self.checkpoint)
            saved = f"saved {self.checkpoint}"
        except DivergenceError as divergence:  # going back is for the next call
            saved = f"saved nothing, because {divergence.problem} {self.checkpoint} is the last good checkpoint"
        self.bars.close()
        self.reporter.info(
            f"stopped in epoch {trainer.progress.epoch + 1} of {trainer.schedule.epochs}, "
            f"step {trainer.progress.step}, and {saved}. To continue, run the same command again."
        )
        raise Stopped(128 + signal_number)

    def _introduce(self, start: str | Path | None) -> None:
        """Report the size of the model and of the data set, and the checkpoint that training continues from."""
        trainer = self.trainer
        data = trainer.data
        parts = {"training": data.training, "validation": data.validation, "test": data.test}
        counts = ", ".join(f"{len(images):,} {part} images" for part, images in parts.items() if images is not None)
        precision = f" in {str(trainer.half).removeprefix('torch.')}" if trainer.half else ""
        self.reporter.info(
            f"{self.name}: {num_parameters(trainer.model):,} parameters, {len(trainer.model.groups)} latent groups; "
            f"{counts}; on {trainer.device}{precision}"
        )
        if trainer.has_batch_norm and len(trainer.part_sizes) > 1:
            self.reporter.info(
                f"batch norm uses the statistics of each of the {len(trainer.part_sizes)} parts of a batch, "
                f"{trainer.part_sizes[0]} images, not of the whole batch"
            )
        epochs, done = trainer.schedule.epochs, trainer.progress.epoch
        if start and done >= epochs:
            self.reporter.info(
                f"{start} is trained: {done} epochs are done, and training_parameters.epochs is {epochs}. To "
                f"continue, set training_parameters.epochs to more than {done}, for example {2 * done}."
            )
        elif start and not trainer.stopped_early:
            self.reporter.info(f"continuing {start}, epoch {done + 1}, step {trainer.progress.step}")

    def _put_aside(self, *paths: Path) -> None:
        """Rename existing files with the first number that is free for all of them."""

        def aside(path: Path, number: int) -> Path:
            return path.with_name(f"{path.name}.{number}")

        number = next(n for n in itertools.count(1) if not any(os.path.lexists(aside(path, n)) for path in paths))
        for path in filter(Path.exists, paths):
            try:
                os.rename(path, aside(path, number))
            except OSError as error:
                raise WriteError(aside(path, number), error) from error
            self.reporter.info(f"{path} is kept as {aside(path, number)}")

    def _bar_numbers(self, metrics: dict[str, Any]) -> dict[str, str]:
        trainer, values = self.trainer, with_bound(metrics, self.trainer)
        total = trainer.schedule.epochs * trainer.steps_per_epoch * trainer.batch_size
        numbers = {
            "loss": f"{values['loss']:.6g}",
            "KL": f"{values['kl']:.1f}",
            "bits/dim": f"{values['bits_per_dimension']:.3f}",
            "images/s": f"{self.clock.images_per_second():.1f}",
            "left": self.clock.time_left(total - trainer.progress.images_seen),
        }
        skipped = trainer.progress.skipped_steps
        return numbers | ({"skipped": str(skipped)} if skipped else {})


def checkpoint_due(trainer: Trainer) -> bool:
    """Return whether the last step completed the epochs or the images between two checkpoints, or the last epoch.

    Before the last epoch, a state in doubt waits for the next checkpoint.
    """
    schedule, progress = trainer.schedule, trainer.progress
    if trainer.recovery.in_doubt and not trainer.is_finished:
        return False
    if progress.image == 0 and (
        progress.epoch == schedule.epochs
        or (schedule.epochs_per_checkpoint and progress.epoch % schedule.epochs_per_checkpoint == 0)
    ):
        return True
    every = schedule.images_per_checkpoint
    return every is not None and progress.images_seen // every > (progress.images_seen - trainer.batch_size) // every
