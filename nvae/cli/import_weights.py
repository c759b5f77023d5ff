"""Convert a checkpoint of the original NVAE, of the seed project, or of the original VDVAE, to a .model file.

All other commands can use that file.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from nvae.cli.arguments import Parser
from nvae.system.errors import InvalidValueError


def add_arguments(parser: Parser) -> None:
    parser.add_argument(
        "file",
        metavar="FILE",
        help="checkpoint.pt of the original NVAE, *.checkpoint of the seed project, or PREFIX-model-ema.th of the "
        "original VDVAE, with PREFIX-log.jsonl beside the file for a network that is not one of the published ones",
    )
    parser.option(
        "--config YAML",
        str,
        "architecture of the model, a name in model_configs/ or a file",
        "the settings in FILE, or the shapes of its weights",
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT.model", help="the file to write")


def run(options: argparse.Namespace) -> None:
    if options.out.suffix != ".model":
        raise InvalidValueError("--out", f"'{options.out}'", "a name that ends with .model")
    from nvae.checkpoint import save
    from nvae.config import load_config
    from nvae.interop.importer import import_checkpoint
    from nvae.summary import summary

    config = load_config(options.config) if options.config else None
    imported = import_checkpoint(options.file, config)
    save(imported.model, options.out)
    for warning in imported.warnings:
        print(f"warning: {warning}.")
    print(f"{options.file}, from {imported.origin}:\n\n{summary(imported.model.config)}\n\nsaved as {options.out}")
