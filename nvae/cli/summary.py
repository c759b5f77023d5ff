"""python3 -m nvae summary: what the model of a config or of a file is."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.checkpoint import load
from nvae.config import available_configs, is_yaml, load_config
from nvae.summary import summary


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "summary", help="what the model of a config or of a file is: levels, parameters, cost"
    )
    command.add_argument(
        "what", metavar="WHAT", help=f"a .checkpoint or .model, or one of {', '.join(available_configs())}"
    )
    command.set_defaults(run=summarize)


def summarize(options: argparse.Namespace) -> None:
    path = Path(options.what)
    if path.is_file() and not is_yaml(path):
        print(summary(load(path)["config"]))
    else:
        print(summary(load_config(options.what)))
