"""Measure the error and the cost of the spectral regularization's power iteration during training.

    python3 benchmarks/spectral.py [--steps 60] [--batch-size 16] [--iterations 1 2 4] [CONFIG ...]

Trains each config on toy faces. For every number of iterations, one more regularizer with its own vectors follows the
weights of the same training, so the numbers of iterations are compared on one trajectory. The error is relative to an
exact singular value decomposition before every step. The cost is the forward and backward pass of the regularizer
alone, as a share of a whole training step. Prints a table and a line of JSON.
"""

import argparse
import json
import statistics
import time

import torch

from nvae.config import load_config
from nvae.data.images import Data
from nvae.data.registry import load_data
from nvae.models.nvae.regularization import SpectralRegularization, regularized_convolutions
from nvae.training.trainer import Trainer


def exact_singular_values(convolutions):
    """Return the largest singular value of every weight as a (C_out, rest) matrix, in the regularizer's order."""
    by_shape = {}
    for convolution in convolutions:
        by_shape.setdefault((len(convolution.weight), convolution.weight[0].numel()), []).append(convolution)
    batches = [torch.stack([c.weight.detach().flatten(1) for c in batch]) for batch in by_shape.values()]
    return torch.cat([torch.linalg.matrix_norm(weights.double(), 2) for weights in batches])


def seconds(work, repeats=5):
    """Return the median seconds of some calls, after a warm-up call."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def measure(name, batch_size, steps, iterations):
    faces = ["dataset.training_images=512", "dataset.validation_images=16"]
    sets = [f"training_parameters.batch_size={batch_size}", *(faces if name == "nvae_small" else [])]
    config = load_config(name, sets)
    images_u8 = load_data(load_config("quickstart", faces)).training
    side, channels = config.input_dimension, config.image_channels
    images_u8 = images_u8[:, :channels, :side, :side].contiguous()
    torch.manual_seed(0)
    trainer = Trainer(config, Data(images_u8, images_u8), torch.device("cpu"))
    convolutions = regularized_convolutions(trainer.model, config.training_parameters.spectral_scope)
    followers = {n: SpectralRegularization(convolutions, 1) for n in iterations}
    errors = {n: [] for n in iterations}  # per step: relative error of every singular value
    sums = {n: [] for n in iterations}
    for step in range(steps):
        start = step * batch_size % (len(images_u8) - batch_size + 1)
        trainer.model.train()
        exact = exact_singular_values(convolutions)
        for n, follower in followers.items():
            with torch.no_grad():
                values = follower.singular_values(n).double()
            errors[n].append(1 - values / exact)
            sums[n].append(1 - (values.sum() / exact.sum()).item())
        trainer.step(images_u8[start : start + batch_size])
    step_seconds = seconds(lambda: trainer.step(images_u8[:batch_size]), 7)
    rows = []
    for n, follower in followers.items():
        cost = seconds(lambda n=n, follower=follower: follower.singular_values(n).sum().backward(), 7)
        error = torch.stack(errors[n])  # (steps, convolutions)
        rows.append(
            {
                "config": name,
                "convolutions": len(convolutions),
                "iterations": n,
                "mean_error": error.mean().item(),
                "mean_error_at_the_end": error[-10:].mean().item(),
                "largest_error": error.max().item(),
                "largest_error_at_the_end": error[-10:].max().item(),
                "mean_error_of_the_sum": statistics.mean(sums[n]),
                "share_of_a_step": cost / step_seconds,
                "step_seconds": step_seconds,
            }
        )
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["nvae_small", "nvae_mnist_small"])
    parser.add_argument("--steps", type=int, default=60, help="training steps (default: 60)")
    parser.add_argument("--batch-size", type=int, default=16, help="images per step (default: 16)")
    parser.add_argument("--iterations", type=int, nargs="+", default=[1, 2, 4], help="per step (default: 1 2 4)")
    options = parser.parse_args()
    rows = [
        row for name in options.configs for row in measure(name, options.batch_size, options.steps, options.iterations)
    ]
    print(f"{'config':38} {'iterations':>10} {'error':>8} {'last 10':>8} {'largest':>8} {'of sum':>8} {'cost':>6}")
    for row in rows:
        errors = "mean_error", "mean_error_at_the_end", "largest_error", "mean_error_of_the_sum"
        shown = " ".join(f"{row[key]:8.3%}" for key in errors)
        print(f"{row['config']:38} {row['iterations']:10} {shown} {row['share_of_a_step']:6.1%}")
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
