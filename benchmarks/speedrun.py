"""Train a config within a budget of CPU seconds, and add the result to the standing contest in docs/speedrun.md.

    python3 benchmarks/speedrun.py CONFIG [KEY=VALUE ...] [--seconds 480] [--note "what was changed"] [--name NAME]

The contest: built-in toy faces at 32x32, one thread, 480 CPU seconds of training steps, at any batch size and learning
rate. The number of steps is chosen from the time of the first ones; the schedules, in epochs or steps, end with the
last step. Measured afterwards, with the averaged weights if there are any: bits per dimension of 300 validation faces
with exact tails, FID(self) of 2,000 samples at temperature 0.7 against 2,000 faces, and a sheet of the samples of
seeds 0 to 15. With --note, a row is added to docs/speedrun.md and the sheet is kept as images/speedrun/NAME.webp;
without, the sheet is NAME.webp in the working directory. Prints the row and a line of JSON.
"""

import argparse
import json
import math
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from provenance import commit, processor

from nvae.config import load_config
from nvae.data.images import Data
from nvae.data.registry import load_data
from nvae.evaluation.likelihood import evaluate
from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.evaluation.quality.measure import Settings, measure_quality
from nvae.inference.sampling import Sampler
from nvae.models.families import clone
from nvae.system.devices import set_fast_defaults
from nvae.tools.grids import grid
from nvae.training.trainer import Trainer

ROOT = Path(__file__).parent.parent
PAGE, SHEETS = ROOT / "docs" / "speedrun.md", ROOT / "images" / "speedrun"
CONTEST = ["input_dimension=32", "dataset.validation_images=300", "likelihood_tails=exact"]
TEMPERATURE = 0.7
TIMED_STEPS = 40
FACES = 4800  # that samples are compared with


def seconds_per_step(config, data):
    """Return the CPU seconds of a training step."""
    trainer = Trainer(config, data, torch.device("cpu"))
    times = []
    for _, batch in zip(range(TIMED_STEPS), trainer.batches(), strict=False):
        start = time.process_time()
        trainer.step(batch)
        times.append(time.process_time() - start)
    return statistics.median(times[10:])  # the first ones allocate


def fitted(config, steps, training_images):
    """Return the overrides that make a training of this number of steps."""
    per_epoch = training_images // config.training_parameters.batch_size
    epochs = math.ceil(steps / per_epoch)
    return [
        f"training_parameters.epochs={epochs}",
        f"training_parameters.max_steps_per_epoch={max(1, steps // epochs)}",
    ]


def train(config, data):
    """Train a config; return the trainer and its CPU seconds, steps alone."""
    trainer = Trainer(config, data, torch.device("cpu"))
    total, shown = 0.0, 0.0
    while not trainer.is_finished:
        for batch in trainer.batches():
            start = time.process_time()
            metrics = trainer.step(batch)
            total += time.process_time() - start
            if total - shown > 30:
                shown, loss = total, -metrics["log_likelihood"] + metrics["kl_per_group"].sum()
                bits = trainer.model.likelihood.bits_per_dimension(loss.item(), batch[0].numel())
                kl = " ".join(f"{value:.0f}" for value in metrics["kl_per_group"])
                print(
                    f"{total:5.0f} s, {trainer.position.images_seen:7,} images, {bits:.3f} bits per dimension, KL {kl}",
                    flush=True,
                )
    return trainer, total


def train_for(seconds, name, overrides):
    """Train a config with one thread for about a number of CPU seconds; return the trainer, the data and the counts."""
    set_fast_defaults()
    torch.set_num_threads(1)
    config = load_config(name, overrides)
    data = load_data(config)
    steps = int(seconds / seconds_per_step(config, data))
    trainer, spent = train(load_config(name, [*overrides, *fitted(config, steps, len(data.training))]), data)
    position = trainer.position
    counts = {"steps": position.step, "skipped": position.skipped_steps, "images": position.images_seen}
    return trainer, data, {"cpu_seconds": spent, **counts}


def measured(trainer, data):
    """Return the measurements of a trained model, and the sheet (32, C, S, S): 16 means, then 16 most likely images."""
    trainer.estimate_statistics()
    model = clone(trainer.eval_model).eval()
    evaluation = evaluate(model, data.validation, 50)
    sampler = Sampler(model, TEMPERATURE, batch_size=50)
    faces = Data(data.training[:FACES], data.validation)  # the same ones for every number of training images
    extractor = load_self(faces.training, 8, trainer.device)
    settings = Settings(metrics=("fid", "precision-recall"), images=2000)
    quality = measure_quality(model, faces, [extractor], [sampler], settings, keep_features=False)
    features = quality.rows[0].features[extractor.name]
    result = {
        "bits": evaluation.elbo_bits.mean,
        "kl_per_group": evaluation.kl_per_group,
        "fid": features.fid,
        "precision": features.manifolds[3].precision,
        "recall": features.manifolds[3].recall,
    }
    return result, torch.cat([sampler.sample(16), sampler.sample(16, "most_likely")])


def row(options, result):
    """Return the row of a result in docs/speedrun.md."""
    cells = [
        f"{date.today()}, {commit()}, {processor()}",
        f"`{' '.join([Path(options.config).stem, *options.overrides])}`",
        f"{result['cpu_seconds']:.0f}",
        f"{result['images']:,} / {result['steps']:,}",
        f"{result['bits']:.3f} ({sum(result['kl_per_group']):.0f})",
        f"{result['fid']:.1f}",
        f"[{options.name}](../images/speedrun/{options.name}.webp)",
        options.note,
    ]
    return f"| {' | '.join(cells)} |\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    parser.add_argument("--seconds", type=float, default=480)
    parser.add_argument("--note", help="what was changed, and what this brought")
    parser.add_argument("--name", help="of the sheet; the default is the name of the config")
    options = parser.parse_args()
    options.name = options.name or Path(options.config).stem
    trainer, data, counts = train_for(options.seconds, options.config, [*CONTEST, *options.overrides])
    result, sheet = measured(trainer, data)
    result = {"name": options.name, **counts, **result}
    path = SHEETS / f"{options.name}.webp" if options.note else Path(f"{options.name}.webp")
    path.parent.mkdir(parents=True, exist_ok=True)
    grid(sheet, 8, cell=64).save(path, quality=90)
    if options.note:
        with PAGE.open("a") as page:
            page.write(row(options, result))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
