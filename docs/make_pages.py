"""Write the pages that are made from the code, docs/config.md, docs/cli.md and so on: make docs"""

from __future__ import annotations

import ast
import runpy
from pathlib import Path
from typing import Any

from nvae.cli.arguments import Parser
from nvae.cli.datasets import COLUMNS, table
from nvae.cli.main import COMMANDS
from nvae.config.reference import as_markdown, reference
from nvae.data.sources import extra_of, source_files
from nvae.schema import DATASETS, NAMED_DATASETS

ROOT = Path(__file__).resolve().parent.parent

SCRIPTS = {"train": "train.py", "sample": "sample.py", "cherry": "cherry.py", "explore": "latent_space_exploration.py"}
HEADER = """# Commands

Made by `make docs`.

Every command is `python3 -m nvae COMMAND`, or `nvae COMMAND` after `pip install`. Four of them are scripts too.
Every command also has `--root FOLDER`, the folder of `saved_weights/`, `runs/`, `images/` and `dataset/` (default: the
environment variable `NVAE_ROOT`, or the working directory).
Wrong input ends with exit code 2 and one sentence, a training that diverged with exit code 3. Every picture contains
the settings that made it (`python3 -m nvae summary PICTURE`).
"""


DATASET_LIST_HEADER = """# The list of data sets

Made by `make docs`. `python3 -m nvae datasets` prints this list and says what is on the disk; `python3 -m nvae datasets
NAME` adds the files, their addresses and the keys. [datasets.md](datasets.md) is the guide.

The size of picture files of other sizes is the usual one in the literature. The numbers of `emnist`, `omniglot` and
`lsun` are those of the default keys. MedMNIST is published at 28, 64, 128 and 224 pixels: the smallest size that is
large enough for `input_dimension` is used.

"""


class Recorder(Parser):
    """An argument parser that only records the arguments."""

    def __init__(self) -> None:
        super().__init__(add_help=False)
        self.rows: list[tuple[str, str]] = []

    def add_argument(self, *names: str, **options: Any) -> None:
        value = options.get("metavar") or "|".join(map(str, options.get("choices") or ()))
        if not names[0].startswith("-"):
            self.rows.append((f"`{value or names[0]}`", options["help"]))
            return
        takes_value = options.get("action") in (None, "append")
        value = value or names[-1].lstrip("-").upper()
        text = f"{', '.join(names)} {value}" if takes_value else ", ".join(names)
        self.rows.append((f"`{text}`", options["help"]))


def cli_page() -> str:
    """Return docs/cli.md: the arguments of every command."""
    parts = [HEADER]
    for name, module in COMMANDS.items():
        recorder = Recorder()
        module.add_arguments(recorder)
        script = f" (`python3 {SCRIPTS[name]}`)" if name in SCRIPTS else ""
        rows = [f"| {_escaped(argument)} | {_escaped(text)} |" for argument, text in recorder.rows]
        table = ["| argument | meaning |", "| --- | --- |", *rows]
        parts.append("\n".join([f"## {name}{script}", "", module.__doc__.strip(), "", *table, ""]))
    return "\n".join(parts)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")


def dataset_list_page() -> str:
    """Return docs/dataset_list.md: the facts of every data set, and where each public one comes from."""
    columns = (*COLUMNS, "extra", "files")
    rows = [(*row, f"`{extra_of(row[0])}`" if extra_of(row[0]) else "-", _origin(row[0])) for row in table()]
    lines = [f"| {' | '.join(row)} |" for row in (columns, ["---"] * len(columns), *rows)]
    return DATASET_LIST_HEADER + "\n".join(lines) + "\n"


def _origin(name: str) -> str:
    """Return a link to a data set's homepage, named after how its files get onto the disk."""
    if name not in NAMED_DATASETS:
        return "-"
    facts = NAMED_DATASETS[name]
    files = source_files(DATASETS[name](name=name), facts.size).values()
    return f"[{'downloaded' if all(file.url for file in files) else 'by hand'}]({facts.homepage})"


def files_page() -> str:
    """Return docs/files.md: every file of the package with the first line of its docstring, layer by layer."""
    parts = ["# Files\n\nMade by `make docs`. Each file imports only from files of its own and of lower layers.\n"]
    layers = runpy.run_path(str(ROOT / "tests" / "test_layers.py"))["LAYERS"]
    for layer in [{"__init__"}, *layers]:
        lines = [line for name in sorted(layer) for line in _lines(name)]
        parts.append("\n".join([f"## {', '.join(sorted(layer))}", "", *lines, ""]))
    return "\n".join(parts)


def _lines(name: str) -> list[str]:
    package = ROOT / "nvae"
    files = sorted((package / name).rglob("*.py")) if (package / name).is_dir() else [package / f"{name}.py"]
    lines = []
    for file in files:
        docstring = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        lines.append(f"- `{file.relative_to(ROOT)}`: {docstring.partition(chr(10))[0]}")
    return lines


PAGES = {
    "config.md": lambda: as_markdown(reference()) + "\n",
    "cli.md": cli_page,
    "dataset_list.md": dataset_list_page,
    "files.md": files_page,
}

if __name__ == "__main__":
    for name, page in PAGES.items():
        (ROOT / "docs" / name).write_text(page(), encoding="utf-8")
