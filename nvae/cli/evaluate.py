"""Measure how likely a model finds images: the ELBO and the KL of each latent group, on validation images by default.

With --nll, also estimate log p(x) with importance samples.
"""

from __future__ import annotations

import argparse
import math
import sys
from typing import TYPE_CHECKING

from nvae.cli.arguments import (
    Parser,
    add_device,
    add_model,
    add_model_data,
    add_out_folder,
    command_line,
    natural,
    positive,
    print_warnings,
)
from nvae.cli.models import joined_processes, open_model
from nvae.cli.progress import progress_bar
from nvae.schema.choices import Estimator
from nvae.system.errors import UserError

if TYPE_CHECKING:
    from nvae.models.hierarchy import HierarchicalVAE
    from nvae.schema import ModelConfig
    from nvae.system.ranks import Ranks

ESTIMATORS: dict[str, Estimator] = {"bound": "importance_weighted", "dvp": "analytic_kl"}
IMPORTANCE_SAMPLES = 1000
BATCH_SIZE = 64


def add_arguments(parser: Parser) -> None:
    add_model(parser)
    parser.switch(
        "--nll", "also estimate log p(x) with importance samples, a tighter bound than the ELBO", "the ELBO only"
    )
    parser.option("--samples K", positive, "with --nll: importance samples per image", IMPORTANCE_SAMPLES)
    parser.option(
        "--protocol",
        str,
        "with --nll: bound, importance weights, a lower bound of log p(x); or dvp, the estimate of the published "
        "DVP-VAE program, for comparison with its numbers, which is not a bound",
        "bound",
        choices=tuple(ESTIMATORS),
    )
    parser.option(
        "--context-samples R",
        positive,
        "with --nll, for a model with a diffusion prior: draws of the context per image, each with K importance "
        "samples",
        "1",
    )
    parser.option(
        "--diffusion-steps N",
        positive,
        "terms of the diffusion prior's bound per draw of the context; more terms, less noise",
        "the model's diffusion_steps",
    )
    add_model_data(parser, "validation")
    parser.option("--images N", positive, "only the first N images", "all")
    parser.option(
        "--batch-size N",
        positive,
        "images or importance samples computed together; a smaller number needs less memory",
        default=BATCH_SIZE,
    )
    parser.option("--seed N", natural, "seed of the draws from the posterior", default=0)
    add_device(parser)
    add_out_folder(parser)


def run(options: argparse.Namespace) -> None:
    for name in ("samples", "protocol", "context_samples"):
        if getattr(options, name) is not None and not options.nll:
            raise UserError(f"--{name.replace('_', '-')} needs --nll.")
    if options.protocol == "dvp" and options.context_samples is not None:
        raise UserError("--protocol dvp draws the context anew for every sample: leave out --context-samples.")
    samples = (options.samples or IMPORTANCE_SAMPLES) if options.nll else 1
    from nvae.system.devices import set_fast_defaults

    set_fast_defaults()
    with joined_processes(options) as ranks:
        _evaluate(options, samples, ranks)


def _evaluate(options: argparse.Namespace, samples: int, ranks: Ranks) -> None:
    from nvae.checkpoint import name_of_file
    from nvae.data.registry import evaluation_images, load_data
    from nvae.evaluation.likelihood import evaluate
    from nvae.evaluation.report import report, report_name, report_path, save_report

    model = open_model(options)
    settings = _settings(options, model)
    config = with_dataset(model.config, options.dataset, options.data)
    with ranks.first_of_machine_first():
        data = load_data(config, progress=sys.stderr.isatty())
    print_warnings(data.warnings)
    images, targets = (part[: options.images] for part in evaluation_images(data, options.part, config))
    evaluation = evaluate(
        model,
        images,
        options.batch_size,
        samples,
        options.seed,
        targets,
        progress=progress_bar,
        estimator=ESTIMATORS[options.protocol or "bound"],
        outer_samples=options.context_samples or 1,
        ranks=ranks,
    )
    if not math.isfinite(evaluation.elbo.mean):
        raise UserError(f"the ELBO of {options.model} on these images is {evaluation.elbo.mean}: damaged weights?")
    if not ranks.is_first:
        return
    title = f"{data.title(options.part)} of {config.dataset.name}"
    print(report(evaluation, model, title))
    metadata = {
        "model": options.model,
        "dataset": config.dataset.model_dump(),
        "part": options.part,
        "seed": options.seed,
        "batch_size": options.batch_size,
        "images": evaluation.images,
        "samples": samples,
        **settings,
    }
    parts = [f"{key.replace('_', '-')}{value}" for key, value in settings.items()]
    name = report_name(
        name_of_file(options.model), config.dataset.name, options.part, evaluation.images, samples, *parts
    )
    path = report_path(options.out, name, metadata)
    save_report(evaluation, model, path, {"command": command_line(options)} | metadata | {"images_are": title})
    print(f"saved as {path} and {path.with_suffix('.png')}")


def _settings(options: argparse.Namespace, model: HierarchicalVAE) -> dict[str, str | int]:
    """Return the options that change the estimate, those that are given; apply --diffusion-steps. Raises UserError."""
    names = ("protocol", "context_samples", "diffusion_steps")
    settings = {name: value for name in names if (value := getattr(options, name)) not in (None, "bound")}
    bounds = [group.info.bound for group in model.groups if group.info.bound]
    for name in ("context_samples", "diffusion_steps"):
        if name in settings and not bounds:
            raise UserError(f"--{name.replace('_', '-')} needs a model with a diffusion prior.")
    for bound in bounds if options.diffusion_steps else []:
        bound.evaluation_terms = options.diffusion_steps
    return settings


def with_dataset(config: ModelConfig, name: str | None, path: str | None) -> ModelConfig:
    """Return the config with another data set."""
    from nvae.config import config_from_dict
    from nvae.schema import select_dataset

    content = config.model_dump()
    dataset = content["dataset"] if name is None else select_dataset(content["dataset"], name)
    dataset |= {} if path is None else {"path": path}
    return config_from_dict(content | {"dataset": dataset}, "--dataset", resolved=True)
