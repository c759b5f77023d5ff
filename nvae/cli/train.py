"""Train the model that a config describes, or continue its training.

Run again, the same command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import re
import sys

from nvae.cli.arguments import add_device
from nvae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from nvae.config import available_configs

    parser.add_argument(
        "config", metavar="CONFIG", help=f"path of a YAML file, or one of {', '.join(available_configs())}"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the config, such as training_parameters.epochs=3; may be repeated (default: none)",
    )
    parser.add_argument(
        "--name",
        help="name of the run's files, for a second run of one config (default: the name of the config)",
    )
    add_device(parser)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over; an earlier checkpoint is kept under another name (default: continue)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="describe the model and its cost, train nothing (default: train)"
    )


def run(options: argparse.Namespace) -> None:
    if options.name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", options.name):
        raise UserError(f"--name is '{options.name}', expected letters, digits, '_', '-' and '.', 100 at most.")
    from nvae.config import config_path, load_config

    config = load_config(options.config, options.overrides)
    if options.dry_run:
        from nvae.summary import summary

        print(summary(config))
        return
    from nvae.training.events import print_event
    from nvae.training.loop import train

    name = options.name or config_path(options.config).stem
    train(config, name, options.device, options.fresh, on_event=print_event, progress=sys.stderr.isatty())
