"""Everything that is not one of the four scripts: python3 -m nvae COMMAND ..."""

from __future__ import annotations

import argparse
import math
import typing
from pathlib import Path

from nvae.checkpoint import load, load_model, plain_name, save
from nvae.command_line import Parser, natural, positive, run
from nvae.config import Config, DatasetName, available_configs, config_from_dict, load_config
from nvae.data.registry import load_data
from nvae.devices import choose_device, favour_speed
from nvae.errors import UserError
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.report import report, save_report, stem_for
from nvae.interop.importing import import_checkpoint
from nvae.summary import summary

IMPORTANCE_SAMPLES = 1000
PASSES_AT_ONCE = 64


def main() -> None:
    parser = Parser(prog="python3 -m nvae", description="Tools for deep hierarchical VAEs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for add in (add_summary, add_evaluate, add_import):
        add(commands)
    options = parser.parse_args()
    options.run(options)


# ------------------------------------------------------------------------------------------------------- summary


def add_summary(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "summary", help="what the model of a config or of a file is: levels, parameters, cost"
    )
    command.add_argument(
        "what", metavar="WHAT", help=f"a .checkpoint or .model, or one of {', '.join(available_configs())}"
    )
    command.set_defaults(run=summarise)


def summarise(options: argparse.Namespace) -> None:
    path = Path(options.what)
    if path.is_file() and path.suffix not in (".yaml", ".yml"):
        print(summary(load(path)["config"]))
    else:
        print(summary(load_config(options.what)))


# ------------------------------------------------------------------------------------------------------ evaluate


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="how likely a model finds images it was not trained on")
    command.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file")
    command.add_argument("--nll", action="store_true", help="the importance-weighted log-likelihood too")
    command.add_argument(
        "--samples", type=positive, metavar="K", help=f"importance samples per image (default {IMPORTANCE_SAMPLES})"
    )
    command.add_argument(
        "--dataset", choices=typing.get_args(DatasetName), metavar="NAME", help="default: that of the model"
    )
    command.add_argument("--path", help="where the data set lies (default: where it lay in training)")
    command.add_argument(
        "--part", choices=("validation", "training"), default="validation", help="which of its images (validation)"
    )
    command.add_argument("--images", type=positive, metavar="N", help="only the first N of them")
    command.add_argument(
        "--batch-size",
        type=positive,
        metavar="N",
        default=PASSES_AT_ONCE,
        help=f"passes at once, which bounds the memory (default {PASSES_AT_ONCE})",
    )
    command.add_argument("--seed", type=natural, default=0, help="of the draws from the posterior (0)")
    command.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the fastest there is)")
    command.add_argument("--out", type=Path, default=Path("images"), metavar="FOLDER", help="where to save (images/)")
    command.set_defaults(run=evaluate_model)


def evaluate_model(options: argparse.Namespace) -> None:
    if options.samples is not None and not options.nll:
        raise UserError("--samples is the number of importance samples: say --nll with it.")
    samples = (options.samples or IMPORTANCE_SAMPLES) if options.nll else 1
    favour_speed()
    model = load_model(options.model, choose_device(options.device))
    config = with_dataset(model.config, options.dataset, options.path)
    data = load_data(config)
    for notice in data.notices:
        print(notice)
    pixels = (data.validation if options.part == "validation" else data.training)[: options.images]
    found = evaluate(model, pixels, options.batch_size, samples, options.seed, progress=True)
    if not math.isfinite(found.elbo.mean):
        raise UserError(f"the bound of {options.model} on these images is {found.elbo.mean}: its weights are damaged.")
    print(report(found, model, f"{options.part} images of {config.dataset.name}"))
    about = {
        "model": options.model,
        "dataset": config.dataset.model_dump(),
        "part": options.part,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "images": found.images,
        "samples": samples,
    }
    name = f"evaluation_{plain_name(options.model)}_{config.dataset.name}_{options.part}_{samples}"
    stem = stem_for(options.out, name, about)
    save_report(found, model, stem, about)
    print(f"saved as {stem}.json and {stem}.png")


def with_dataset(config: Config, name: str | None, path: str | None) -> Config:
    """The config with other images to look at."""
    changes = {key: value for key, value in (("name", name), ("path", path)) if value is not None}
    content = config.model_dump()
    return config_from_dict(content | {"dataset": content["dataset"] | changes}, "--dataset")


# -------------------------------------------------------------------------------------------------------- import


def add_import(commands: argparse._SubParsersAction) -> None:
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


if __name__ == "__main__":
    run(main)
