"""The registry of extractors, by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from nvae.evaluation.quality.extractors.base import Extractor
from nvae.evaluation.quality.extractors.mobilenet import load_mobilenet
from nvae.evaluation.quality.extractors.published import load_dinov2, load_fidelity
from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.inference.arguments import check_choice
from nvae.schema.choices import ExtractorName
from nvae.system.progress import Progress

# By name, without self: functions of the device, the file of weights or None, and whether to show bars.
LOADERS: dict[ExtractorName, Callable[[torch.device, Path | None, bool], Extractor]] = {
    "mobilenet": lambda device, file, progress: load_mobilenet(device, file),
    "inception": partial(load_fidelity, "inception"),
    "vgg16": partial(load_fidelity, "vgg16"),
    "clip": partial(load_fidelity, "clip"),
    "dinov2": load_dinov2,
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
    check_choice("extractor", name, get_args(ExtractorName))
    if name == "self":
        return load_self(training_u8, bits, device, progress, file)
    show_bars = bool(progress) and sys.stderr.isatty()  # torch.hub draws its own bars, which would fill a log file
    return LOADERS[name](torch.device(device), file, show_bars)
