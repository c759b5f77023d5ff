"""Find and open the model that a command names, and recalibrate the model for sampling."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nvae.inference.recalibration import StatisticsCache
    from nvae.inference.sampling import Temperature
    from nvae.models.hierarchy import HierarchicalVAE


def find_model(name: str) -> str:
    """Return the path of a model given by path, or by the name of a config that was trained.

    A name means saved_weights/NAME.checkpoint, or saved_weights/final_result_NAME.model. Where none exists, the name is
    returned as it is: opening the file raises the error.
    """
    from nvae.checkpoint import checkpoint_path, model_path

    if not Path(name).is_file():
        for path in (checkpoint_path(name), model_path(name)):
            if path.is_file():
                return str(path)
    return name


def open_model(options: argparse.Namespace) -> HierarchicalVAE:
    """Open the model of `options.model` on the device of `options.device`; set `options.model` to its path."""
    return open_model_and_metadata(options)[0]


def open_model_and_metadata(options: argparse.Namespace) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Open a model as with `open_model`; also return the metadata of its file, such as kl_per_group."""
    from nvae.checkpoint import load_model_and_metadata
    from nvae.devices import choose_device

    options.model = find_model(options.model)
    return load_model_and_metadata(options.model, choose_device(options.device))


@contextmanager
def recalibrated_for(
    model: HierarchicalVAE, temperature: Sequence[float], iterations: int, cache: StatisticsCache
) -> Iterator[Temperature]:
    """Recalibrate the model within a `with` block, print a warning if needed, and yield the temperature per group.

    temperature: one number, or one per scale.
    """
    from nvae.inference.recalibration import recalibrated
    from nvae.inference.sampling import per_group

    group_temperatures = per_group(model, temperature, "temperature")
    with recalibrated(model, group_temperatures, iterations, progress=True, cache=cache) as statistics:
        if statistics and statistics.notice:
            print(statistics.notice)
        yield group_temperatures
