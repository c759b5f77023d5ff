"""Print the keys of a config file: allowed values, default and meaning of each."""

from __future__ import annotations

import argparse

from nvae.models.families import FAMILIES


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "family",
        metavar="FAMILY",
        nargs="?",
        choices=tuple(FAMILIES),
        help=f"print the keys of one model family, of {', '.join(FAMILIES)} (default: all families)",
    )
    parser.add_argument(
        "--markdown", action="store_true", help="print the page docs/config.md (default: print plain text)"
    )


def run(options: argparse.Namespace) -> None:
    from nvae.config.reference import as_markdown, as_text, reference

    tables = reference([options.family] if options.family else tuple(FAMILIES))
    print(as_markdown(tables) if options.markdown else as_text(tables))
