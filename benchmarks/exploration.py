"""Exploring: what it saves that a pass with one group jammed starts right where that group chooses.

    python3 benchmarks/exploration.py [--jams 8] [--device cpu] [CONFIG ...]

Yardstick: the same jams by whole passes, of as many images at once, in the same run. Counted are the operations of
convolutions of every group's jam in turn; the pass of the unchanged image comes once for all jams. Prints a table and
a line of JSON.
"""

import argparse
import json

import torch
from clock import seconds
from torch.utils.flop_counter import FlopCounterMode

from nvae.config import load_config
from nvae.devices import choose_device, set_fast_defaults
from nvae.inference.exploration import base_point, fresh_noise, jammed
from nvae.inference.sampling import decode, noise_of
from nvae.models.families import build_model
from nvae.models.hierarchy import FromNoise

CONFIGS = ("quickstart", "big_logistic_mixture20latentnoflows")


@torch.no_grad()
def operations(config):
    """Of convolutions: of a whole pass, and of the passes that start before each group, for one image."""
    with torch.device("meta"):
        model = build_model(config).eval().requires_grad_(False)
        noise = model.no_noise(1)
    whole = model.top_down(FromNoise(noise), 1, return_states=True)
    starts = [None, *whole.starts.values()]
    counts = []
    for start in starts:
        with FlopCounterMode(display=False) as counter:
            model.top_down(FromNoise(noise), 1, start=start, mean_only=True)
        by_operator = counter.get_flop_counts()["Global"]
        counts.append(sum(count for operator, count in by_operator.items() if "convolution" in str(operator)))
    return counts[0], counts[1:]


def measure(name, jams, device):
    config = load_config(name)
    model = build_model(config).to(device).eval().requires_grad_(False)
    groups = range(len(model.groups))
    view = base_point(model, noise_of(model, [0]), 0.7)
    fresh = [fresh_noise(model, group, jams, seed=0) for group in groups]

    def restarted():
        for group in groups:
            jammed(model, view, group, fresh[group]).sum().item()

    def whole():
        for group in groups:
            noise = [kept.expand(jams, -1, -1, -1) for kept in view.noise]
            noise[group] = fresh[group]
            decode(model, noise, 0.7).sum().item()

    of_whole, of_parts = operations(config)
    restarted_seconds, whole_seconds = seconds(restarted), seconds(whole)
    return {
        "config": name,
        "groups": len(model.groups),
        "gflop_whole_pass": of_whole / 1e9,
        "share_of_operations": sum(of_parts) / (of_whole * len(of_parts)),
        "share_of_seconds": restarted_seconds / whole_seconds,
        "jams_per_second": jams * len(model.groups) / restarted_seconds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="*", default=CONFIGS)
    parser.add_argument("--jams", type=int, default=8)
    parser.add_argument("--device")
    options = parser.parse_args()
    set_fast_defaults()
    device = choose_device(options.device)
    print(f"every group jammed {options.jams} times, in one batch, on {device}")
    print(f"{'config':38} {'groups':>6} {'whole, GFLOP':>12} {'operations':>10} {'seconds':>8} {'jams/s':>7}")
    rows = []
    for name in options.configs:
        row = measure(name, options.jams, device)
        rows.append(row)
        print(
            f"{name:38} {row['groups']:6} {row['gflop_whole_pass']:12.3f} {row['share_of_operations']:10.1%} "
            f"{row['share_of_seconds']:8.1%} {row['jams_per_second']:7.1f}"
        )
    print(json.dumps({"device": str(device), "jams": options.jams, "rows": rows}))


if __name__ == "__main__":
    main()
