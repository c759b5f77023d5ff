"""The table of commands, and how a command line becomes one of them."""

from __future__ import annotations

import argparse
import sys

from nvae.cli import (
    cherry,
    config,
    datasets,
    evaluate,
    explore,
    import_weights,
    interpolate,
    precompute,
    prepare,
    quality,
    reconstruct,
    sample,
    summary,
    train,
)
from nvae.cli.arguments import Parser, add_root, package_program
from nvae.cli.errors import run

COMMANDS = {
    "train": train,
    "sample": sample,
    "cherry": cherry,
    "explore": explore,
    "interpolate": interpolate,
    "reconstruct": reconstruct,
    "evaluate": evaluate,
    "quality": quality,
    "precompute": precompute,
    "prepare": prepare,
    "summary": summary,
    "config": config,
    "datasets": datasets,
    "import": import_weights,
}


def console() -> None:
    """Run the command that the command line names."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    run(lambda: _execute(_parsed_command(), sys.argv[2:], prefix=True), command)


def script(command: str) -> None:
    """Run one command with the whole command line, as train.py and the other scripts do."""
    run(lambda: _execute(command, sys.argv[1:]), command)


def _parsed_command() -> str:
    width = max(map(len, COMMANDS))
    purposes = {name: (module.__doc__ or "").partition("\n")[0] for name, module in COMMANDS.items()}  # none with -OO
    lines = [f"  {name:<{width}}  {purpose}".rstrip() for name, purpose in purposes.items()]
    parser = Parser(
        prog=package_program(),
        description="Train, sample and explore deep hierarchical VAEs.",
        epilog="\n".join(["commands:", *lines, "", f"{package_program()} COMMAND --help describes a command."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="one of the commands below")
    return parser.parse_args(sys.argv[1:2]).command


def _execute(command: str, arguments: list[str], prefix: bool = False) -> int | None:
    module = COMMANDS[command]
    parser = Parser(prog=f"{package_program()} {command}" if prefix else None, description=module.__doc__)
    module.add_arguments(parser)
    add_root(parser)
    return module.run(parser.parse_intermixed_args(arguments))  # options may be between the positional arguments
