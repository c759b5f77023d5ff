"""Measure training steps and samples per second, relative to the speed of 3x3 convolutions on the same machine.

    python3 benchmarks/train_step.py [--batch-size 8] [--device cpu] [--half] [CONFIG ...]

A step is everything that training does with a batch: forward pass, backward pass, regularizers and optimizer. A step
counts as three times the operations of the forward pass. A sample is the mean image of a top-down pass, and is compared
with the forward pass of convolutions. The yardstick is the fastest shape of 3x3 convolutions,
forward and backward, and forward alone, measured in the same run. Prints a table and a line of JSON.
"""

import argparse
import json
import time

import torch
from clock import synchronize
from torch.utils.flop_counter import FlopCounterMode

from nvae.config import load_config
from nvae.data.images import Data
from nvae.inference.sampling import Sampler
from nvae.models.families import clone
from nvae.summary import cost_per_image
from nvae.system.devices import choose_device, half_dtype, set_fast_defaults
from nvae.training.trainer import Trainer

# Operations with the original order of layers. Our order computes some layers at half the resolution, with the same
# result and fewer operations. Shares use the original count, so that they compare with other implementations.
NOMINAL_GFLOP = {"big_logistic_mixture20latentnoflows": 6.65}


def seconds(work, device, repeats, rounds=3):
    """Return the mean seconds of a call in the fastest round, after two warm-up calls."""
    work()
    work()
    best = float("inf")
    for _ in range(rounds):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return best


def convolution_throughput(device, dtype):
    """Return the GFLOP/s of 3x3 convolutions at the fastest of our shapes: [forward, forward and backward]."""
    best = [0.0, 0.0]
    for channels, side in ((64, 32), (128, 16), (256, 8), (64, 64), (128, 32), (256, 16)):
        layer = torch.nn.Conv2d(channels, channels, 3, padding=1, device=device, dtype=dtype)
        layer = layer.to(memory_format=torch.channels_last)
        x = torch.randn(8, channels, side, side, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        x.requires_grad_()
        gradient = torch.randn_like(x)
        operations = 2 * x.numel() * channels * 9 / 1e9

        def forward(layer=layer, x=x):
            with torch.no_grad():
                layer(x)

        def both(layer=layer, x=x, gradient=gradient):
            layer(x).backward(gradient)

        best[0] = max(best[0], operations / seconds(forward, device, 5))
        best[1] = max(best[1], 3 * operations / seconds(both, device, 5))
    return best


def measure(name, batch_size, device, half):
    sets = [f"training_parameters.batch_size={batch_size}", f"training_parameters.half_precision={half}"]
    config = load_config(name, sets)
    shape = (batch_size, config.image_channels, config.input_dimension, config.input_dimension)
    images_u8 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(config, Data(images_u8, images_u8), device)
    per_step = seconds(lambda: trainer.step(images_u8), device, 3)
    gflop = cost_per_image(config).operations / 1e9
    sampler = Sampler(clone(trainer.model), iterations=0)
    noise = sampler.noise(range(batch_size))
    with FlopCounterMode(display=False) as counter:
        sampler.top_down(noise)
    per_batch = seconds(lambda: sampler.top_down(noise), device, 3)
    return {
        "config": name,
        "batch_size": batch_size,
        "images_per_second": batch_size / per_step,
        "samples_per_second": batch_size / per_batch,
        "sampling_gflop_per_second": counter.get_total_flops() / 1e9 / per_batch,
        "executed_gflop_per_image": gflop,
        "nominal_gflop_per_image": NOMINAL_GFLOP.get(name, gflop),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--device")
    parser.add_argument("--half", action="store_true")
    parser.add_argument("--plain-process", action="store_true", help="without devices.set_fast_defaults()")
    options = parser.parse_args()
    if not options.plain_process:
        set_fast_defaults()
    device = choose_device(options.device)
    dtype = (half_dtype(device) if options.half else None) or torch.float32
    before = convolution_throughput(device, dtype)
    rows = [measure(name, size, device, options.half) for name, size in batches(options)]
    after = convolution_throughput(device, dtype)  # again: the machine may have been busy
    forward, both = (max(pair) for pair in zip(before, after, strict=True))
    print(f"3x3 convolutions on {device} in {dtype}, GFLOP/s: {both:.0f} forward and backward, {forward:.0f} forward")
    columns = f"{'batch':>5} {'images/s':>9} {'GFLOP/s':>8} {'share':>6} {'of forward':>11} {'executed':>9}"
    print(f"{'config':38} {columns} {'samples/s':>10} {'of forward':>11}")
    for row in rows:
        row["gflop_per_second"] = 3 * row["nominal_gflop_per_image"] * row["images_per_second"]
        row["share"] = row["gflop_per_second"] / both
        row["share_of_forward"] = row["gflop_per_second"] / forward
        row["sampling_share"] = row["sampling_gflop_per_second"] / forward
        row["executed_share"] = row["share"] * row["executed_gflop_per_image"] / row["nominal_gflop_per_image"]
        print(
            f"{row['config']:38} {row['batch_size']:5} {row['images_per_second']:9.1f} {row['gflop_per_second']:8.0f} "
            f"{row['share']:6.0%} {row['share_of_forward']:11.0%} {row['executed_share']:9.0%} "
            f"{row['samples_per_second']:10.1f} {row['sampling_share']:11.0%}"
        )
    yardstick = {"forward_and_backward": both, "forward": forward}
    print(
        json.dumps({"device": str(device), "dtype": str(dtype), "yardstick_gflop_per_second": yardstick, "rows": rows})
    )


def batches(options):
    """Return the configs and batch sizes to measure: the given configs, or the configs of docs/speed.md."""
    if options.configs:
        return [(name, options.batch_size) for name in options.configs]
    own = load_config("nvae_small").training_parameters.batch_size
    return [
        ("quickstart", load_config("quickstart").training_parameters.batch_size),
        ("nvae_small", options.batch_size),
        ("nvae_small", own),
        ("big_logistic_mixture20latentnoflows", options.batch_size),
    ]


if __name__ == "__main__":
    main()
