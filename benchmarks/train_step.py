"""Training steps per second, beside what the machine's own 3x3 convolutions reach in the same run.

    python3 benchmarks/train_step.py [--batch-size 8] [--device cpu] [--half] [CONFIG ...]

A step is everything that training does with a batch: forward, backward, all regularisers, optimiser. Its operations
are taken as three times those of the forward pass. Prints a table and a line of JSON.
"""

import argparse
import json
import time

import torch
from torch.nn import functional

from nvae.config import load_config
from nvae.data.images import Data
from nvae.devices import choose_device, favour_speed, half_dtype
from nvae.summary import cost_per_image
from nvae.training.run import Run

# Operations as the original order of layers counts them. Ours computes some layers at half the resolution, with the
# same result, so it executes fewer; the share is of the original's count, as for anyone else's implementation.
NOMINAL_GFLOP = {"big_logistic_mixture20latentnoflows": 6.65}


def synchronise(device):
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()


def seconds(work, device, repeats, rounds=3):
    """The fastest round's mean."""
    work()
    work()
    best = float("inf")
    for _ in range(rounds):
        synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronise(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


@torch.no_grad()
def convolution_throughput(device, dtype):
    """GFLOP/s of 3x3 convolutions with shapes like those of the networks: the best of three."""
    best = 0.0
    for channels, side in ((64, 64), (128, 32), (256, 16)):
        x = torch.randn(16, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        weight = weight.to(memory_format=torch.channels_last)
        operations = 2 * x.numel() * channels * 9
        time_of_one = seconds(lambda x=x, weight=weight: functional.conv2d(x, weight, padding=1), device, 5)
        best = max(best, operations / time_of_one / 1e9)
    return best


def measure(name, batch_size, device, half):
    sets = [f"training_parameters.batch_size={batch_size}", f"training_parameters.half_precision={half}"]
    config = load_config(name, sets)
    shape = (batch_size, config.image_channels, config.input_dimension, config.input_dimension)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    run = Run(config, Data(pixels, pixels), device)
    per_step = seconds(lambda: run.step(pixels), device, 3)
    gflop = cost_per_image(config).operations / 1e9
    return {
        "config": name,
        "batch_size": batch_size,
        "images_per_second": batch_size / per_step,
        "executed_gflop_per_image": gflop,
        "nominal_gflop_per_image": NOMINAL_GFLOP.get(name, gflop),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=["quickstart", "big_logistic_mixture20latentnoflows"])
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--plain-process", action="store_true", help="without devices.favour_speed()")
    options = parser.parse_args()
    if not options.plain_process:
        favour_speed()
    device = choose_device(options.device)
    dtype = half_dtype(device) if options.half else torch.float32
    yardstick = convolution_throughput(device, dtype)
    rows = [measure(name, options.batch_size, device, options.half) for name in options.configs]
    yardstick = max(yardstick, convolution_throughput(device, dtype))  # again: the machine may have been busy
    print(f"3x3 convolutions on {device} in {dtype}: {yardstick:.0f} GFLOP/s")
    print(f"{'config':40} {'batch':>5} {'images/s':>9} {'GFLOP/s':>8} {'share':>6} {'executed':>9}")
    for row in rows:
        row["gflop_per_second"] = 3 * row["nominal_gflop_per_image"] * row["images_per_second"]
        row["share"] = row["gflop_per_second"] / yardstick
        row["executed_share"] = row["share"] * row["executed_gflop_per_image"] / row["nominal_gflop_per_image"]
        print(
            f"{row['config']:40} {row['batch_size']:5} {row['images_per_second']:9.1f} "
            f"{row['gflop_per_second']:8.0f} {row['share']:6.0%} {row['executed_share']:9.0%}"
        )
    print(
        json.dumps({"device": str(device), "dtype": str(dtype), "yardstick_gflop_per_second": yardstick, "rows": rows})
    )


if __name__ == "__main__":
    main()
