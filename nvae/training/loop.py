"""Training from start to result: epochs, checkpoints, pictures, and continuing where an earlier run stopped."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from nvae.checkpoint import save, weights_digest
from nvae.config import config_path, load_config
from nvae.data.registry import evaluation_images, load_data
from nvae.devices import choose_device, set_fast_defaults
from nvae.errors import DivergenceError, UserError
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.report import is_saved, report, save_report
from nvae.files import WriteError, atomic_write
from nvae.models.hierarchy import HierarchicalVAE
from nvae.ranks import joined_ranks, local_index, started_by_torchrun
from nvae.schema import ModelConfig
from nvae.signals import StopRequest, stop_requests
from nvae.summary import group_name, num_parameters
from nvae.training.events import Event, Reporter
from nvae.training.locks import run_lock
from nvae.training.loggers import RunLogger, new_event
from nvae.training.memory import explained_out_of_memory, memory_warning
from nvae.training.metrics import Clock, health_warnings, metrics_line, metrics_text, with_bound
from nvae.training.previews import draw_curves, draw_data, draw_film, draw_reconstructions, draw_samples
from nvae.training.progress_bars import ProgressBars
from nvae.training.recovery import check_good, check_validation, recover
from nvae.training.report.page import utc_time, write_page
from nvae.training.report.record import CONTINUED, EARLY_STOPPING, FINISHED, STARTED, STOPPED, record_of
from nvae.training.run_files import RunFiles, keep_every_due
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
    init_from: str | Path | None = None,
    continue_with_changed_data: bool = False,
) -> Path:
    """Train a model, or continue its training, to the end of its schedule; return the path of the result.

    config: a config, or the name or path of one. name: of the files, <folder>/saved_weights/<name>.checkpoint,
    <folder>/runs/<name>/ and so on (default: the config's name, or its family and data set).
    device: "cuda", "cuda:1", "mps" or "cpu" (default: the fastest one).
    fresh: start over; the checkpoint and the folder of an earlier run are kept under another name.
    on_event: receives what happens, `print_event` for example. progress: show progress bars.
    checkpoint: a .checkpoint file whose training is continued where the run has no checkpoint yet. The file stays as it
    is, and the same keys may change as in a run.
    init_from: a .model or .checkpoint file whose weights a new run starts from.
    continue_with_changed_data: continue although the images are not those of the checkpoint, with a warning.
    Sets options of the whole process that make training faster. Raises UserError, RunLockedError while the run is
    trained elsewhere, DivergenceError where going back to a checkpoint does not help any more, and Stopped after Ctrl-C
    or SIGTERM, with the state saved.
    """
    if isinstance(config, str):
        config, name = load_config(config), name or config_path(config).stem
    name = name or f"{config.family}_{config.dataset.name}"
    files = RunFiles(name, Path(folder))
    set_fast_defaults(config.training_parameters.deterministic)
    if device is None and started_by_torchrun() and not torch.cuda.is_available():
        device = "cpu"  # of the devices without CUDA, the only one for several processes
    selected = choose_device(device, local_index())
    with joined_ranks(selected) as ranks, explained_out_of_memory():
        reporter = Reporter(on_event if ranks.is_first else lambda event: None)
        with run_lock(files.lock, name, reporter.warn) if ranks.is_first else nullcontext():
            if ranks.is_first:
                files.remove_unfinished()
            progress = progress and ranks.is_first
            with ranks.first_of_machine_first():
                data = load_data(config, progress)
            if len(set(ranks.gather(data.fingerprint))) > 1:
                raise UserError("the processes have different images. Put the same data set on every machine.")
            trainer = Trainer(config, data, selected, ranks)
            trainer.continue_with_changed_data = continue_with_changed_data
            return _Training(trainer, files, reporter, progress).run(fresh, checkpoint, init_from)


class _Training:
    """One call of `train`: the trainer and everything around it. Of several processes, the first one writes."""

    def __init__(self, trainer: Trainer, files: RunFiles, reporter: Reporter, progress: bool) -> None:
        self.trainer, self.files, self.reporter, self.progress = trainer, files, reporter, progress
        self.ranks = trainer.ranks
        self.name, self.folder, self.checkpoint, self.model_path = (
            files.name,
            files.folder,
            files.checkpoint,
            files.model,
        )
        trainer.run = files.name
        self.clock = Clock()

    def run(self, fresh: bool, checkpoint: str | Path | None, init_from: str | Path | None) -> Path:
        trainer, reporter = self.trainer, self.reporter
        own, warnings = (None, []) if fresh else self.files.resume(trainer)
        start = own or checkpoint
        if start and not own:
            warnings = trainer.resume(Path(start))
        warnings = [*trainer.data.warnings, *warnings]
        if fresh and self.ranks.is_first:
            for path, aside in self.files.put_aside():
                reporter.info(f"{path} is kept as {aside}")
        self._introduce(start)
        warnings.append(memory_warning(trainer.config, max(trainer.part_sizes), trainer.device))
        for warning in filter(None, warnings):
            reporter.warn(warning)
        if not start:
            trainer.calibrate()
            if init_from:
                trainer.initialize(Path(init_from))
                reporter.info(f"starting from the weights of {init_from}")
        if not own:
            trainer.save(self.checkpoint)  # before the first step, so that a folder without write access fails early
        step = trainer.progress.step
        if not self.ranks.is_first:
            self._train_and_recover()
            self._evaluate(self._result()[0])
            return self.model_path
        self._keep_copies()  # an earlier process may have been killed between a checkpoint and its copies
        self._open_logger()
        if not trainer.is_finished:
            how = f"continued from {start}" if start else "started"
            self._log_event(CONTINUED if start else STARTED, f"training {how}, {utc_time()}")
        self._write_data_report()
        self._try_to_draw(lambda: draw_data(trainer.data, trainer.config, self.folder))
        try:
            self._train_and_recover()
            model, metadata = self._result()
            save(model, self.model_path, metadata=metadata, run=self.name)
            if trainer.progress.step > step:
                if model is not trainer.eval_model:
                    self._try_to_draw(lambda: self._draw(model))
                self._try_to_draw(lambda: draw_film(self.folder))
                self._log_end()
            self._evaluate(model)
            self._write_page()
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
                if (signal_number := self.ranks.any_number(stop.signal)) is not None:
                    self._stop(signal_number)

    def _recover(self, divergence: DivergenceError) -> None:
        try:
            event = recover(self.trainer, self.checkpoint, divergence)
        except DivergenceError as end:
            if self.ranks.is_first:
                self._log_event("divergence", str(end))
            raise
        if not self.ranks.is_first:
            return
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
                    signal_number = self.ranks.any_number(stop.signal)
                    if signal_number is not None:
                        self._stop(signal_number)
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
        if checkpoint:
            check_good(trainer)  # on every rank, so that all go back together
        if not self.ranks.is_first:
            return
        self.reporter.metrics(metrics_text(line, trainer.schedule.epochs), line)
        self.logger.log(line)
        if checkpoint:
            self.bars.activity("saving")
            trainer.save(self.checkpoint)
            self._keep_copies()
            self.bars.activity("drawing")
            self._try_to_draw(lambda: self._draw(trainer.model_for_pictures()))
            self._write_page()
        self.bars.activity("")

    def _validate(self) -> dict[str, Any]:
        trainer, schedule = self.trainer, self.trainer.schedule
        images, targets = evaluation_images(trainer.data, "validation", trainer.config)
        trainer.share_statistics()
        evaluation = evaluate(
            trainer.eval_model,
            images,
            schedule.batch_size,
            1,
            schedule.seed,
            targets,
            count_active=False,
            ranks=self.ranks,
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

    def _write_page(self) -> None:
        """Write report.html. An error is a warning: training continues without the page."""
        try:
            write_page(record_of(self.trainer, self.name, self.files.root))
        except Exception as error:  # from files, pictures of any content, charts
            self.reporter.warn(f"the page of the run could not be written: {error}", once=f"page: {error}")

    def _log_event(self, kind: str, text: str) -> None:
        self.logger.log_event(new_event(kind, text, self.trainer.progress.step, self.trainer.epoch))

    def _log_end(self) -> None:
        trainer, patience = self.trainer, self.trainer.schedule.early_stopping_patience
        if trainer.stopped_early:
            self._log_event(EARLY_STOPPING, f"no better validation for {patience} epochs, {utc_time()}")
        else:
            self._log_event(FINISHED, f"all epochs are done, {utc_time()}")

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
        if samples == 0 or self.ranks.from_first(lambda: is_saved(stem, metadata | {"samples": samples})):
            return
        part = "validation" if trainer.data.test is None else "test"
        images, targets = evaluation_images(trainer.data, part, trainer.config)
        self.reporter.info(f"evaluating on {len(images):,} {part} images with {samples} importance samples per image")
        evaluation = evaluate(
            model,
            images,
            schedule.batch_size,
            samples,
            schedule.seed,
            targets,
            progress=self.progress,
            ranks=self.ranks,
        )
        if not self.ranks.is_first:
            return
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
                self.reporter.info(f"{path} has the pictures that are left out or changed")
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
        if self.ranks.is_first:
            self._log_event(STOPPED, f"{signal.Signals(signal_number).name} received, {saved}, {utc_time()}")
            self._write_page()
        self.ranks.wait()  # torchrun ends the other processes as soon as one has ended
        self.bars.close()
        epochs = trainer.schedule.epochs
        self.reporter.info(
            f"stopped in epoch {min(trainer.progress.epoch + 1, epochs)} of {epochs}, step {trainer.progress.step}, "
            f"and {saved}. To continue, run the same command again."
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

    def _keep_copies(self) -> None:
        try:
            self.files.keep_copies(self.trainer)
        except WriteError as error:  # training continues: the checkpoint itself is saved
            self.reporter.warn(str(error), once=f"copy: {error}")

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
    """Return whether a checkpoint is due: the last step completed the epochs or images between two, or all epochs.

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
    if keep_every_due(trainer):
        return True
    every = schedule.images_per_checkpoint
    return every is not None and progress.images_seen // every > (progress.images_seen - trainer.batch_size) // every
