"""Train the model that a config describes, or continue its training.

Run again, the same command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import re
import sys

from nvae.cli.arguments import Parser, add_device
from nvae.cli.config_options import add_config_options, load_config_of
from nvae.cli.models import find_model
from nvae.system.errors import InvalidValueError

OPTIONS = ("dataset", "data", "epochs", "batch_size", "learning_rate", "latent_size", "sample_every", "workers")


def add_arguments(parser: Parser) -> None:
    from nvae.config import available_configs

    parser.add_argument(
        "config", metavar="CONFIG", help=f"path of a YAML file, or one of {', '.join(available_configs())}"
    )
    add_config_options(parser, OPTIONS)
    parser.add_argument(
        "--no-wandb",
        action="append_const",
        const="training_parameters.wandb=null",
        dest="overrides",
        help="record nothing with Weights & Biases (default: as the config says)",
    )
    parser.option(
        "--name NAME",
        str,
        "name of the run's files, for a second run of one config",
        "the name of the config; with --dataset CONFIG_DATASET, such as hvae_svhn",
    )
    parser.option(
        "--checkpoint FILE",
        str,
        "continue the training of this .checkpoint file, or of the run of this name, where the run has no "
        "checkpoint of its own; the file is kept",
        "start with random weights",
    )
    parser.option(
        "--init-from MODEL",
        str,
        "start a new run from the weights of a run, a .model or a .checkpoint of the same networks; the step, "
        "the schedule and the optimizer start anew",
        "random weights",
    )
    parser.switch("--continue-with-changed-data", "continue although pictures were added, removed or changed", "refuse")
    add_device(parser)
    parser.switch("--fresh", "start over; an earlier checkpoint is kept under another name", "continue")
    parser.switch(
        "--dry-run", "describe the model and its cost, and how long its training takes here; train nothing", "train"
    )


def run(options: argparse.Namespace) -> None:
    if options.name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", options.name):
        raise InvalidValueError("--name", f"'{options.name}'", "letters, digits, '_', '-' and '.', 100 at most")
    from nvae.config import config_path

    config = load_config_of(options, options.config)
    from nvae.system.devices import choose_device, set_fast_defaults

    if options.dry_run:
        from nvae.summary import cost_per_image, summary
        from nvae.training.estimate import time_text

        cost = cost_per_image(config)
        print(summary(config, cost), flush=True)
        set_fast_defaults()
        print(time_text(config, choose_device(options.device), cost))
        return
    from nvae.training.events import print_event
    from nvae.training.loop import Stopped, train

    name = options.name or "_".join(filter(None, (config_path(options.config).stem, options.dataset)))
    checkpoint = find_model(options.checkpoint) if options.checkpoint else None
    progress = sys.stderr.isatty()
    set_fast_defaults()
    try:
        train(
            config,
            name,
            options.device,
            options.fresh,
            on_event=print_event,
            progress=progress,
            checkpoint=checkpoint,
            init_from=find_model(options.init_from) if options.init_from else None,
            continue_with_changed_data=options.continue_with_changed_data,
        )
    except Stopped as stopped:  # reported already
        raise SystemExit(stopped.code) from None
