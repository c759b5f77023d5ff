"""Batches of images on the training device, from wherever the images of a data set are kept."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from contextlib import closing

import torch
from torch import Tensor

from nvae.data.cache import memory_limit
from nvae.data.images import CHUNK
from nvae.data.threads import map_in_threads
from nvae.system.devices import available_bytes
from nvae.system.memory_maps import chunks, release_pages

# Of the memory that is free on an accelerator before the first step. The activations of a step, whose size is not known
# yet, need the rest.
RESIDENT_SHARE = 0.1
THREADS = 4  # that read: a disk answers several requests at once faster than one after another
READ_AT_ONCE = 16  # images per thread before their pages are given back: Linux may map 2 MiB around each image
AHEAD = 8  # batches that are read before their step


class BatchSource:
    """The images of a data set as batches on a device.

    Images that fit are kept on the device: on a CPU up to `memory_limit`, on an accelerator up to RESIDENT_SHARE of its
    free memory. Other batches are read in threads before they are needed, from memory or from a memory-mapped file; a
    CUDA device gets them from pinned memory, without a wait. The batches are the same in all cases.
    """

    def __init__(self, images_u8: Tensor, device: torch.device) -> None:
        self._device = device
        self.is_resident = fits(images_u8, device)
        self._images_u8 = _copied(images_u8, device) if self.is_resident else images_u8

    def batches(self, indices: Iterable[Tensor]) -> Generator[Tensor, None, None]:
        """Yield uint8 (B, C, S, S) on the device for each of the index tensors, int64 (B,) on the CPU.

        More index tensors may be taken than batches are used. Closing the iterator ends its threads. An error while
        reading is raised in the place of its batch.
        """
        if self.is_resident:
            for batch in indices:  # copied without a wait for the device
                yield self._images_u8.index_select(0, batch.to(self._device, non_blocking=True))
            return
        with closing(map_in_threads(self._read, indices, THREADS, AHEAD)) as batches:
            for images_u8 in batches:
                # Without a wait only from pinned memory: PyTorch keeps that memory until the copy is done.
                yield images_u8.to(self._device, non_blocking=self._device.type == "cuda")

    def _read(self, indices: Tensor) -> Tensor:
        """Read a batch to memory that the device can copy from, in a thread."""
        # NumPy's indexing stays in this thread; torch's would start a team of threads for each thread that calls it.
        stored = self._images_u8.numpy()
        images_u8 = torch.empty(len(indices), *stored.shape[1:], dtype=torch.uint8)
        for part, target in zip(indices.split(READ_AT_ONCE), images_u8.split(READ_AT_ONCE), strict=True):
            target.numpy()[:] = stored[part.numpy()]
            release_pages()
        if self._device.type != "cuda":
            return images_u8
        with torch.cuda.device(self._device):  # of this thread; else pinning would start CUDA on the first device too
            return images_u8.pin_memory()


def fits(images_u8: Tensor, device: torch.device) -> bool:
    """Return whether images can be kept on a device that has its model already."""
    if device.type == "cpu":
        return images_u8.numel() <= memory_limit()
    available = available_bytes(device)
    return available is not None and images_u8.numel() <= RESIDENT_SHARE * available


def _copied(images_u8: Tensor, device: torch.device) -> Tensor:
    """Return images on a device. Images in a file are read in parts, which needs little memory of the CPU."""
    if images_u8.device == device:
        return images_u8
    result = torch.empty(images_u8.shape, dtype=torch.uint8, device=device)
    for source, target in zip(chunks(images_u8, CHUNK), result.split(CHUNK), strict=True):
        target.copy_(source)
    return result
