"""Memory of training: a warning before it starts, and an explanation when it is not enough."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nvae.errors import UserError, is_out_of_memory
from nvae.schema import ModelConfig
from nvae.summary import training_bytes

ADVICE = (
    "Set a smaller training_parameters.batch_size, a larger gradient_accumulation, or use_tensor_checkpoints to True."
)


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a CUDA device, or the memory of the machine; None if unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # some systems do not have these values
        return None


def memory_warning(config: ModelConfig, batch_size: int, device: torch.device) -> str | None:
    """Compare the estimated memory of training with the memory of the device; return a warning if it is too small."""
    needed, available = training_bytes(config, batch_size), available_bytes(device)
    if available is None or needed <= available:
        return None
    return (
        f"training needs about {needed / 2**30:.1f} GiB with {batch_size} images at a time, but {device} has "
        f"{available / 2**30:.1f} GiB. {ADVICE}"
    )


@contextmanager
def explained_out_of_memory() -> Iterator[None]:
    """Turn an out-of-memory error of PyTorch or Python into a UserError with advice."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise UserError(f"the memory is not enough for this training. {ADVICE}") from error
        raise
