"""The contact sheet of a data set: what a model sees when it trains."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from nvae.cli.arguments import Parser, add_out, print_warnings
from nvae.cli.config_options import add_config_options, load_config_of
from nvae.system.errors import UserError
from nvae.system.texts import counted

if TYPE_CHECKING:
    from nvae.data.images import Data

CONFIG = "hvae"  # fits itself to any data set
SHEET_OPTIONS = {
    "size": "--size",
    "channels": "--channels",
    "overrides": "--set",
    "no_window": "--no-window",
}


def add_sheet_arguments(parser: Parser) -> None:
    """Add --show and the options that go with it; NAME and --data are the command's."""
    parser.switch(
        "--show",
        "draw a contact sheet of NAME, a data set or a config: training images with augmentation, and validation "
        f"images; a data set is shown as the config {CONFIG} trains on it",
        "no picture",
    )
    add_config_options(parser, ("size", "channels"))
    add_out(parser)


def wants_sheet(options: argparse.Namespace) -> bool:
    """Return whether --show is given. Raises UserError for an option or a missing NAME that does not suit --show."""
    given = [flag for option, flag in SHEET_OPTIONS.items() if getattr(options, option)]
    if given and not options.show:
        raise UserError(f"{given[0]} needs --show.")
    if options.show and options.name is None:
        raise UserError("--show needs NAME, the name of a data set, such as mnist, or of a config, such as quickstart.")
    return options.show


def show_sheet(options: argparse.Namespace) -> None:
    """Draw the contact sheet of the data set or config `options.name`, save it and show it. Raises UserError."""
    from nvae.cli.result import Result, check_out
    from nvae.config import available_configs, config_path, is_yaml, load_config
    from nvae.data.registry import load_data
    from nvae.schema import DATASETS
    from nvae.tools.data_sheet import data_sheet

    check_out(options)
    if not is_yaml(options.name):
        refuse_unknown("data set or config", options.name, [*DATASETS, *available_configs()])
    options.dataset = options.name if options.name in DATASETS else None
    config = load_config_of(options, partial(load_config, CONFIG if options.dataset else options.name))
    data = load_data(config, progress=sys.stderr.isatty())
    print_warnings(data.warnings)
    print(f"{config.dataset.name}: {describe(data)}")
    size, channels = config.input_dimension, config.image_channels
    settings = {
        "dataset": config.dataset.model_dump(),
        "input_dimension": size,
        "image_channels": channels,
        "pixel_bits": config.pixel_bits,
        "seed": config.training_parameters.seed,
    }
    shown = options.name if options.name in DATASETS else config_path(options.name).stem
    Result(options, settings, "dataset", shown, f"{channels}x{size}x{size}").finish(data_sheet(data, config))


def describe(data: Data) -> str:
    """Return how many images each part has, and their shape."""
    parts = {"training": data.training, "validation": data.validation, "test": data.test}
    counts = [counted(len(images), f"{part} image") for part, images in parts.items() if images is not None]
    return ", ".join([*counts, " x ".join(map(str, data.training.shape[1:]))])


def refuse_unknown(what: str, name: str, names: Sequence[str]) -> None:
    """Raise UserError for a name that is none of the names, with the most similar one."""
    from nvae.config.errors import nearest

    if name not in names:
        suggestion = nearest(name, names)
        advice = f"Did you mean {suggestion}?" if suggestion else f"Use one of: {', '.join(names)}."
        raise UserError(f"unknown {what} '{name}'. {advice}")
