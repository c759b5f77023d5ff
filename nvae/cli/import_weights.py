"""python3 -m nvae import: convert a checkpoint of another project to a .model file."""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.checkpoint import save
from nvae.config import load_config
from nvae.errors import UserError
from nvae.interop.importer import import_checkpoint
from nvae.interop.key_mapping import InteropError
from nvae.summary import summary


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "import",
        help="convert a checkpoint of the original NVAE or of the seed project to a .model file",
        description="Convert a checkpoint of the original NVAE (checkpoint.pt) or of the seed project (*.checkpoint) "
        "to a .model file, which all other commands can use.",
    )
    command.add_argument(
        "file", metavar="FILE", help="checkpoint.pt of the original or *.checkpoint of the seed project"
    )
    command.add_argument(
        "--config",
        metavar="YAML",
        help="architecture of the model, a name in model_configs/ or a file (default: the settings in FILE, or the "
        "shapes of its weights)",
    )
    command.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.model", help="file to write (required)")
    command.set_defaults(run=import_model)


def import_model(options: argparse.Namespace) -> None:
    """Import a file and write the model. Raises UserError."""
    if options.out.suffix != ".model":
        raise UserError(f"-o: got {options.out}, expected a name that ends with .model.")
    config = load_config(options.config) if options.config else None
    try:
        imported = import_checkpoint(options.file, config)
    except InteropError as error:
        if error.needs_config:
            raise UserError(f"{error} Use --config YAML to name the right config.") from error
        raise
    save(imported.model, options.out)
    for warning in imported.warnings:
        print(f"warning: {warning}.")
    print(f"{options.file}, from {imported.origin}:\n\n{summary(imported.model.config)}\n\nsaved as {options.out}")
