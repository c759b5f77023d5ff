"""Train a config with any optimizer for a number of CPU seconds: one row of a comparison at equal time.

    python3 benchmarks/optimizers.py CONFIG [KEY=VALUE ...] [--seconds 240] [--images 1000]

One thread. As in speedrun.py, the number of steps is chosen from the time of the first ones, and the schedule ends with
the last step. Prints the ELBO of validation images with the averaged weights if there are any, and a line of JSON.
"""

import argparse
import json

from speedrun import train_for

from nvae.evaluation.likelihood import evaluate


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=240)
    parser.add_argument("--images", type=int, default=1000, help="validation images")
    options = parser.parse_args()
    trainer, data, counts = train_for(options.seconds, options.config, options.overrides)
    trainer.estimate_statistics()
    evaluation = evaluate(trainer.eval_model.eval(), data.validation[: options.images], 100)
    print(f"{counts['steps']:,} steps, {counts['cpu_seconds']:.0f} CPU s: ELBO {evaluation.elbo.mean:.2f} nats")
    result = {"elbo": evaluation.elbo.mean, "kl": evaluation.kl_per_group}
    print(json.dumps({"config": options.config, "overrides": options.overrides, **counts, **result}))


if __name__ == "__main__":
    main()
