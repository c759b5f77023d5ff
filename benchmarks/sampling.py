"""Measure how much faster samples are from a copy for inference, with folded batch norms, than from the model itself.

    python3 benchmarks/sampling.py [--count 16] [CONFIG ...]

Networks with random weights draw the same mean images. The rounds of the model and of the copy alternate, and count the
time of the processor. "copy" is the time to make the copy and to compute its weights, which a sampler does once for a
temperature. Prints a line per config.
"""

import argparse
import time

import torch

from nvae.config import load_config
from nvae.models.families import build_model
from nvae.models.folding import for_inference
from nvae.models.hierarchy import FromNoise
from nvae.system.devices import set_fast_defaults

CONFIGS = (
    "quickstart",
    "nvae_small",
    "nvae_mnist_small",
    "nvae_mnist",
    "toy_faces_64",
    "big_logistic_mixture20latentnoflows",
)
ROUNDS = 7


def seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


@torch.no_grad()
def measure(name, count):
    model = build_model(load_config(name)).eval().requires_grad_(False)
    folded = for_inference(model)
    noise = FromNoise(model.draw_noise(count))

    def sample(network):
        return network.top_down(noise, count, mean_only=True).px_z.mean()

    error = (sample(folded) - sample(model)).norm() / sample(model).norm()
    rounds = [
        (
            seconds(lambda: sample(model)),
            seconds(lambda: sample(folded)),
            seconds(lambda: sample(for_inference(model))),
        )
        for _ in range(ROUNDS)
    ]
    of_model, of_copy, with_copy = (min(times) for times in zip(*rounds, strict=True))
    print(
        f"{name:38} {1000 * of_model:8.1f} {1000 * of_copy:8.1f} {of_model / of_copy:7.2f} "
        f"{1000 * (with_copy - of_copy):8.1f} {error:10.1e}"
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--count", type=int, default=16)
    options = parser.parse_args()
    set_fast_defaults()
    print(f"{options.count} samples, milliseconds of {torch.get_num_threads()} threads")
    print(f"{'config':38} {'model':>8} {'folded':>8} {'ratio':>7} {'copy':>8} {'error':>10}")
    for name in options.configs:
        measure(name, options.count)


if __name__ == "__main__":
    main()
