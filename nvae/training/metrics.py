"""From the metrics of steps to a line of metrics.jsonl, a text, and warnings about the state of the training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from nvae.training.trainer import Trainer

COLLAPSED_KL = 0.01  # nats per image
OVERALL = "overall_images_per_second"  # the key of the speed with validations, saving and drawing
LATELY = 20  # lines of metrics that tell the time left
YEAR = 365 * 86_400  # seconds


def with_bound(values: dict[str, Any], trainer: Trainer) -> dict[str, Any]:
    """Add kl, elbo and bits_per_dimension to metrics with log_likelihood and kl_per_group; tensors become numbers.

    The metrics of a pre-training, which have no likelihood, get none of them.
    """
    values = {key: value.tolist() if isinstance(value, Tensor) else value for key, value in values.items()}
    if "log_likelihood" not in values:
        return values
    kl = sum(values["kl_per_group"])
    elbo = values["log_likelihood"] - kl
    dimensions = trainer.data.training[0].numel()
    bits = trainer.model.likelihood.bits_per_dimension(-elbo, dimensions)
    return values | {"kl": kl, "elbo": elbo, "bits_per_dimension": bits}


def metrics_line(trainer: Trainer, last_step: dict[str, Any], clock: Clock, overall: Clock) -> dict[str, Any]:
    """Return the line of the steps since `trainer.running_mean` was cleared. last_step: what the last step returned.

    Without a step that was not skipped, the line has no means. clock, overall: of the steps, and of all work.
    """
    return {
        "step": trainer.position.step,
        "epoch": round(trainer.position.in_epochs, 4),
        "images": trainer.position.images_seen,
        **with_bound(trainer.running_mean.values(), trainer),
        **{key: value for key, value in last_step.items() if isinstance(value, float)},  # of the schedules
        "skipped_steps": trainer.position.skipped_steps,
        "recoveries": trainer.recovery.count,
        "images_per_second": clock.images_per_second(),
        OVERALL: overall.images_per_second(),
    }


def metrics_text(line: dict[str, Any], epochs: int, left: float | None) -> str:
    """Return a line of metrics as a text. left: the seconds left, if known."""
    text = f"epoch {line['epoch']:g}/{epochs}: "
    if "loss" in line:
        text += f"loss {line['loss']:.6g}, "
        text += f"KL {line['kl']:.1f}, {line['bits_per_dimension']:.3f} bits/dim, " if "kl" in line else ""
        text += f"gradient norm {line['gradient_norm']:.3g}, "
    text += f"{line['images_per_second']:.1f} images/s"
    text += f", {duration_text(left)} left" if left else ""
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
        """Return the mean rate since the last reset, to four digits."""
        return float(f"{self._images / max(time.perf_counter() - self._start, 1e-9):.4g}")


def wall_times(lines: Iterable[dict[str, Any]]) -> list[tuple[float, float]]:
    """Return the images before each line of metrics but the first, since the line before, and the seconds they took.

    Older lines tell the time of the training steps alone.
    """
    times = []
    for before, line in pairwise(lines):
        images = line.get("images", 0) - before.get("images", 0)
        if images > 0 and (speed := line.get(OVERALL, line.get("images_per_second", 0))) > 0:
            times.append((images, images / speed))
    return times


def seconds_left(lines: Sequence[dict[str, Any]], epoch: float, epochs: int) -> float | None:
    """Estimate the time from the position, in epochs, to the end of all epochs, by the last lines of metrics."""
    times = wall_times([{}, *lines][-LATELY - 1 :])
    if not times or not lines[-1]["epoch"] > 0:
        return None
    images, seconds = map(sum, zip(*times, strict=True))
    left = (epochs - epoch) * lines[-1].get("images", 0) / lines[-1]["epoch"] / images * seconds
    return max(left, 0.0) if math.isfinite(left) else None


def duration_text(seconds: float) -> str:
    """Return a duration as a text, such as "45 s", "20 min", "3 h 20 min", or "2 days 5 h"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    hours = round(minutes / 60)
    return f"{hours // 24} days {hours % 24} h" if seconds < 10 * YEAR else "more than 10 years"
