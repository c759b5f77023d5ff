"""Estimate how long a whole training takes on this machine, from a few of its steps on random images."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.data.images import Data, to_float
from nvae.data.paths import dataset_path
from nvae.data.pictures.archives import open_archive
from nvae.data.pictures.folders import list_pictures
from nvae.inference.recalibration import PASS_IMAGES
from nvae.models.modes import eval_mode
from nvae.schema import FolderDataset, ModelConfig, ToyFacesDataset
from nvae.schema.named_datasets import NAMED_DATASETS
from nvae.summary import Cost
from nvae.training.metrics import duration_text
from nvae.training.position import Position
from nvae.training.report.previews import COLUMNS, RECALIBRATION_PASSES, TEMPERATURES
from nvae.training.resuming import calibrate
from nvae.training.run_output import memory_warning
from nvae.training.trainer import Trainer

LIMIT = 15.0  # seconds of measuring, beside building the model and the one step that goes beyond
GROWTH = 4  # of the number of images, from one measured step to the next
STEP, SAMPLE = 3, 0.5  # the cost of an image in a training step, and of a sample, in forward passes
SAMPLES = len(TEMPERATURES) * (RECALIBRATION_PASSES * PASS_IMAGES + COLUMNS)  # with every checkpoint


class Counts(NamedTuple):
    """The images of a training, about."""

    training: int
    validation: int
    evaluation: int  # of the result


class Speed(NamedTuple):
    """The measured time of a training step."""

    seconds_per_image: float
    images: int  # in the measured step; 0 where a forward pass alone was measured


class Estimate(NamedTuple):
    """The time of a whole training."""

    steps: int
    seconds: float  # in all
    other_seconds: float  # of them, for everything but the steps


def count_images(config: ModelConfig) -> Counts | None:
    """Count the images of a data set without opening or downloading any; None where that is not possible."""
    dataset = config.dataset
    if isinstance(dataset, ToyFacesDataset):
        return Counts(dataset.training_images, dataset.validation_images, dataset.validation_images)
    if isinstance(dataset, FolderDataset):
        path = dataset_path(dataset)
        if not path.exists():
            return None
        if path.is_dir():
            count = len(list_pictures(path))
        else:
            with open_archive(path) as pictures:
                count = len(pictures)
        held_out = dataset.validation_images or max(round(dataset.validation_fraction * count), 1)
        return Counts(count - held_out, held_out, held_out) if count > held_out else None
    facts = NAMED_DATASETS.get(dataset.name)
    if facts is None or not facts.training:
        return None
    drawn = getattr(dataset, "validation_images", None) or 0
    validation = drawn or facts.validation or facts.test
    return Counts(facts.training - drawn, validation, facts.test or validation)


def measure_step(config: ModelConfig, device: torch.device, cost: Cost) -> Speed:
    """Measure training steps of more and more images, up to a part of a batch, as long as time and memory allow.

    The speed is that of the last step, neither recorded nor compiled. Of a model that is too slow for a step of two
    images, it is that of a forward pass.
    """
    end, schedule = time.monotonic() + LIMIT, config.training_parameters
    most = schedule.batch_size // schedule.gradient_accumulation
    size = (config.image_channels, config.input_dimension, config.input_dimension)
    images = torch.randint(0, 256, (most, *size), dtype=torch.uint8)
    whole = schedule.model_copy(update={"batch_size": most, "gradient_accumulation": 1, "compile": False})
    trainer = Trainer(config.model_copy(update={"training_parameters": whole}), Data(images, images[:1]), device)
    calibrate(trainer)
    trainer.model.pretraining_epochs = 0  # the steps that most epochs have

    def fits(images: int) -> bool:
        return memory_warning(config, images, device, cost) is None

    def seconds(images_u8: Tensor) -> float:
        trainer.position = Position(whole.model_copy(update={"batch_size": len(images_u8)}), len(images_u8))
        start = time.monotonic()
        trainer.step(images_u8)
        _wait_for(device)
        return time.monotonic() - start

    forward = _forward_seconds(trainer, images[:1])
    count = min(2, most)
    if time.monotonic() + STEP * count * forward > end or not fits(count):
        return Speed(STEP * forward, 0)
    seconds(images[:count])  # the first step prepares the later ones
    while True:
        speed = Speed(min(seconds(images[:count]) for _ in range(2)) / count, count)
        count = min(GROWTH * count, most)
        late = time.monotonic() + 2 * count * speed.seconds_per_image > end
        if speed.images == most or late or not fits(count):
            return speed


def _forward_seconds(trainer: Trainer, images_u8: Tensor) -> float:
    model, start = trainer.model, time.monotonic()
    with torch.no_grad(), eval_mode(model):
        generator = torch.Generator(trainer.device)
        model(to_float(images_u8, model.device), model.draw_noise(len(images_u8), generator, posterior=True))
    _wait_for(trainer.device)
    return time.monotonic() - start


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def time_text(config: ModelConfig, device: torch.device, cost: Cost) -> str:
    """Measure steps, and return how long a step and the whole training take, as a text. cost: of the config."""
    speed, counts, schedule = measure_step(config, device, cost), count_images(config), config.training_parameters
    how = f"measured with {speed.images} images" if speed.images else "from a forward pass of one image"
    batch_size = schedule.batch_size if counts is None else Position(schedule, counts.training).batch_size
    step = f"time on {device}: about {_short(batch_size * speed.seconds_per_image)} per step, {how}"
    if counts is None:
        rest = f"the number of images is not known yet; 1,000 take {duration_text(1000 * speed.seconds_per_image)}"
        return f"{step}; {rest}"
    whole = estimate(config, counts, speed)
    return (
        f"{step}; {whole.steps:,} steps take about {duration_text(whole.seconds)}, of which "
        f"{duration_text(whole.other_seconds)} for validations, pictures and the evaluation"
    )


def estimate(config: ModelConfig, counts: Counts, speed: Speed) -> Estimate:
    """Estimate the time of a whole training."""
    schedule = config.training_parameters
    position = Position(schedule, counts.training)
    steps = schedule.epochs * position.steps_per_epoch
    seen = steps * position.batch_size
    checkpoints = max(
        schedule.epochs // (schedule.epochs_per_checkpoint or schedule.epochs),
        seen // (schedule.images_per_checkpoint or seen),
    )
    passes = checkpoints * (counts.validation + SAMPLE * SAMPLES) + counts.evaluation * schedule.evaluation_samples
    other = passes / STEP * speed.seconds_per_image
    return Estimate(steps, seen * speed.seconds_per_image + other, other)


def _short(seconds: float) -> str:
    return f"{seconds:.2g} s" if seconds < 90 else duration_text(seconds)
