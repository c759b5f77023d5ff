"""The folder of the cache of decoded pictures."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of the environment variable NVAE_CACHE, or ~/.cache/nvae; it may be missing."""
    return Path(os.environ.get("NVAE_CACHE") or "~/.cache/nvae").expanduser()


@contextmanager
def always_cache() -> Iterator[None]:
    """Cache the pictures that are decoded inside, however few they are."""
    yield
