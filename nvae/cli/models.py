"""Find and open the model that a command names, and make its samplers."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae.cli.progress import progress_bar

if TYPE_CHECKING:
    from nvae.inference.sampling import Sampler
    from nvae.models.hierarchy import HierarchicalVAE
    from nvae.schema import ModelConfig
    from nvae.system.ranks import Ranks


def find_model(name: str) -> str:
    """Return the path of a model given by path, or by the name of a config that was trained.

    A name means saved_weights/NAME.checkpoint, or saved_weights/final_result_NAME.model. Where none exists, the name is
    returned as it is: opening the file raises the error.
    """
    from nvae.checkpoint import checkpoint_path, model_path

    paths = (checkpoint_path(name), model_path(name))
    return name if Path(name).is_file() else str(next((path for path in paths if path.exists()), name))


def config_of_run(name: str) -> ModelConfig | None:
    """Return the config in the checkpoint from which the run `name` continues; None without one.

    Raises CheckpointError.
    """
    from nvae.checkpoint import checkpoint_path, load
    from nvae.system.files import previous_path
    from nvae.system.torch_files import DamagedFileError

    path = checkpoint_path(name)
    for file in filter(os.path.isfile, (path, previous_path(path))):
        try:
            return load(file, mapped=True)["config"]
        except DamagedFileError:
            if file != path:
                raise
    return None


def open_model(options: argparse.Namespace) -> HierarchicalVAE:
    """Open the model of `options.model` on the device of `options.device`; set `options.model` to its path."""
    return open_model_and_metadata(options)[0]


def open_model_and_metadata(options: argparse.Namespace) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Open a model as with `open_model`; also return the metadata of its file, such as kl_per_group."""
    from nvae.checkpoint import load_model_and_metadata
    from nvae.system.devices import choose_device

    options.model = find_model(options.model)
    return load_model_and_metadata(options.model, choose_device(options.device))


@contextmanager
def joined_processes(options: argparse.Namespace) -> Iterator[Ranks]:
    """Join the processes of torchrun, and set `options.device` to the device of each; the first one alone prints."""
    from nvae.system.ranks import device_of_process, joined_ranks

    device = device_of_process(options.device)
    options.device = str(device)
    with joined_ranks(device) as ranks, open(os.devnull, "w") as nowhere:
        if ranks.is_first:
            yield ranks
        else:
            with redirect_stdout(nowhere), redirect_stderr(nowhere):
                yield ranks
        ranks.wait()  # torchrun ends the first one, which writes, where another fails while it leaves


def with_context_temperature(
    options: argparse.Namespace, model: HierarchicalVAE, temperature: list[float]
) -> list[float]:
    """Return a temperature as it is, or with --context-temperature, as one number per level or latent group."""
    from nvae.inference.arguments import with_number_above_scales

    if options.context_temperature is None:
        return temperature
    return with_number_above_scales(model, temperature, options.context_temperature, "temperature")


def make_sampler(
    options: argparse.Namespace, model: HierarchicalVAE, temperature: Sequence[float], iterations: int
) -> Sampler:
    """Make the sampler of a model that is open, as `make_samplers` does."""
    return make_samplers(options, model, [temperature], iterations)[0]


def make_samplers(
    options: argparse.Namespace, model: HierarchicalVAE, temperatures: Sequence[Sequence[float]], iterations: int
) -> list[Sampler]:
    """Make a sampler per temperature of a model that is open; print each different warning once."""
    from nvae.inference.arguments import format_values
    from nvae.inference.sampling import open_samplers

    samplers = open_samplers(model, options.model, temperatures, iterations, progress_bar)
    warned: dict[str, list[str]] = {}
    for sampler in samplers:
        for warning in sampler.warnings:
            warned.setdefault(warning, []).append(format_values(sampler.temperature))
    for warning, at in warned.items():
        print(warning if len(at) == len(samplers) else f"at temperature {', '.join(at)}: {warning}")
    return samplers
