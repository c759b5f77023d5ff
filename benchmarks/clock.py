"""How long something takes."""

import time


def seconds(work, rounds=3):
    """The fastest of some rounds, after one that does not count; `work` must end with a copy to the CPU."""
    work()
    best = float("inf")
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
    return best
