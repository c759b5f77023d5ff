"""Show what a model sees of a data set when it trains."""

from __future__ import annotations

import argparse

from nvae.cli.dataset_sheet import add_sheet_arguments, show_sheet, wants_sheet
from nvae.errors import UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", nargs="?", help="name of a data set, or with --show also of a config")
    parser.add_argument("--data", metavar="DIR", help="folder of the data set NAME (default: dataset/NAME)")
    add_sheet_arguments(parser)


def run(options: argparse.Namespace) -> None:
    if wants_sheet(options):
        show_sheet(options)
    else:
        raise UserError("nothing to show: give NAME and --show.")
