"""Describe a config, a run, a model file, or a picture that one of the commands has saved.

For a config or a model: levels, parameters and cost. For a run: also what the run did, and how to continue. For a
picture: the command and the settings that made it.
"""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from nvae.cli.arguments import Parser, package_program
from nvae.system.errors import InvalidValueError, UserError
from nvae.system.texts import printable

PICTURE_SUFFIXES = (".png", ".gif", ".webp")


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "what",
        metavar="WHAT",
        help="the name of a run or of a config, the folder of a run, a YAML, .checkpoint or .model file, or a .png, "
        ".gif or .webp result; a name of both means the run",
    )
    parser.add_argument(
        "--html",
        nargs="?",
        const="",
        metavar="FILE",
        help="also write the page of a run: curves, samples, KL per group, events, config; without FILE, to "
        "runs/NAME/report.html (default: write nothing)",
    )


def run(options: argparse.Namespace) -> None:
    path = Path(options.what)
    if options.html and Path(options.html).suffix.lower() not in (".html", ".htm"):
        raise InvalidValueError("--html", f"'{options.html}'", "the name of a file that ends with .html")
    if path.suffix.lower() in PICTURE_SUFFIXES and path.is_file():
        _describe_picture(path)
        return
    from nvae.config import is_yaml, load_config
    from nvae.summary import summary
    from nvae.training.report.page import write_page
    from nvae.training.report.record import find_run
    from nvae.training.report.text import run_text

    record = None if is_yaml(path) else find_run(options.what)
    if record is None:
        if options.html is not None:
            raise UserError(f"'{options.what}' is not a run: --html needs the name or the folder of one.")
        print(summary(load_config(options.what)))
        return
    if record.config is not None:
        print(summary(record.config), end="\n\n")
    print(run_text(record))
    if options.html is not None:
        if record.is_empty:
            raise UserError(f"'{options.what}' has no training that a page could show.")
        print(f"\nthe page is {write_page(record, Path(options.html) if options.html else None)}")


def _describe_picture(path: Path) -> None:
    from nvae.data.pictures.metadata import read_metadata

    metadata = read_metadata(path)
    if not metadata:
        raise UserError(f"{path} holds no settings: expected a picture that one of the commands has saved.")
    if "cells" in metadata:  # the picks were made by hand
        metadata = {"command": f"{package_program()} cherry --redo {shlex.quote(str(path))}"} | metadata
    width = max(map(len, metadata))
    for key, value in metadata.items():
        print(printable(f"{key:<{width}}  {value}"))
