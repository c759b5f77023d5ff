"""One number, one stream of random numbers: everything drawn is a function of a seed, a purpose and a count.

No random state is ever carried from one step to the next, so nothing has to be saved to go on exactly.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, count: int = 0) -> int:
    """A seed of 31 bits for one purpose, unrelated to those of other seeds, purposes and counts.

    31, because torch's generator of the CPU uses no more than 32 bits of what it is given.
    """
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator; on the CPU, the default, its numbers are the same whatever device they are used on."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, count))
