"""python3 -m nvae import: other projects' checkpoints as models of ours."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.checkpoint import save
from nvae.config import load_config
from nvae.errors import UserError
from nvae.interop.importer import import_checkpoint
from nvae.summary import summary


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "import", help="a checkpoint of the original NVAE or of the seed project, as a .model"
    )
    command.add_argument("file", metavar="FILE", help="the original's checkpoint.pt, or the seed's *.checkpoint")
    command.add_argument(
        "--config", metavar="YAML", help="what the model is (default: what the file says, or its weights' shapes)"
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.model", help="where to write it")
    command.set_defaults(run=import_model)


def import_model(options: argparse.Namespace) -> None:
    if options.out.suffix != ".model":
        raise UserError(f"-o {options.out}: the result is a model; let its name end with .model.")
    config = load_config(options.config) if options.config else None
    found = import_checkpoint(options.file, config)
    save(found.model, options.out)
    for notice in found.notices:
        print(notice)
    print(f"{options.file}, from {found.origin}:\n\n{summary(found.model.config)}\n\nsaved as {options.out}")
