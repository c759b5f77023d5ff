"""Measure how much faster exploration is when passes start right before the resampled group.

    python3 benchmarks/exploration.py [--draws 8] [--device cpu] [CONFIG ...]

Yardstick: the same images, computed by whole passes of the same batch size in the same run. Operations count the
convolutions of resampling every group in turn, without the one pass of the unchanged image. Prints a table and a line
of JSON.
"""

import argparse
import json

import torch
from clock import seconds
from torch.utils.flop_counter import FlopCounterMode

from nvae.config import load_config
from nvae.inference.exploration import base_point, draw_group_noise, resample_group
from nvae.inference.sampling import Sampler
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise
from nvae.system.devices import choose_device, set_fast_defaults

CONFIGS = ("nvae_small", "big_logistic_mixture20latentnoflows")


@torch.no_grad()
def operations(config):
    """Count operations of convolutions per image: in a whole pass, and in the passes that start before each group."""
    with torch.device("meta"):
        model = build_model(config).eval().requires_grad_(False)
        noise = model.no_noise(1)
    whole = model.top_down(FromNoise(noise), 1, return_states=True)
    starts = [None, *whole.states.values()]
    counts = []
    for start in starts:
        with FlopCounterMode(display=False) as counter:
            model.top_down(FromNoise(noise), 1, start=start, mean_only=True)
        by_operator = counter.get_flop_counts()["Global"]
        counts.append(sum(count for operator, count in by_operator.items() if "convolution" in str(operator)))
    return counts[0], counts[1:]


def measure(name, draws, device):
    config = load_config(name)
    model = build_model(config).to(device).eval().requires_grad_(False)
    groups = range(len(model.groups))
    sampler = Sampler(model, 0.7, iterations=0)
    base = base_point(sampler, sampler.noise([0]))
    fresh = [draw_group_noise(model, group, draws) for group in groups]

    def restarted():
        for group in groups:
            resample_group(sampler, base, group, fresh[group]).sum().item()

    def whole():
        for group in groups:
            noise = [kept.expand(draws, *kept.shape[1:]) for kept in base.noise]
            noise[group] = fresh[group]
            sampler.decode(noise).sum().item()

    whole_operations, part_operations = operations(config)
    restarted_seconds, whole_seconds = seconds(restarted), seconds(whole)
    return {
        "config": name,
        "groups": len(model.groups),
        "gflop_whole_pass": whole_operations / 1e9,
        "share_of_operations": sum(part_operations) / (whole_operations * len(part_operations)),
        "share_of_seconds": restarted_seconds / whole_seconds,
        "images_per_second": draws * len(model.groups) / restarted_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--device")
    options = parser.parse_args()
    set_fast_defaults()
    device = choose_device(options.device)
    print(f"every group resampled {options.draws} times, in one batch, on {device}")
    print(f"{'config':38} {'groups':>6} {'whole, GFLOP':>12} {'operations':>10} {'seconds':>8} {'images/s':>8}")
    rows = []
    for name in options.configs:
        row = measure(name, options.draws, device)
        rows.append(row)
        print(
            f"{name:38} {row['groups']:6} {row['gflop_whole_pass']:12.3f} {row['share_of_operations']:10.1%} "
            f"{row['share_of_seconds']:8.1%} {row['images_per_second']:8.1f}"
        )
    print(json.dumps({"device": str(device), "draws": options.draws, "rows": rows}))


if __name__ == "__main__":
    main()
