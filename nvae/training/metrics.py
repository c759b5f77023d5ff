"""From the metrics of steps to a line of metrics.jsonl, a text, and warnings about the state of the training."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from nvae.training.trainer import Trainer

COLLAPSED_KL = 0.01  # nats per image


def with_bound(values: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Add kl, elbo and bits_per_dimension to metrics with log_likelihood and kl_per_group; tensors become numbers."""
    values = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()}
    kl = sum(values["kl_per_group"])
    elbo = values["log_likelihood"] - kl
    dimensions = trainer.data.training[0].numel()
    bits = trainer.model.likelihood.bits_per_dimension(-elbo, dimensions)
    return values | {"kl": kl, "elbo": elbo, "bits_per_dimension": bits}


def metrics_line(trainer: Trainer, last_step: dict[str, Any], clock: Clock) -> dict[str, Any]:
    """Return the line of the steps since `trainer.running_mean` was cleared. last_step: what the last step returned.

    Without a step that was not skipped, the line has no means.
    """
    means = trainer.running_mean.values()
    return {
        "step": trainer.position.step,
        "epoch": round(trainer.position.in_epochs, 4),
        "images": trainer.position.images_seen,
        **(with_bound(means, trainer) if means else {}),
        **{key: value for key, value in last_step.items() if isinstance(value, float)},  # of the schedules
        "skipped_steps": trainer.position.skipped_steps,
        "recoveries": trainer.recovery.count,
        "images_per_second": round(clock.images_per_second(), 2),
    }


def metrics_text(line: dict[str, Any], epochs: int) -> str:
    """Return a line of metrics as a text."""
    text = f"epoch {line['epoch']:g}/{epochs}: "
    if "loss" in line:
        text += f"loss {line['loss']:.6g}, KL {line['kl']:.1f}, {line['bits_per_dimension']:.3f} bits/dim, "
        text += f"gradient norm {line['gradient_norm']:.3g}, "
    text += f"{line['images_per_second']:.1f} images/s"
    if line["skipped_steps"]:
        text += f", {line['skipped_steps']} steps skipped"
    if "validation_elbo" in line:
        text += f"; validation: ELBO {line['validation_elbo']:.1f} nats, "
        text += f"{line['validation_bits_per_dimension']:.3f} bits/dim"
    if "fid_self" in line:
        text += f"; samples: FID(self) {line['fid_self']:.2f}, precision {line['precision_self']:.2f}, "
        text += f"recall {line['recall_self']:.2f}"
    return text


class Clock:
    """Measures images per second since the last reset."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Set the time and the images to zero."""
        self._images, self._start = 0, time.perf_counter()

    def step(self, images: int) -> None:
        """Count the images of a step."""
        self._images += images

    def images_per_second(self) -> float:
        """Return the mean rate since the last reset."""
        return self._images / max(time.perf_counter() - self._start, 1e-9)

    def time_left(self, images: int) -> str:
        """Return the time of a number of images as a text."""
        return duration_text(max(images, 0) / max(self.images_per_second(), 1e-9))


def duration_text(seconds: float) -> str:
    """Return a duration as a text, such as "1.5 h"."""
    if seconds > 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds > 90 else f"{seconds:.0f} s"
