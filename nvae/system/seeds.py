"""Random generators as pure functions of a seed, a purpose and a count.

No random state is carried from one step to the next, so a resumed run needs none to continue exactly.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def derived_seed(seed: int, purpose: str, count: int = 0) -> int:
    """Return a 31-bit seed for one purpose, unrelated to the seeds of other seeds, purposes and counts.

    31 bits, because torch's CPU generator uses no more than 32 bits of a seed.
    """
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def redrawn(seed: int, draws: int) -> int:
    """Return the seed of the draws number `draws`: for 0 the seed itself, else an unrelated one."""
    return derived_seed(seed, "draws", draws) if draws else seed


def seeded(seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator. A CPU generator (the default) gives the same numbers for every device."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, count))


@contextmanager
def seeded_defaults(seed: int, purpose: str, count: int, device: torch.device) -> Iterator[None]:
    """Seed torch's default generators, for layers that take no generator, such as dropout.

    On exit, the generators of the CPU and of a CUDA device are restored.
    """
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(derived_seed(seed, purpose, count))
        yield
