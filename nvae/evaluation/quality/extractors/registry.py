"""The registry of extractors, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.extractors.mobilenet import load_mobilenet
from nvae.evaluation.quality.extractors.published import load_dinov2, load_fidelity
from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.inference.arguments import check_choice
from nvae.schema.choices import ExtractorName
from nvae.system.progress import Progress


class Request(NamedTuple):
    """What the loader of an extractor may need."""

    training_u8: Tensor  # (N, C, S, S), from which the extractor self learns
    bits: int  # of the model's images
    device: torch.device
    file: Path | None  # of weights
    progress: Progress

    @property
    def shows_bars(self) -> bool:
        """Whether torch.hub draws its own progress bars, which would fill a log file."""
        return bool(self.progress) and sys.stderr.isatty()


LOADERS: dict[ExtractorName, Callable[[Request], Extractor]] = {
    "self": lambda r: load_self(r.training_u8, r.bits, r.device, r.progress, r.file),
    "mobilenet": lambda r: load_mobilenet(r.device, r.file),
    "inception": lambda r: load_fidelity("inception", r.device, r.file, r.shows_bars),
    "vgg16": lambda r: load_fidelity("vgg16", r.device, r.file, r.shows_bars),
    "clip": lambda r: load_fidelity("clip", r.device, r.file, r.shows_bars),
    "dinov2": lambda r: load_dinov2(r.device, r.file, r.shows_bars),
}


def load_extractor(
    name: ExtractorName,
    training_u8: Tensor,
    bits: int = 8,
    device: torch.device | str = "cpu",
    file: Path | None = None,
    progress: Progress = False,
) -> Extractor:
    """Return an extractor by its name.

    training_u8: training images (N, C, S, S) without binarization, for the extractor self. bits: of the model's images.
    file: of weights, instead of the file that the extractor finds, downloads or trains. Raises UserError.
    """
    check_choice("extractor", name, tuple(LOADERS))
    return LOADERS[name](Request(training_u8, bits, torch.device(device), file, progress))
