"""Compare DepthwiseConv2d with torch's depthwise convolution: forward and backward on the CPU, at our shapes.

    python3 benchmarks/depthwise.py

Prints a table and a line of JSON.
"""

import json
import time

import torch

from nvae.models.nvae.convolutions import DepthwiseConv2d
from nvae.system.devices import set_fast_defaults

SHAPES = ((8, 192, 64), (8, 384, 32), (8, 768, 16), (8, 1536, 8), (32, 768, 8))  # batch, channels, side


def milliseconds(layer, x):
    best = float("inf")
    for _ in range(6):
        start = time.perf_counter()
        layer(x).sum().backward()
        best = min(best, time.perf_counter() - start)
    return 1e3 * best


def main():
    set_fast_defaults()
    rows = []
    print(f"{'batch x channels x side':26} {'torch, ms':>10} {'ours, ms':>9} {'ratio':>6}")
    for batch, channels, side in SHAPES:
        ours = DepthwiseConv2d(channels, 5).to(memory_format=torch.channels_last)
        theirs = torch.nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False)
        theirs = theirs.to(memory_format=torch.channels_last)
        x = torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last).requires_grad_()
        row = {"shape": [batch, channels, side], "torch": milliseconds(theirs, x), "ours": milliseconds(ours, x)}
        rows.append(row)
        print(
            f"{f'{batch} x {channels} x {side}':26} {row['torch']:10.1f} {row['ours']:9.1f} "
            f"{row['torch'] / row['ours']:6.2f}"
        )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
