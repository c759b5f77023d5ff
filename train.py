"""Train a model, or go on with it: python3 train.py quickstart"""

import sys

from nvae.cli.command_line import Parser, run
from nvae.config import available_configs, config_path, load_config
from nvae.summary import summary
from nvae.training.events import print_event
from nvae.training.loop import train


def arguments():
    parser = Parser(
        description="Train the model that a config describes. Run again, it goes on from the last checkpoint.",
        epilog=f"available configs: {', '.join(available_configs())}",
    )
    parser.add_argument("config", metavar="CONFIG", help="a name from model_configs/, or the path of a YAML file")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="override a key of the config, such as training_parameters.epochs=3; may be given several times",
    )
    parser.add_argument("--device", help="cuda, cuda:1, mps or cpu (default: the fastest there is)")
    parser.add_argument("--fresh", action="store_true", help="start over; the earlier checkpoint is kept aside")
    parser.add_argument("--dry-run", action="store_true", help="say what the model is, and train nothing")
    return parser.parse_args()


def main() -> None:
    options = arguments()
    config = load_config(options.config, options.overrides)
    if options.dry_run:
        print(summary(config))
        return
    name, progress = config_path(options.config).stem, sys.stderr.isatty()
    train(config, name, options.device, options.fresh, on_event=print_event, progress=progress)


if __name__ == "__main__":
    run(main)
