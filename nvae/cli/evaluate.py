"""python3 -m nvae evaluate: how likely a model finds images it was not trained on."""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import get_args

from nvae.checkpoint import load_model, plain_name
from nvae.cli.command_line import natural, positive, progress_bar
from nvae.config import config_from_dict
from nvae.data.registry import evaluation_images, load_data
from nvae.devices import choose_device, set_fast_defaults
from nvae.errors import UserError
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.report import report, report_name, report_stem, save_report
from nvae.schema import DatasetName, ModelConfig, select_dataset

IMPORTANCE_SAMPLES = 1000
PASSES_AT_ONCE = 64


def add(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser("evaluate", help="how likely a model finds images it was not trained on")
    command.add_argument("model", metavar="MODEL", help="a .checkpoint or .model file")
    command.add_argument("--nll", action="store_true", help="the importance-weighted log-likelihood too")
    command.add_argument(
        "--samples", type=positive, metavar="K", help=f"importance samples per image (default {IMPORTANCE_SAMPLES})"
    )
    command.add_argument("--dataset", choices=get_args(DatasetName), metavar="NAME", help="default: that of the model")
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
    set_fast_defaults()
    model = load_model(options.model, choose_device(options.device))
    config = with_dataset(model.config, options.dataset, options.path)
    data = load_data(config, progress=sys.stderr is not None and sys.stderr.isatty())
    for warning in data.warnings:
        print(warning)
    pixels = evaluation_images(data, options.part, config)[: options.images]
    found = evaluate(model, pixels, options.batch_size, samples, options.seed, progress=progress_bar)
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
    name = report_name(plain_name(options.model), config.dataset.name, options.part, found.images, samples)
    stem = report_stem(options.out, name, about)
    save_report(found, model, stem, about)
    print(f"saved as {stem}.json and {stem}.png")


def with_dataset(config: ModelConfig, name: str | None, path: str | None) -> ModelConfig:
    """The config with other images to look at."""
    content = config.model_dump()
    dataset = content["dataset"] if name is None else select_dataset(content["dataset"], name)
    dataset |= {} if path is None else {"path": path}
    return config_from_dict(content | {"dataset": dataset}, "--dataset", resolved=True)
