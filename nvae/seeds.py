"""Random generators as pure functions of a seed, a purpose and a count.

No random state is carried from one step to the next, so a resumed run needs none to continue exactly.
"""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, purpose: str, count: int = 0) -> int:
    """Return a 31-bit seed for one purpose, unrelated to the seeds of other seeds, purposes and counts.

    31 bits, because torch's CPU generator uses no more than 32 bits of a seed.
    """
    digest = hashlib.blake2b(f"{seed} {purpose} {count}".encode(), digest_size=4).digest()
    return int.from_bytes(digest, "big") >> 1


def seeded(seed: int, purpose: str, count: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a new generator. A CPU generator (the default) gives the same numbers for every device."""
    return torch.Generator(device).manual_seed(derived_seed(seed, purpose, count))
