"""Options that are short for --set KEY=VALUE, and the config that the options of a command line describe."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from nvae.cli.arguments import Parser, path_text

if TYPE_CHECKING:
    from nvae.schema import ModelConfig


# The key of the config that an option sets, the name of its value, and its help.
OPTIONS = {
    "dataset": ("dataset.name", "NAME", "name of the data set, such as svhn"),
    "data": (
        "dataset.path",
        "PATH",
        "where the images are: the folder of the data set, or a folder or an archive of pictures; with a config whose "
        "data set has no files, the data set is then folder",
    ),
    "size": ("input_dimension", "N", "width and height of the images"),
    "channels": ("image_channels", "N", "3 for color, 1 for gray"),
    "epochs": ("training_parameters.epochs", "N", "passes over the training images"),
    "batch_size": ("training_parameters.batch_size", "N", "images per step"),
    "learning_rate": ("training_parameters.learning_rate", "X", "highest learning rate"),
    "latent_size": ("latent_size", "N", "channels of z in every latent group, or a list of one per scale"),
    "sample_every": (
        "training_parameters.epochs_per_checkpoint",
        "N",
        "epochs between two checkpoints, each with samples and a validation",
    ),
    "workers": ("training_parameters.workers", "N", "threads that decode picture files"),
}


def add_config_options(parser: Parser, names: tuple[str, ...]) -> None:
    """Add some of the options, and --set, which wins over the options."""
    for name in names:
        _, metavar, text = OPTIONS[name]
        shown = "the config's, or one per CPU core" if name == "workers" else "the config's"
        kind = path_text if name == "data" else str
        parser.option(f"--{name.replace('_', '-')} {metavar}", kind, text, shown)
    add_set(parser, "KEY=VALUE", "override a key of the config, such as training_parameters.epochs=3")


def add_set(parser: Parser, value: str, text: str) -> None:
    """Add --set."""
    text = f"{text}; may be repeated"
    parser.option(f"--set {value}", str, text, "none", action="append", default=[], dest="overrides")


def load_config_of(options: argparse.Namespace, load: Callable[[Sequence[str]], ModelConfig]) -> ModelConfig:
    """Return a config with the options and --set. load: returns the config with overrides. Raises ConfigError.

    --data with a data set that has no path sets `options.dataset` to "folder".
    """
    given = {name: value for name in OPTIONS if (value := getattr(options, name, None)) is not None}
    texts = {name: json.dumps(value) if name == "dataset" else value for name, value in given.items()}
    overrides = {name: f"{OPTIONS[name][0]}={text}" for name, text in texts.items()}
    data = overrides.pop("data", None)
    loaded = load([*overrides.values(), *options.overrides])
    if data is None:
        return loaded
    if "path" not in type(loaded.dataset).model_fields:
        options.dataset = "folder"
        overrides["dataset"] = 'dataset.name="folder"'
    return load([*overrides.values(), data, *options.overrides])
