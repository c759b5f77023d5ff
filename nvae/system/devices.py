"""Choose the device and its half precision, ask for its memory, and set process-wide options."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from nvae.system.errors import UserError
from nvae.system.limits import cpu_count, memory_bytes


def choose_device(name: str | None = None, index: int = 0) -> torch.device:
    """Return the device with this name, or the fastest one: CUDA, then XPU, MPS, and the CPU. Raises UserError.

    index: of the CUDA or XPU device, where the name has none.
    """
    kinds = {"cuda": torch.cuda, "xpu": torch.xpu}
    counts = {kind: module.device_count() if module.is_available() else 0 for kind, module in kinds.items()}
    numbered = [f"{kind}:{i}" for kind, count in counts.items() for i in range(count)]
    available = [*numbered, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    name = available[0].split(":")[0] if name is None else name
    if counts.get(name):
        name = f"{name}:{index}"
    if name not in available:
        advice = " Use at most one process for each GPU of this machine." if index else ""
        raise UserError(f"this machine has no device '{name}': expected {' or '.join(available)}.{advice}")
    return torch.device(name)


def available_bytes(device: torch.device) -> int | None:
    """Return the free memory of a CUDA device, or the memory that this process may use; None if unknown."""
    if device.type == "xpu":  # has its own memory, which not every driver tells
        return None
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else memory_bytes()


def half_dtype(device: torch.device) -> torch.dtype | None:
    """Return bfloat16 if the device supports it, else float16, which needs loss scaling.

    Return None for a CPU without AMX, on which bfloat16 was 0.81 times as fast as float32; with AMX 2.4 times.
    """
    # The instructions decide, not a measurement: a run that continues on the same machine must decide the same. PyTorch
    # 2.6 has no public name for them, and the later `torch.cpu.get_capabilities` is what this function reads.
    if device.type == "cpu" and not torch.cpu._is_amx_tile_supported():
        return None
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def set_deterministic(deterministic: bool) -> None:
    """Set torch's process-wide options for cuDNN and for algorithms that give the same numbers every time.

    deterministic: only such algorithms of a GPU; a CPU has no others. PyTorch warns of an operation without such an
    algorithm (https://docs.pytorch.org/docs/stable/notes/randomness.html). Else the fastest ones.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at the first matrix product on a GPU
    torch.backends.cudnn.benchmark = not deterministic  # all batches have the same shape, so that a search pays off
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    # No number depends on this memory.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined] # set by the module's class


def set_fast_defaults() -> None:
    """Set options of a program of ours that make it faster: cuDNN's search, no more threads than CPUs, kept memory.

    PyTorch starts a thread for each CPU of the machine, also in a container with fewer, unless OMP_NUM_THREADS is set.

    glibc keeps the memory of freed tensors instead of returning it to the system (Linux, CPU; nothing elsewhere). A
    training step frees and allocates the same gigabytes again and again. The system would have to map and zero every
    returned page again, which takes an eighth of a step or more (`benchmarks/train_step.py --plain-process`).
    Results change only by rounding.
    """
    torch.backends.cudnn.benchmark = True
    if "OMP_NUM_THREADS" not in os.environ and cpu_count() < torch.get_num_threads():
        torch.set_num_threads(cpu_count())
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is None:  # another C library
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4  # M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX of malloc.h
    mallopt(mmap_max, 0)
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(top_pad, 64 * 2**20)
