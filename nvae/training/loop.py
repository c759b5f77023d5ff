"""Training from start to result: epochs, checkpoints, pictures, and going on where it stopped."""

from __future__ import annotations

import math
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

from nvae.checkpoint import checkpoint_path, model_path, save
from nvae.data.registry import load_data
from nvae.devices import choose_device
from nvae.errors import UserError
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.report import is_saved, report, save_report
from nvae.schema import ModelConfig
from nvae.signals import stop_requests
from nvae.summary import num_parameters
from nvae.training.loggers import FOLDER as RUNS
from nvae.training.loggers import Records
from nvae.training.previews import draw_curves, draw_reconstructions, draw_samples
from nvae.training.progress_bars import Progress
from nvae.training.trainer import Run, how_to_go_on

STEPS_BETWEEN_CHECKS = 50  # whether the loss is finite: often enough to waste little, seldom enough to cost nothing


class Stopped(SystemExit):
    """Training was asked to stop, and has saved; the exit code is 128 plus the signal's number."""


def train(config: ModelConfig, name: str, device: str | None = None, fresh: bool = False) -> Path:
    """Train a model, or go on with it, to the end of its schedule; returns the path of the result.

    name: what the files are called: saved_weights/<name>.checkpoint, runs/<name>/, ...
    device: "cuda", "cuda:1", "mps", "cpu"; None for the fastest there is.
    fresh: start over; an earlier run's checkpoint and folder are kept under another name.
    Raises UserError, and Stopped after Ctrl-C or SIGTERM.
    """
    chosen = choose_device(device)
    data = load_data(config)
    run = Run(config, data, chosen)
    checkpoint = checkpoint_path(name)
    if fresh:
        _put_aside(checkpoint, model_path(name), RUNS / name)
    continues = checkpoint.exists()
    if continues:
        run.resume(checkpoint)
    for warning in data.warnings:
        print(warning)
    _introduce(run, name, checkpoint if continues else None)
    records = Records(name, config, run.position.step)
    try:
        _train(run, name, records)
        save(run.model, model_path(name), metadata=run.metadata)
        _evaluate(run, records)
    finally:
        records.close()
    print(f"the result is {model_path(name)}; pictures and numbers are in {records.folder}/")
    return model_path(name)


def _train(run: Run, name: str, records: Records) -> None:
    schedule = run.schedule
    progress = Progress(schedule.epochs, run.steps_per_epoch, run.position.epoch)
    clock = Clock()
    if run.position.step == 0:
        run.save(checkpoint_path(name))  # now, so that a folder that takes no file is noticed before the work
    try:
        with stop_requests() as stop:
            while run.position.epoch < schedule.epochs:
                epoch, order = run.position.epoch, run.order()
                while run.position.epoch == epoch:
                    first = run.position.image
                    values = run.step(run.data.training[order[first : first + run.batch_size]])
                    clock.step(run.batch_size)
                    number = run.position.image // run.batch_size or run.steps_per_epoch
                    progress.batch(number, partial(_numbers, run, values, clock))
                    if run.position.step % STEPS_BETWEEN_CHECKS == 0:
                        _refuse_non_finite(values["loss"].item(), run, name)
                    due = checkpoint_due(run)
                    if due or run.position.epoch > epoch:
                        clock.stop()
                        _report(run, name, records, progress, clock, due)
                        clock.start()
                    if stop.signal is not None and run.position.epoch < schedule.epochs:
                        _stop(run, name, stop.signal, progress)
                progress.epoch(run.position.epoch)
    finally:
        progress.close()


def checkpoint_due(run: Run) -> bool:
    """Whether the step just taken completed the epochs or the images between two checkpoints, or the last epoch."""
    schedule, position = run.schedule, run.position
    completed = position.image == 0
    if completed and (
        position.epoch == schedule.epochs
        or (schedule.epochs_per_checkpoint and position.epoch % schedule.epochs_per_checkpoint == 0)
    ):
        return True
    every = schedule.images_per_checkpoint
    return every is not None and position.images_seen // every > (position.images_seen - run.batch_size) // every


def _report(run: Run, name: str, records: Records, progress: Progress, clock: Clock, checkpoint: bool) -> None:
    """A line of numbers; at a checkpoint also the validation images, the saved state and the pictures."""
    entry = _averages(run, clock)
    _refuse_non_finite(entry["loss"], run, name)
    if checkpoint:
        progress.doing("validating")
        entry |= _validation(run)
        _refuse_non_finite(entry["validation_elbo"], run, name)
    run.averages.clear()
    progress.say(_line(run, entry))
    records.note(entry)
    if checkpoint:
        progress.doing("saving")
        run.save(checkpoint_path(name))
        progress.doing("drawing")
        try:
            _draw(run, records)
        except (UserError, OSError) as error:  # pictures are worth no training run
            progress.say(f"the pictures of step {run.position.step} could not be drawn: {error}")
    progress.doing("")


def _averages(run: Run, clock: Clock) -> dict[str, Any]:
    averages = run.averages.values()
    elbo = averages["log_likelihood"] - sum(averages["kl_per_group"])
    entry = {
        "step": run.position.step,
        "epoch": round(run.epoch, 4),
        "images": run.position.images_seen,
        "loss": averages["loss"],
        "elbo": elbo,
        "log_likelihood": averages["log_likelihood"],
        "kl": sum(averages["kl_per_group"]),
        "kl_per_group": averages["kl_per_group"],
        "bits_per_dimension": run.model.likelihood.bits_per_dimension(-elbo, run.data.training[0].numel()),
        "learning_rate": run.learning_rate,
        "kl_coefficient": run.kl_coefficient,
        "images_per_second": round(clock.images_per_second(), 2),
    }
    clock.reset()
    return entry


def _validation(run: Run) -> dict[str, Any]:
    schedule = run.schedule
    found = evaluate(run.model, run.data.validation, schedule.batch_size, seed=schedule.seed, count_active=False)
    run.metadata["kl_per_group"] = found.kl_per_group
    return {
        "validation_elbo": found.elbo.mean,
        "validation_bits_per_dimension": found.elbo_bits.mean,
        "validation_kl_per_group": found.kl_per_group,
    }


def _evaluate(run: Run, records: Records) -> None:
    """What the validation images say about the result: evaluation.json and .png, once for a trained model."""
    samples, stem = run.schedule.evaluation_samples, records.folder / "evaluation"
    about = {"step": run.position.step, "seed": run.schedule.seed}
    if samples == 0 or is_saved(stem, about | {"samples": samples}):
        return
    print(
        f"evaluating on {len(run.data.validation):,} validation images, {samples} importance samples each", flush=True
    )
    found = evaluate(run.model, run.data.validation, run.schedule.batch_size, samples, run.schedule.seed, progress=True)
    print(report(found, run.model, "validation images"))
    save_report(found, run.model, stem, about)


def _draw(run: Run, records: Records) -> None:
    model, step = run.model.eval(), run.position.step
    draw_samples(model, records.folder / "samples.png", step)
    if run.schedule.write_reconstruction:
        draw_reconstructions(model, run.data, records.folder / "reconstructions.png", step)
    names = [f"{i + 1}: {height}x{width}" for i, (_, height, width) in enumerate(model.noise_shapes)]
    draw_curves(records.metrics, names, records.folder)


def _refuse_non_finite(bound: float, run: Run, name: str) -> None:
    if not math.isfinite(bound):
        raise UserError(
            f"the loss became {bound} before step {run.position.step}, and the weights of that step were not saved; "
            + how_to_go_on(checkpoint_path(name))
        )


def _stop(run: Run, name: str, number: int, progress: Progress) -> None:
    run.save(checkpoint_path(name))
    progress.close()
    print(
        f"stopped in epoch {run.position.epoch + 1} of {run.schedule.epochs}, step {run.position.step}, and saved to "
        f"{checkpoint_path(name)}; run the same command again to go on."
    )
    raise Stopped(128 + number)


def _numbers(run: Run, values: dict[str, Any], clock: Clock) -> dict[str, str]:
    kl = values["kl_per_group"].sum().item()
    elbo = values["log_likelihood"].item() - kl
    bits = run.model.likelihood.bits_per_dimension(-elbo, run.data.training[0].numel())
    return {
        "loss": f"{values['loss'].item():.1f}",
        "KL": f"{kl:.1f}",
        "bits/dim": f"{bits:.3f}",
        "images/s": f"{clock.images_per_second():.1f}",
        "left": clock.left(run),
    }


def _line(run: Run, entry: dict[str, Any]) -> str:
    line = (
        f"epoch {entry['epoch']:g}/{run.schedule.epochs}: loss {entry['loss']:.1f}, KL {entry['kl']:.1f}, "
        f"{entry['bits_per_dimension']:.3f} bits/dim, {entry['images_per_second']:.1f} images/s"
    )
    if "validation_elbo" in entry:
        line += (
            f"; validation: ELBO {entry['validation_elbo']:.1f} nats, "
            f"{entry['validation_bits_per_dimension']:.3f} bits/dim"
        )
    return line


def _introduce(run: Run, name: str, checkpoint: Path | None) -> None:
    precision = f" in {str(run.half).removeprefix('torch.')}" if run.half else ""
    print(
        f"{name}: {num_parameters(run.model):,} parameters, {len(run.model.groups)} latent groups; "
        f"{len(run.data.training):,} images for training, {len(run.data.validation):,} for validation; "
        f"on {run.device}{precision}"
    )
    if checkpoint is None:
        return
    if run.position.epoch >= run.schedule.epochs:
        print(
            f"{checkpoint} has been trained for all its {run.schedule.epochs} epochs; for more say "
            f"--set training_parameters.epochs={2 * run.schedule.epochs}, to start over --fresh"
        )
    else:
        print(f"going on from {checkpoint}, epoch {run.position.epoch + 1}, step {run.position.step}")


def _put_aside(*paths: Path) -> None:
    """Rename what is there, with the first number that is free for all of it."""
    number = 1
    while any(path.with_name(f"{path.name}.{number}").exists() for path in paths):
        number += 1
    for path in paths:
        if path.exists():
            aside = path.with_name(f"{path.name}.{number}")
            try:
                os.rename(path, aside)
            except OSError as error:
                raise UserError(f"{path} cannot be kept as {aside} ({error}); mend the folder.") from error
            print(f"{path} is kept as {aside}")


class Clock:
    """Images per second of the training steps, without validation and pictures."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._images, self._seconds, self._since = 0, 0.0, time.perf_counter()

    def step(self, images: int) -> None:
        self._images += images

    def stop(self) -> None:
        self._seconds += time.perf_counter() - self._since

    def start(self) -> None:
        self._since = time.perf_counter()

    def images_per_second(self) -> float:
        seconds = self._seconds or time.perf_counter() - self._since
        return self._images / max(seconds, 1e-9)

    def left(self, run: Run) -> str:
        images = run.schedule.epochs * run.steps_per_epoch * run.batch_size - run.position.images_seen
        seconds = max(images, 0) / max(self.images_per_second(), 1e-9)
        if seconds > 5400:
            return f"{seconds / 3600:.1f} h"
        return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
