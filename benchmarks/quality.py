"""Measure the time and the memory of the metrics of samples, for 10,000 samples against 10,000 images.

    python3 benchmarks/quality.py [--images 10000] [--config nvae_small] [--device cpu]

The model has random weights: the cost is the same. Yardstick: sampling alone. Every step has its seconds, its share of
sampling, and the largest resident memory of the process during the step. Another table: seconds and memory of the
distances alone, for half and for all of the features. Needs Linux. Prints tables and a line of JSON.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

import torch

from nvae.config import load_config
from nvae.data.registry import load_original_images
from nvae.evaluation.quality.copies import find_copies, thumbnails
from nvae.evaluation.quality.distances import FeatureStatistics, frechet_distance, kernel_distance
from nvae.evaluation.quality.extractors.transformations import load_self
from nvae.evaluation.quality.manifolds import manifolds
from nvae.evaluation.quality.measure import reference_images
from nvae.evaluation.quality.path_length import NamedDistance, movement_per_group, path_lengths, squared_distance
from nvae.inference.sampling import Sampler
from nvae.models.families import build_model
from nvae.system.devices import choose_device, set_fast_defaults

DIMENSIONS = (128, 2048)  # of the extractors self and inception


def reset_peak():
    """Let `peak` begin anew."""
    Path("/proc/self/clear_refs").write_text("5")


def peak():
    """Return the largest resident memory of the process since `reset_peak`, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


class Steps:
    """The seconds and the peak memory of named steps."""

    def __init__(self):
        self.rows = []

    def __call__(self, name, work):
        reset_peak()
        start = time.perf_counter()
        result = work()
        self.rows.append({"step": name, "seconds": time.perf_counter() - start, "peak_mib": peak()})
        return result


def measure(options, device):
    config = load_config(options.config, [f"dataset.training_images={2 * options.images}"])
    steps = Steps()
    data = steps("data set", lambda: load_original_images(config))
    model = build_model(config).to(device).eval()
    sampler = Sampler(model, 0.8, batch_size=50)
    extractor = steps("training of self", lambda: load_self(data.training, config.pixel_bits, device))
    _ = steps("recalibration", lambda: sampler.statistics)
    reference = reference_images(data, "training", config, options.images, "mean")
    count = len(reference.own)

    def features(images):
        return extractor(images), thumbnails(images)

    def of_samples(make):
        parts = [make(slice(start, min(start + 50, options.images))) for start in range(0, options.images, 50)]
        return [torch.cat(part) for part in zip(*parts, strict=True)]

    def sample_all():
        for start in range(0, options.images, 50):
            sampler.sample(range(start, start + 50))

    steps("sampling", sample_all)
    real = steps(
        "features of images",
        lambda: torch.cat([extractor(reference.get(reference.own[i : i + 50])) for i in range(0, count, 50)]),
    )
    own, small = steps(
        "sampling and features", lambda: of_samples(lambda part: features(sampler.sample(range(part.start, part.stop))))
    )
    steps("FID", lambda: frechet_distance(FeatureStatistics.of(real), FeatureStatistics.of(own)))
    steps("KID", lambda: kernel_distance(real, own))
    steps("precision, recall, density, coverage", lambda: manifolds(real, own, (3, 5)))
    steps(f"copies of {len(data.training):,} images", lambda: find_copies(small, data.training, device=device))
    groups = list(range(len(model.groups)))
    distance = NamedDistance("self", extractor.key, squared_distance(extractor))
    steps("500 path lengths", lambda: path_lengths(sampler, [distance], 500, groups))
    steps("movement per group", lambda: movement_per_group(sampler))
    return steps.rows


def distances(count, dimensions):
    """Return the seconds and the additional memory of the distances of random features."""
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(count, dimensions, generator=generator) for _ in range(2))
    reset_peak()
    before, start = peak(), time.perf_counter()
    frechet_distance(FeatureStatistics.of(a), FeatureStatistics.of(b))
    kernel_distance(a, b)
    manifolds(a, b, (3, 5))
    seconds = time.perf_counter() - start
    return {"features": count, "dimensions": dimensions, "seconds": seconds, "more_mib": peak() - before}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--config", default="nvae_small")
    parser.add_argument("--device")
    options = parser.parse_args()
    set_fast_defaults()
    device = choose_device(options.device)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NVAE_CACHE"] = folder  # so that the extractor is trained
        rows = measure(options, device)  # first: the process keeps freed memory of the distances
        table = [
            distances(count, dimensions) for dimensions in DIMENSIONS for count in (options.images // 2, options.images)
        ]
    print("distances of random features: FID, KID, precision and recall together")
    for row in table:
        print(
            f"{row['features']:>7,} x {row['dimensions']:<5} {row['seconds']:7.1f} s {row['more_mib']:8.0f} MiB more "
            "at the peak than before"
        )
    sampling = next(row["seconds"] for row in rows if row["step"] == "sampling")
    print(f"{options.config}, {options.images:,} samples, on {device}")
    for row in rows:
        print(
            f"{row['step']:40} {row['seconds']:8.1f} s {row['seconds'] / sampling:7.2f} of sampling"
            f"{row['peak_mib']:9.0f} MiB"
        )
    print(json.dumps({"device": str(device), "images": options.images, "rows": rows, "distances": table}))


if __name__ == "__main__":
    main()
