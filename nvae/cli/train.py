"""Train the model that a config describes, or continue its training.

Run again, the same command continues from the last checkpoint.
"""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from nvae.cli.arguments import Parser, add_device
from nvae.cli.config_options import add_config_options, load_config_of
from nvae.cli.models import config_of_run, find_model
from nvae.system.errors import InvalidValueError
from nvae.system.files import root_folder

if TYPE_CHECKING:
    from nvae.schema import ModelConfig

OPTIONS = ("dataset", "data", "epochs", "batch_size", "learning_rate", "latent_size", "sample_every", "workers")


def add_arguments(parser: Parser) -> None:
    from nvae.config import available_configs

    parser.add_argument(
        "config",
        metavar="CONFIG",
        help=f"path of a YAML file, name of a run, or one of {', '.join(available_configs())}",
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
    parser.switch(
        "--debug",
        "train two batches, validate, save, draw and evaluate in a temporary folder, to see whether all of "
        "that works; nothing is kept",
        "train",
    )


def run(options: argparse.Namespace) -> None:
    config, config_name = _config(options)
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

    name = config_name if options.name is None else options.name
    checkpoint = find_model(options.checkpoint) if options.checkpoint else None
    progress = sys.stderr.isatty()
    set_fast_defaults()
    only_images: int | None = None
    root = str(root_folder())
    folder: AbstractContextManager[str] = nullcontext(root)
    if options.debug:
        config = one_short_epoch(config)
        os.makedirs(root, exist_ok=True)
        only_images, folder = 2 * config.training_parameters.batch_size, TemporaryDirectory(prefix="debug_", dir=root)
    try:
        with folder as path:
            train(
                config,
                name,
                options.device,
                options.fresh,
                path,
                on_event=print_event,
                progress=progress,
                checkpoint=checkpoint,
                init_from=find_model(options.init_from) if options.init_from else None,
                continue_with_changed_data=options.continue_with_changed_data or options.debug,
                only_images=only_images,
            )
        if options.debug:
            print("everything works; nothing of this training was kept")
    except Stopped as stopped:  # reported already
        raise SystemExit(stopped.code) from None


def one_short_epoch(config: ModelConfig) -> ModelConfig:
    """Return the config of a training whose only epoch ends with everything that a checkpoint and a result have.

    The quality of samples is left out: its measurement trains a network of its own.
    """
    schedule = config.training_parameters
    short = {
        "epochs": 1,
        "epochs_per_checkpoint": 1,
        "images_per_checkpoint": None,
        "keep_every": 1,
        "evaluate_quality_every": None,
        "evaluation_samples": min(schedule.evaluation_samples, 2),
        "wandb": None,
    }
    if "pretrain_prior_epochs" in type(schedule).model_fields:
        short["pretrain_prior_epochs"] = 0  # the whole model is what an error may be in
    return config.model_copy(update={"training_parameters": schedule.model_copy(update=short)})


def _config(options: argparse.Namespace) -> tuple[ModelConfig, str]:
    """Return the config of CONFIG, a YAML file or a run, with the options; and the name that the run has by default."""
    from nvae.config import ConfigError, config_path, config_to_yaml, load_config, parse_config

    try:
        path = config_path(options.config)
    except ConfigError:
        of_run = config_of_run(options.config)
        if of_run is None:
            if os.path.exists(options.config):
                raise InvalidValueError(
                    "CONFIG", f"'{options.config}'", "a YAML file or a name", "For pictures, use hvae --data PATH."
                ) from None
            raise
        text, source = config_to_yaml(of_run), f"the config of the run {options.config}"
        return load_config_of(options, partial(parse_config, text, source=source)), options.config
    config = load_config_of(options, partial(load_config, path))
    return config, "_".join(filter(None, (path.stem, options.dataset)))
