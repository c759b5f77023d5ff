"""List the data sets that a config can name, and which are on the disk; describe or show one data set."""

from __future__ import annotations

import argparse
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvae.cli.arguments import Parser
from nvae.cli.dataset_sheet import add_sheet_arguments, refuse_unknown, show_sheet, wants_sheet
from nvae.schema import DATASETS, NAMED_DATASETS, DownloadedDataset
from nvae.system.files import expand_home, root_folder

if TYPE_CHECKING:
    from nvae.data.downloads import SourceFile

COLUMNS = ("name", "images", "size", "channels", "training", "validation", "test", "license")
TEXTS = (0, 1, 7, 8)  # name, images, license, on disk: the columns that are aligned on the left
WIDTH = 100
EXAMPLES: dict[str, dict[str, Any]] = {  # keys of a config, of the data sets that are not public
    "toy_faces": {"training_images": 6000},
    "folder": {"path": "my_pictures"},
    "lmdb": {"path": "my_databases"},
    "npz": {"path": "my_images.npz"},
    "tfrecord": {"path": "my_records"},
}


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "name",
        metavar="NAME",
        nargs="?",
        help="describe one data set: its files, how to get them, its keys; with --show, a data set or a config "
        "(default: list all data sets)",
    )
    parser.option(
        "--data DIR",
        str,
        "where to look for files: the folder of the data set NAME, or without NAME the folder that holds a "
        "folder NAME for each data set",
        "dataset/NAME, dataset",
    )
    add_sheet_arguments(parser)


def run(options: argparse.Namespace) -> None:
    if wants_sheet(options):
        show_sheet(options)
    elif options.name is None:
        from nvae.summary import table as aligned

        title, *lines = aligned(
            [(*COLUMNS, "on disk"), *_rows_with_disk(options.data or root_folder() / "dataset")], left=TEXTS
        )
        print("\n".join([title, "-" * max(map(len, [title, *lines])), *lines]))
    else:
        print(_description(options.name, options.data))


# ------------------------------------------------------------------------------------------------------- the table


def table() -> list[tuple[str, ...]]:
    """Return the COLUMNS of every data set: of the public ones, then of the others."""
    public = [
        (
            name,
            facts.title,
            f"{facts.size} x {facts.size}",
            str(facts.channels),
            *(f"{count:,}" if count else "-" for count in (facts.training, facts.validation, facts.test)),
            facts.license,
        )
        for name, facts in NAMED_DATASETS.items()
    ]
    others = [
        (name, _first_sentence(name), "any", "any", "-", "-", "-", "-")
        for name in DATASETS
        if name not in NAMED_DATASETS
    ]
    return public + others


def _rows_with_disk(data: str | Path) -> list[tuple[str, ...]]:
    return [
        (*row, _on_disk(row[0], f"{data}/{_owner(row[0])}") if row[0] in NAMED_DATASETS else "-") for row in table()
    ]


def _first_sentence(name: str) -> str:
    """Return the beginning of the description of a data set that is not public."""
    text = (DATASETS[name].model_fields["name"].description or "").partition(";")[0].rstrip(".")
    return text[:1].lower() + text[1:]


# ---------------------------------------------------------------------------------------------------- one data set


def _description(name: str, data: str | None) -> str:
    import yaml

    from nvae.config.reference import dataset_keys
    from nvae.data.sources import extra_of

    refuse_unknown("data set", name, list(DATASETS))
    facts, extra = NAMED_DATASETS.get(name), extra_of(name)
    install = [f"needs the extra {extra}: pip install -e '.[{extra}]'"] if extra else []
    where = data or str(root_folder() / "dataset" / _owner(name))
    example = {"name": name} | ({"path": data} if data else EXAMPLES.get(name, {}))
    lines = [f"{name}: {facts.title if facts else _first_sentence(name)}", ""]
    if facts:
        counts = [(facts.training, "training"), (facts.validation, "validation"), (facts.test, "test")]
        parts = ", ".join(f"{count:,} {part}" for count, part in counts if count)
        files = list(_sources(name).values())
        listed = dict.fromkeys(f"{file.name}  {file.url}".rstrip() for file in files)
        how = f"by hand, because the publisher demands an account or a form: put the files into {where}"
        if all(file.url for file in files):
            how = f"downloaded into {where} at the first start, or put the files there"
        lines += [
            f"images    {facts.size} x {facts.size}, channels: {facts.channels}; {parts}",
            f"license   {facts.license}",
            f"homepage  {facts.homepage}",
            f"on disk   {_on_disk(name, where)}, in {where}",
            "files     " + "\n          ".join(listed),
            f"to get    {'; '.join([how, *install])}",
        ]
    else:
        lines += [f"to get    {text}" for text in install]
    section = yaml.safe_dump(example, default_flow_style=True, sort_keys=False, width=1000).strip()
    lines += [f"config    dataset: {section}", "", "keys, with their defaults", ""]
    for key, _, default, description in dataset_keys(name).rows:
        if default:  # all but the name
            text = f"{key}={default}: {description}"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  ", subsequent_indent="      ")
    return "\n".join(lines)


def _on_disk(name: str, folder: str) -> str:
    """Return whether a folder holds what the loader of a public data set reads with the default keys."""
    path = expand_home(folder)
    return "no" if any(file.find(path, _owner(name)) is None for file in _sources(name).values()) else "yes"


def _owner(name: str) -> str:
    from nvae.data.paths import owner_of_files

    return owner_of_files(name)


def _sources(name: str) -> dict[str, SourceFile]:
    from nvae.data.sources import source_files

    dataset = DATASETS[name].model_validate({"name": name})
    assert isinstance(dataset, DownloadedDataset)
    return source_files(dataset, NAMED_DATASETS[name].size)
