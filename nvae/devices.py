"""Where to compute, and in what precision."""

from __future__ import annotations

import ctypes
import sys

import torch

from nvae.errors import UserError


def choose_device(wanted: str | None = None) -> torch.device:
    """The device a person asked for, or the fastest there is: CUDA, then MPS, then the CPU. Raises UserError."""
    there = available_devices()
    if wanted is None:
        return torch.device(there[0])
    if wanted == "cuda" and "cuda:0" in there:
        return torch.device("cuda:0")
    if wanted not in there:
        raise UserError(f"there is no device '{wanted}' on this machine; --device can be {' or '.join(there)}.")
    return torch.device(wanted)


def available_devices() -> list[str]:
    """Names of the devices of this machine, the fastest kind first."""
    cuda = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*cuda, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def half_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes with it, else float16, which needs its loss scaled."""
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def set_fast_defaults() -> None:
    """Settings of the whole process that make training faster and no number different but for rounding."""
    _keep_freed_memory()
    torch.backends.cudnn.benchmark = True  # all batches have one shape, so trying out algorithms pays


def _keep_freed_memory() -> None:
    """Have glibc keep the memory of freed tensors instead of handing it back to the system (Linux, CPU).

    A training step frees and asks for the same gigabytes again and again. Handed back, every page of them has to be
    mapped and zeroed anew, an eighth of the time of a step or more (`benchmarks/train_step.py --plain-process`).
    Elsewhere nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # parameters as malloc.h names them
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
