"""python3 -m nvae config: the keys of a config, with allowed values, defaults and meaning."""

from __future__ import annotations

import argparse

from nvae.config.reference import as_markdown, as_text, reference
from nvae.models.families import FAMILIES


def add(commands: argparse._SubParsersAction) -> None:
    """Add the command to those of `python3 -m nvae`."""
    description = "Print the keys of a config file: allowed values, default and meaning of each."
    command = commands.add_parser("config", help="print the keys of a config file", description=description)
    command.add_argument(
        "family",
        metavar="FAMILY",
        nargs="?",
        choices=tuple(FAMILIES),
        help=f"print the keys of one model family, of {', '.join(FAMILIES)} (default: all families)",
    )
    command.add_argument("--markdown", action="store_true", help="print the page docs/config.md (default: plain text)")
    command.set_defaults(run=print_reference)


def print_reference(options: argparse.Namespace) -> None:
    """Print the tables."""
    tables = reference([options.family] if options.family else tuple(FAMILIES))
    print(as_markdown(tables) if options.markdown else as_text(tables))
