"""Training from start to result: epochs, checkpoints, pictures, and continuing where an earlier run stopped."""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from nvae.checkpoint import save
from nvae.config import config_path, load_config
from nvae.data.registry import load_data
from nvae.schema import ModelConfig
from nvae.system.devices import set_deterministic
from nvae.system.errors import DivergenceError, UserError
from nvae.system.files import root_folder
from nvae.system.locks import run_lock
from nvae.system.progress import ProgressBars
from nvae.system.ranks import device_of_process, joined_ranks
from nvae.system.signals import stop_requests
from nvae.training.events import Event, Reporter
from nvae.training.metrics import LATELY, OVERALL, Clock, duration_text, metrics_line, seconds_left, with_bound
from nvae.training.report.page import utc_time
from nvae.training.report.record import CONTINUED, EARLY_STOPPING, FINISHED, STARTED, STOPPED
from nvae.training.resuming import calibrate, check_good, recover, resume_training, save_training, start_from
from nvae.training.run_files import RunFiles
from nvae.training.run_output import RunOutput, explained_out_of_memory
from nvae.training.trainer import Trainer
from nvae.training.validation import (
    FID,
    ONLY_IMAGES,
    evaluate_result,
    is_complete,
    result,
    share_statistics,
    try_to_measure,
    validate,
)


class Stopped(KeyboardInterrupt):
    """Training was asked to stop by a signal, and has saved. A notebook stops at this cell, as after any interrupt.

    code: the exit code of a program that ends by the signal, 128 plus the signal's number.
    """

    def __init__(self, signal_number: int, text: str) -> None:
        super().__init__(text)
        self.code = 128 + signal_number


def train(
    config: ModelConfig | str,
    name: str | None = None,
    device: str | None = None,
    fresh: bool = False,
    folder: str | Path | None = None,
    on_event: Callable[[Event], object] | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
    init_from: str | Path | None = None,
    continue_with_changed_data: bool = False,
    only_images: int | None = None,
) -> Path:
    """Train a model, or continue its training, to the end of its schedule; return the path of the result.

    config: a config, or the name or path of one. name: of the files, <folder>/saved_weights/<name>.checkpoint,
    <folder>/runs/<name>/ and so on (default: the config's name, or its family and data set; and `root_folder()`).
    device: "cuda", "cuda:1", "xpu", "mps" or "cpu" (default: the fastest one).
    fresh: start over; the checkpoint and the folder of an earlier run are kept under another name.
    on_event: receives what happens, `print_event` for example. progress: show progress bars.
    checkpoint: a .checkpoint file whose training is continued where the run has no checkpoint yet. The file stays as it
    is, and the same keys may change as in a run.
    init_from: a .model or .checkpoint file whose weights a new run starts from.
    continue_with_changed_data: continue although the images are not those of the checkpoint, with a warning.
    only_images: use only the first images of each part of the data set (default: all).
    Sets torch's process-wide options for cuDNN and deterministic algorithms. Raises UserError, RunLockedError while the
    run is trained elsewhere, DivergenceError where going back to a checkpoint does not help any more, and Stopped, a
    KeyboardInterrupt, after Ctrl-C or SIGTERM, with the state saved.
    """
    if isinstance(config, str):
        name = config_path(config).stem if name is None else name
        config = load_config(config)
    name = f"{config.family}_{config.dataset.name}" if name is None else name
    files = RunFiles(name, Path(folder or root_folder()))
    set_deterministic(config.training_parameters.deterministic)
    selected = device_of_process(device)
    with joined_ranks(selected) as ranks, explained_out_of_memory():
        reporter = Reporter(on_event if ranks.is_first else lambda event: None)
        with run_lock(files.lock, name, reporter.warn) if ranks.is_first else nullcontext():
            if ranks.is_first:
                files.remove_unfinished()
            if not fresh and ranks.from_first(lambda: is_complete(config, files, only_images)):
                reporter.info(
                    f"{files.model} is trained and complete: nothing is left to do. To train on, set "
                    "training_parameters.epochs to more, or early_stopping_patience to null if the training stopped "
                    "early."
                )
                return files.model
            progress = progress and ranks.is_first
            with ranks.first_of_machine_first():
                data = load_data(config, progress)
                data = data if only_images is None else data.map(lambda images_u8: images_u8[:only_images])
            if len(set(ranks.gather(data.fingerprint))) > 1:
                raise UserError("the processes have different images. Put the same data set on every machine.")
            trainer = Trainer(config, data, selected, ranks)
            if only_images is not None:
                trainer.metadata[ONLY_IMAGES] = only_images
            return _Training(trainer, files, RunOutput(trainer, files, reporter), progress).run(
                fresh, checkpoint, init_from, continue_with_changed_data
            )


class _Training:
    """One call of `train`: the trainer and its schedule. Of several processes, the first one writes."""

    def __init__(self, trainer: Trainer, files: RunFiles, output: RunOutput, progress: bool) -> None:
        self.trainer, self.files, self.output, self.progress = trainer, files, output, progress
        self.ranks = trainer.ranks
        self.clock, self.overall = Clock(), Clock()  # of the steps, and of all work since the last line of metrics

    def run(self, fresh: bool, checkpoint: str | Path | None, init_from: str | Path | None, changed_data: bool) -> Path:
        trainer, files, output, info = self.trainer, self.files, self.output, self.output.reporter.info
        own, warnings = (None, []) if fresh else files.resume(trainer, changed_data)
        start = own or checkpoint
        if start and not own:
            warnings = resume_training(trainer, Path(start), changed_data=changed_data)
        if not start:
            calibrate(trainer)
            if init_from:
                start_from(trainer, Path(init_from))
        if fresh and self.ranks.is_first:  # after reading, which may fail, or may be of these very files
            for path, aside in files.put_aside():
                info(f"{path} is kept as {aside}")
        output.introduce(start, warnings)
        if not start and init_from:
            info(f"starting from the weights of {init_from}")
        if not own:  # before the first step, so that a folder without write access fails early
            save_training(trainer, files.checkpoint, files.name)
        step = trainer.position.step
        if not self.ranks.is_first:
            self._train_and_recover()
            evaluate_result(trainer, output, result(trainer)[0], self.progress)
            return files.model
        output.copies()  # an earlier process may have been killed between a checkpoint and its copies
        output.open()
        try:
            if not trainer.is_finished:
                how = f"continued from {start}" if start else "started"
                output.event(CONTINUED if start else STARTED, f"training {how}, {utc_time()}")
            output.data()
            if not trainer.is_finished:
                output.page()
            self._train_and_recover()
            output.introduce_result()
            patience = trainer.schedule.early_stopping_patience
            model, metadata = result(trainer)
            save(model, files.model, metadata=metadata, run=files.name)
            if trainer.position.step > step:
                if model is not trainer.eval_model:
                    output.pictures(model)
                output.film()
                end = f"no better validation for {patience} epochs" if trainer.stopped_early else "all epochs are done"
                output.event(EARLY_STOPPING if trainer.stopped_early else FINISHED, f"{end}, {utc_time()}")
            elif output.lacks_pictures:
                output.pictures(model)
                output.film()
            evaluate_result(trainer, output, model, self.progress)
        except Exception as error:
            output.event("divergence" if isinstance(error, DivergenceError) else "error", str(error))
            raise
        finally:
            output.finish()
        info(f"the result is {files.model}; pictures and metrics are in {output.folder}/")
        return files.model

    def _train_and_recover(self) -> None:
        """Train to the end; a training that diverges goes back to the last checkpoint and continues from there."""
        with stop_requests() as self.stop:
            self.trainer.stop = self.stop
            while True:
                try:
                    return self._train()
                except DivergenceError as divergence:
                    self._recover(divergence)
                self._stop_if_asked()

    def _recover(self, divergence: DivergenceError) -> None:
        event = recover(self.trainer, self.files.checkpoint, divergence, self.files.name)
        if self.ranks.is_first:
            self.output.open()  # without the metrics of the steps that are taken again
            self.output.logger.log_event(event)
            self.output.reporter.warn(event["text"])

    def _train(self) -> None:
        trainer = self.trainer
        epochs, position = trainer.schedule.epochs, trainer.position
        finished = trainer.is_finished
        self.bars = ProgressBars(epochs, trainer.position.steps_per_epoch, position.epoch, self.progress)
        self.clock.reset()
        self.overall.reset()
        try:
            while not finished:
                epoch = position.epoch
                for images_u8 in trainer.batches():
                    metrics = trainer.step(images_u8)
                    self.clock.step(len(images_u8))
                    self.overall.step(len(images_u8))
                    number = position.image // position.batch_size or position.steps_per_epoch
                    self.bars.step(number, partial(self._bar_numbers, metrics))
                    due = checkpoint_due(trainer)
                    if due or position.epoch > epoch:
                        self._report(metrics, due)
                        self.clock.reset()
                    elif self.ranks.is_first and self.output.page_is_due:
                        self.output.page(self._line(metrics))
                    finished = trainer.is_finished
                    if self.ranks.count == 1 or trainer.stop_requested or due or finished:
                        self._stop_if_asked()
                    if finished:
                        break
                self.bars.epoch(position.epoch)
        finally:
            self.bars.close()

    def _report(self, last_step: dict[str, Any], checkpoint: bool) -> None:
        """Record a line of metrics; for a checkpoint also validate, save the state and draw the pictures."""
        trainer = self.trainer
        line = self._line(last_step)
        if checkpoint:
            self.bars.activity("validating")
            line |= validate(trainer, self.output)
        trainer.running_mean.clear()
        if checkpoint:
            check_good(trainer)  # on every rank, so that all go back together
        if not self.ranks.is_first:
            return
        best_quality = False
        if checkpoint and trainer.position.completes(trainer.schedule.evaluate_quality_every):
            self.bars.activity("measuring samples")
            earlier = [before[FID] for before in self.output.logger.metrics if FID in before]
            line |= try_to_measure(trainer, self.stop, self.output.reporter.warn)
            best_quality = FID in line and line[FID] < min(earlier, default=math.inf)
        self.output.metrics(line | {OVERALL: self.overall.images_per_second()})
        self.overall.reset()
        if checkpoint:
            self.bars.activity("saving")
            save_training(trainer, self.files.checkpoint, self.files.name)
            self.output.copies(best_quality)
            self.bars.activity("drawing")
            self.output.pictures()
            self.output.page()
        self.bars.activity("")

    def _stop_if_asked(self) -> None:
        """Save and end all processes if one of them got a signal to stop."""
        signal_number, trainer = self.ranks.any_number(self.stop.signal), self.trainer
        if signal_number is None:
            return
        share_statistics(trainer)
        try:
            save_training(trainer, self.files.checkpoint, self.files.name)
            saved = f"saved {self.files.checkpoint}"
        except DivergenceError as divergence:  # going back is for the next call
            saved = f"saved nothing, because {divergence.problem} {self.files.checkpoint} is the last good checkpoint"
        if self.ranks.is_first:
            self.output.event(STOPPED, f"{signal.Signals(signal_number).name} received, {saved}, {utc_time()}")
        self.ranks.wait()  # torchrun ends the other processes as soon as one has ended
        self.bars.close()
        epochs = trainer.schedule.epochs
        text = (
            f"stopped in epoch {min(trainer.position.epoch + 1, epochs)} of {epochs}, step {trainer.position.step}, "
            f"and {saved}. To continue, run the same command again."
        )
        self.output.reporter.info(text)
        raise Stopped(signal_number, text)

    def _line(self, last_step: dict[str, Any]) -> dict[str, Any]:
        return metrics_line(self.trainer, last_step, self.clock, self.overall)

    def _bar_numbers(self, metrics: dict[str, Any]) -> dict[str, str]:
        trainer, values = self.trainer, with_bound(metrics, self.trainer)
        lines = [*self.output.logger.metrics[-LATELY:], self._line(metrics)]
        left = seconds_left(lines, trainer.position.in_epochs, trainer.schedule.epochs)
        numbers = {"loss": f"{values['loss']:.6g}"}
        if "kl" in values:
            numbers |= {"KL": f"{values['kl']:.1f}", "bits/dim": f"{values['bits_per_dimension']:.3f}"}
        numbers |= {
            "images/s": f"{self.clock.images_per_second():.1f}",
            "left": "?" if left is None else duration_text(left),
        }
        skipped = trainer.position.skipped_steps
        return numbers | ({"skipped": str(skipped)} if skipped else {})


def checkpoint_due(trainer: Trainer) -> bool:
    """Return whether a checkpoint is due: the last step completed the epochs or images between two, or all epochs.

    Before the last epoch, a state in doubt waits for the next checkpoint.
    """
    schedule, position = trainer.schedule, trainer.position
    if trainer.recovery.in_doubt and not trainer.is_finished:
        return False
    every_epochs = (schedule.epochs_per_checkpoint, schedule.keep_every, schedule.evaluate_quality_every)
    if any(map(position.completes, (schedule.epochs, *every_epochs))):
        return True
    every, seen = schedule.images_per_checkpoint, position.images_seen
    return every is not None and seen // every > (seen - position.batch_size) // every
