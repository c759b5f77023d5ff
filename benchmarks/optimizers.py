"""Train a config with any optimizer for a number of CPU seconds: one row of a comparison at equal time.

    python3 benchmarks/optimizers.py CONFIG [KEY=VALUE ...] [--seconds 240] [--images 1000]

One thread. As in speedrun.py, the number of steps is chosen from the time of the first ones, and the schedule ends with
the last step. Prints the ELBO of validation images with the averaged weights if there are any, and a line of JSON.
"""

import argparse
import json

import torch
from speedrun import fitted, seconds_per_step, train

from nvae.config import load_config
from nvae.data.registry import load_data
from nvae.evaluation.likelihood import evaluate
from nvae.system.devices import set_fast_defaults


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    options = parser.parse_args()
    set_fast_defaults()
    torch.set_num_threads(1)
    config = load_config(options.config, options.overrides)
    data = load_data(config)
    steps = int(options.seconds / seconds_per_step(config, data))
    overrides = [*options.overrides, *fitted(config, steps, len(data.training))]
    trainer, seconds = train(load_config(options.config, overrides), data)
    trainer.estimate_statistics()
    evaluation = evaluate(trainer.eval_model.eval(), data.validation[: options.images], 100)
    position = trainer.position
    print(f"{position.step:,} steps, {seconds:.0f} CPU s: ELBO {evaluation.elbo.mean:.2f} nats")
    counts = {"steps": position.step, "skipped": position.skipped_steps, "images": position.images_seen}
    result = {"cpu_seconds": seconds, **counts, "elbo": evaluation.elbo.mean, "kl": evaluation.kl_per_group}
    print(json.dumps({"config": options.config, "overrides": options.overrides} | result))


if __name__ == "__main__":
    main()
