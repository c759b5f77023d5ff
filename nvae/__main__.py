"""Everything that is not one of the four scripts: python3 -m nvae COMMAND ..."""

from pathlib import Path

from nvae.checkpoint import load
from nvae.command_line import Parser, run
from nvae.config import available_configs, load_config
from nvae.summary import summary


def main() -> None:
    parser = Parser(prog="python3 -m nvae", description="Tools for deep hierarchical VAEs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    command = commands.add_parser(
        "summary", help="what the model of a config or of a file is: levels, parameters, cost"
    )
    command.add_argument(
        "what", metavar="WHAT", help=f"a .checkpoint or .model, or one of {', '.join(available_configs())}"
    )
    options = parser.parse_args()
    print(summarise(options.what))


def summarise(what: str) -> str:
    """The summary of a config's name or file, or of a checkpoint or model file."""
    path = Path(what)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        return summary(load(path)["config"])
    return summary(load_config(what))


if __name__ == "__main__":
    run(main)
