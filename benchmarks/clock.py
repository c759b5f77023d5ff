"""Measure the time of a function; wait for a device."""

import time

import torch


def synchronize(device):
    """Wait until a device has done all work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def seconds(work, rounds=3):
    """Return the seconds of the fastest call, after a warm-up call. `work` must end with a copy to the CPU."""
    work()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
