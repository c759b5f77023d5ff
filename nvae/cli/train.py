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
    from nvae.system.ranks import Ranks

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
    from nvae.system.ranks import device_of_process, joined_ranks

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
    only_images = None
    if options.debug:
        config = config.model_copy(update={"training_parameters": config.training_parameters.of_one_epoch()})
        only_images = 2 * config.training_parameters.batch_size
    try:
        with joined_ranks(device_of_process(options.device)) as ranks, _folder(options.debug, ranks) as folder:
            train(
                config,
                name,
                options.device,
                options.fresh,
                folder,
                on_event=print_event,
                progress=progress,
                checkpoint=checkpoint,
                init_from=find_model(options.init_from) if options.init_from else None,
                continue_with_changed_data=options.continue_with_changed_data or options.debug,
                only_images=only_images,
            )
        if options.debug and ranks.is_first:
            print("everything works; nothing of this training was kept")
    except Stopped as stopped:  # reported already
        raise SystemExit(stopped.code) from None


def _folder(debug: bool, ranks: Ranks) -> AbstractContextManager[str]:
    """Return the folder of the files; for --debug one that vanishes, of the first process, which alone writes."""
    root = str(root_folder())
    if not debug or not ranks.is_first:
        return nullcontext(root)
    os.makedirs(root, exist_ok=True)
    return TemporaryDirectory(prefix="debug_", dir=root)


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
