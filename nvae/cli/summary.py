"""Describe a config, a model file, or a picture that one of the commands has saved.

For a config or a model: levels, parameters and cost. For a picture: the settings that made it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.cli.models import find_model
from nvae.errors import UserError

PICTURE_SUFFIXES = (".png", ".gif", ".webp")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="the name of a config or of a trained run, a YAML, .checkpoint or .model file, or a .png, .gif or .webp "
        "result; a name of both means the config",
    )


def run(options: argparse.Namespace) -> None:
    path = Path(options.what)
    if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
        _describe_picture(path)
        return
    from nvae.checkpoint import load
    from nvae.config import available_configs, is_yaml, load_config
    from nvae.summary import summary

    if options.what not in available_configs():
        path = Path(find_model(options.what))
    if path.is_file() and not is_yaml(path):
        print(summary(load(path)["config"]))
    else:
        print(summary(load_config(options.what)))


def _describe_picture(path: Path) -> None:
    from nvae.picture_files import read_metadata

    metadata = read_metadata(path)
    if not metadata:
        raise UserError(f"{path} holds no settings: expected a picture that one of the commands has saved.")
    width = max(map(len, metadata))
    for key, value in metadata.items():
        print(f"{key:<{width}}  {value}")
