"""The position in a training, which the schedules read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nvae.schema import TrainingParameters
from nvae.system.errors import UserError

COUNTS = ("epoch", "image", "step", "images_seen", "skipped_steps")


def whole_number(values: Mapping[str, Any], name: str) -> int:
    """Return a count of a saved state. Raises ValueError for anything but a whole number from 0 on."""
    value = values[name]
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"{name}: got {value!r}, expected a whole number from 0 on")
    return value


def refuse_small_parts(part_sizes: Sequence[int], ranks: int, synchronized: bool, resolution: int | None) -> None:
    """Raise UserError for parts of a batch without an image per rank, or without statistics for a batch norm.

    synchronized: whether a batch norm sees the images of all ranks. resolution: the smallest one of a batch norm; None
    without batch norms.
    """
    smallest = min(part_sizes)
    if ranks > smallest:
        raise UserError(
            f"got {ranks} processes for parts of a batch of {smallest} images, expected an image or more for each "
            "process. Set a larger batch_size, a smaller gradient_accumulation, or use fewer processes."
        )
    if smallest // (1 if synchronized else ranks) == 1 and resolution == 1:
        raise UserError(
            "batch norm needs more than one value per channel: got a part of a batch with one image, and a top level "
            "of 1 x 1. Set batch_size to 2 or more per part of gradient_accumulation, with at least as many images, or "
            "use fewer scales."
        )


@dataclass
class Position:
    """The position in a training: the next image is number `image` of the order of `epoch`. All counts start at 0.

    schedule, num_images: the training schedule and the number of training images, from which the sizes follow.
    """

    schedule: TrainingParameters
    num_images: int
    epoch: int = 0
    image: int = 0
    step: int = 0
    images_seen: int = 0
    skipped_steps: int = 0

    @property
    def batch_size(self) -> int:
        """Images per step: the config's, or all training images if there are fewer."""
        return min(self.schedule.batch_size, self.num_images)

    @property
    def part_sizes(self) -> list[int]:
        """Images in every part of a batch: equal, or nearly if the data set has fewer images than a batch."""
        parts = min(self.schedule.gradient_accumulation, self.batch_size)
        return [self.batch_size // parts + (i < self.batch_size % parts) for i in range(parts)]

    @property
    def steps_per_epoch(self) -> int:
        """The number of full batches. The remaining images are left out of an epoch."""
        return self.images_per_epoch // self.batch_size

    @property
    def images_per_epoch(self) -> int:
        """The images of an epoch's order that its batches may have: all, or those of max_steps_per_epoch."""
        most = self.schedule.max_steps_per_epoch
        return self.num_images if most is None else min(self.num_images, most * self.batch_size)

    @property
    def in_epochs(self) -> float:
        """The position in epochs, with fractions."""
        return self.epoch + self.image / (self.steps_per_epoch * self.batch_size)

    def completes(self, epochs: int | None) -> bool:
        """Return whether the last step completed an epoch that is a multiple of `epochs`; None for never."""
        return epochs is not None and self.image == 0 and self.epoch > 0 and self.epoch % epochs == 0

    def advance(self, images: int, skipped: bool) -> None:
        """Go on by one step."""
        self.step += 1
        self.images_seen += images
        self.image += images
        self.skipped_steps += skipped
        self.end_epoch_without_a_full_batch()

    def end_epoch_without_a_full_batch(self) -> None:
        """Go to the next epoch if this one has no full batch left."""
        if self.image + self.batch_size > self.images_per_epoch:
            self.epoch, self.image = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in COUNTS}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Raises ValueError or another error for anything but counts."""
        vars(self).update({name: whole_number(state_dict, name) for name in COUNTS})
