"""Print the keys of a config file: allowed values, default and meaning of each."""

from __future__ import annotations

import argparse

from nvae.cli.arguments import Parser
from nvae.models.families import FAMILIES


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "family",
        metavar="FAMILY",
        nargs="?",
        choices=tuple(FAMILIES),
        help=f"print the keys of one model family, of {', '.join(FAMILIES)} (default: all families)",
    )


def run(options: argparse.Namespace) -> None:
    from nvae.config.reference import as_text, reference

    print(as_text(reference([options.family] if options.family else tuple(FAMILIES))))
