"""Memory of training: a warning before it starts, and an explanation when it is not enough."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from nvae.schema import ModelConfig
from nvae.summary import training_bytes
from nvae.system.devices import available_bytes
from nvae.system.errors import Remedy, UserError, is_out_of_memory

ADVICE = (
    "Set a smaller training_parameters.batch_size, a larger gradient_accumulation, or use_tensor_checkpoints to True."
)


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
            raise UserError(f"the memory is not enough for this training. {ADVICE}", Remedy.CONFIG_KEY) from error
        raise
