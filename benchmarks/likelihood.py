"""Measure how much faster importance-weighted bounds are when the samples of an image share the bottom-up pass.

    python3 benchmarks/likelihood.py [--samples 100] [--images 4] [--batch-size 50] [--device cpu] [CONFIG ...]

Yardstick: the same estimate with a bottom-up pass for every sample. The predicted ratio is
K (up + down) / (up + K down), once with up and down in operations and once in seconds; the two predictions differ if
the two passes run at different speeds. Prints a table and a line of JSON.
"""

import argparse
import json

import torch
from clock import seconds
from torch.utils.flop_counter import FlopCounterMode

from nvae.config import load_config
from nvae.data.images import to_float
from nvae.evaluation.likelihood import evaluate, log_importance_weight
from nvae.models.families import build_model
from nvae.models.hierarchy import FromPosterior
from nvae.objective import elbo_terms
from nvae.system.devices import choose_device, set_fast_defaults

CONFIGS = ("nvae_mnist_small", "nvae_small", "big_logistic_mixture20latentnoflows")


def operations(config):
    """Count the operations per image of the bottom-up pass and of the top-down pass."""
    with torch.device("meta"):
        model = build_model(config)
        images = torch.zeros(1, config.image_channels, config.input_dimension, config.input_dimension)
    with FlopCounterMode(display=False) as up:
        features = model.bottom_up(images)
    with FlopCounterMode(display=False) as down:
        model.top_down(FromPosterior(features, model.no_noise(1, posterior=True)), 1).px_z.log_prob(images)
    return up.get_total_flops(), down.get_total_flops()


@torch.no_grad()
def pass_seconds(model, images_u8, batch_size):
    """Return the seconds of the bottom-up pass and of the top-down pass over a batch."""
    images = to_float(images_u8[:1].expand(batch_size, -1, -1, -1), model.device, model.config.pixel_bits)
    features = model.bottom_up(images)

    def down():
        noise = model.draw_noise(batch_size, posterior=True)
        output = model.top_down(FromPosterior(features, noise), batch_size)
        log_importance_weight(output, elbo_terms(output, images).log_likelihood)

    return seconds(lambda: model.bottom_up(images)[0].sum().item()), seconds(down)


def measure(name, options, device):
    config = load_config(name)
    model = build_model(config).to(device).eval()
    shape = (options.images, config.image_channels, config.input_dimension, config.input_dimension)
    images_u8 = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    up, down = operations(config)
    k = options.samples
    seconds_up, seconds_down = pass_seconds(model, images_u8, options.batch_size)
    copies = images_u8.repeat_interleave(k, 0)  # one sample of each of K copies of an image: K bottom-up passes
    shared = seconds(lambda: evaluate(model, images_u8, options.batch_size, k, count_active=False))
    separate = seconds(lambda: evaluate(model, copies, options.batch_size, count_active=False))
    return {
        "config": name,
        "gflop_up": up / 1e9,
        "gflop_down": down / 1e9,
        "samples_per_second": options.images * k / shared,
        "predicted_by_operations": k * (up + down) / (up + k * down),
        "predicted_by_seconds": k * (seconds_up + seconds_down) / (seconds_up + k * seconds_down),
        "measured_ratio": separate / shared,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--images", type=int, default=4)
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--device")
    options = parser.parse_args()
    set_fast_defaults()
    device = choose_device(options.device)
    print(f"K = {options.samples}, {options.batch_size} samples at once, on {device}")
    print(
        f"{'config':38} {'up, GFLOP':>9} {'down':>6} {'samples/s':>9} {'ratio: measured':>15} {'by operations':>13} "
        f"{'by seconds':>10}"
    )
    rows = []
    for name in options.configs:
        row = measure(name, options, device)
        rows.append(row)
        print(
            f"{name:38} {row['gflop_up']:9.3f} {row['gflop_down']:6.3f} {row['samples_per_second']:9.1f} "
            f"{row['measured_ratio']:15.2f} {row['predicted_by_operations']:13.2f} {row['predicted_by_seconds']:10.2f}"
        )
    print(json.dumps({"device": str(device), "samples": options.samples, "rows": rows}))


if __name__ == "__main__":
    main()
