"""Train the model that a config describes, or continue its training.

Run again, the same command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import re
import sys

from nvae.cli.arguments import add_device
from nvae.cli.config_options import add_config_options, load_config_of
from nvae.cli.models import find_model
from nvae.system.errors import UserError

OPTIONS = ("dataset", "data", "epochs", "batch_size", "learning_rate", "latent_size", "sample_every", "workers")


def add_arguments(parser: argparse.ArgumentParser) -> None:
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
    parser.add_argument(
        "--name",
        help="name of the run's files, for a second run of one config (default: the name of the config; with --dataset "
        "CONFIG_DATASET, such as hvae_svhn)",
    )
    parser.add_argument(
        "--checkpoint",
        metavar="FILE",
        help="continue the training of this .checkpoint file, or of the run of this name, where the run has no "
        "checkpoint of its own; the file is kept (default: start with random weights)",
    )
    parser.add_argument(
        "--init-from",
        metavar="MODEL",
        help="start a new run from the weights of a run, a .model or a .checkpoint of the same networks; the step, the "
        "schedule and the optimizer start anew (default: random weights)",
    )
    parser.add_argument(
        "--continue-with-changed-data",
        action="store_true",
        help="continue although pictures were added, removed or changed (default: refuse)",
    )
    add_device(parser)
    parser.add_argument(
        "--fresh",
        action="store_true",
        help="start over; an earlier checkpoint is kept under another name (default: continue)",
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="describe the model and its cost, train nothing (default: train)"
    )


def run(options: argparse.Namespace) -> None:
    if options.name is not None and not re.fullmatch(r"\w[\w.-]{0,99}", options.name):
        raise UserError(f"--name is '{options.name}', expected letters, digits, '_', '-' and '.', 100 at most.")
    from nvae.config import config_path

    config = load_config_of(options, options.config)
    if options.dry_run:
        from nvae.summary import summary

        print(summary(config))
        return
    from nvae.system.devices import set_fast_defaults
    from nvae.training.events import print_event
    from nvae.training.loop import train

    name = options.name or "_".join(filter(None, (config_path(options.config).stem, options.dataset)))
    checkpoint = find_model(options.checkpoint) if options.checkpoint else None
    progress = sys.stderr.isatty()
    set_fast_defaults()
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
