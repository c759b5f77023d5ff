"""Everything that is not one of the four scripts: python3 -m nvae COMMAND ..."""

from __future__ import annotations

import sys

from nvae.cli import config, evaluate, import_weights, interpolate, reconstruct, summary
from nvae.cli.command_line import Parser, run


def main() -> None:
    parser = Parser(prog="python3 -m nvae", description="Tools for deep hierarchical VAEs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in (summary, config, evaluate, interpolate, reconstruct, import_weights):
        command.add(commands)
    name, *arguments = sys.argv[1:] or [""]
    if name in commands.choices:
        options = commands.choices[name].parse_intermixed_args(arguments)  # pictures may stand before and after options
    else:
        options = parser.parse_args()  # help, or a word on what is wrong
    options.run(options)


if __name__ == "__main__":
    run(main)
