"""Batches are the same wherever the images are kept, and the threads that read them end with their iterator."""

import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from nvae.data import batches as batches_module
from nvae.data.batches import AHEAD, RESIDENT_SHARE, THREADS, BatchSource, fits
from nvae.data.cache import memory_limit, new_images
from nvae.system.memory_maps import with_release

CPU = torch.device("cpu")
COUNT = 300


@pytest.fixture
def images_u8():
    return torch.randint(0, 256, (COUNT, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def order():
    """Sixty index tensors; every image is in several."""
    return torch.randint(0, COUNT, (60, 16), generator=torch.Generator().manual_seed(1)).unbind()


@pytest.fixture
def new_threads():
    """A function: the number of threads that were started in this test and run."""
    before = set(threading.enumerate())
    return lambda: len(set(threading.enumerate()) - before)


@pytest.fixture
def small_limit(tmp_path, monkeypatch):
    """A memory limit of a thousand bytes."""
    monkeypatch.setenv("NVAE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", str(1000 / 2**30))


def in_memory(images_u8, folder):
    return images_u8


def in_a_file(images_u8, folder):
    images_u8.numpy().tofile(folder / "images")
    return torch.from_numpy(with_release(np.memmap(folder / "images", np.uint8, "c", shape=tuple(images_u8.shape))))


def in_an_unnamed_file(images_u8, folder):
    result = new_images(*images_u8.shape)
    result.copy_(images_u8)
    return result


@pytest.mark.parametrize("keep", [in_memory, in_a_file, in_an_unnamed_file])
def test_batches_are_the_indexed_images_in_order(images_u8, order, small_limit, tmp_path, keep):
    source = BatchSource(keep(images_u8, tmp_path), CPU)
    assert not source.is_resident
    for _ in range(2):  # epochs
        batches = list(source.batches(iter(order)))
        assert len(batches) == len(order)
        assert all(torch.equal(batch, images_u8[indices]) for batch, indices in zip(batches, order, strict=True))
    assert list(source.batches([])) == []


def test_batches_of_resident_images_are_the_same(images_u8, order, new_threads):
    source = BatchSource(images_u8, CPU)
    assert source.is_resident
    for batch, indices in zip(source.batches(order), order, strict=True):
        assert torch.equal(batch, images_u8[indices])
    assert new_threads() == 0


@pytest.mark.parametrize("limit", [None, "1e-6"])
def test_batches_of_gray_images_in_three_channels(images_u8, order, monkeypatch, limit):
    if limit:
        monkeypatch.setenv("NVAE_MEMORY_LIMIT", limit)
    gray = images_u8[:, :1].expand(-1, 3, -1, -1)
    for batch, indices in zip(BatchSource(gray, CPU).batches(order), order, strict=True):
        assert torch.equal(batch, gray[indices])


def test_batches_can_be_of_different_sizes_and_empty(images_u8, small_limit):
    order = [torch.tensor([5]), torch.tensor([], dtype=torch.int64), torch.arange(40)]
    sizes = [len(batch) for batch in BatchSource(images_u8, CPU).batches(order)]
    assert sizes == [1, 0, 40]


# ------------------------------------------------------------------------------------------------------------ threads


def test_batches_take_few_indices_in_advance(images_u8, order, small_limit, new_threads):
    taken = []
    batches = BatchSource(images_u8, CPU).batches(taken.append(1) or indices for indices in order)
    assert taken == []
    next(batches)
    assert len(taken) == AHEAD + 1
    assert new_threads() <= THREADS
    batches.close()


def test_batches_errors_of_reading_are_raised_in_the_place_of_their_batch(images_u8, order, small_limit, new_threads):
    batches = BatchSource(images_u8, CPU).batches([*order[:3], torch.tensor([COUNT]), *order[3:]])
    for indices in order[:3]:
        assert torch.equal(next(batches), images_u8[indices])
    with pytest.raises(IndexError):
        next(batches)
    assert new_threads() == 0


def test_batches_errors_of_the_indices_reach_the_caller(images_u8, order, small_limit, new_threads):
    def indices():
        yield order[0]
        raise OSError("broken")

    with pytest.raises(OSError, match="broken"):
        list(BatchSource(images_u8, CPU).batches(indices()))
    assert new_threads() == 0


@pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
def test_batches_threads_end_with_the_iterator(images_u8, order, small_limit, error, new_threads):
    def work():
        for batch in BatchSource(images_u8, CPU).batches(order):
            assert len(batch) == 16
            if error:
                raise error
            return

    if error:
        with pytest.raises(error):
            work()
    else:
        work()
    assert new_threads() == 0


PROGRAM = """
import os, signal, sys, torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # also where the tests run in the background
from nvae.data.batches import BatchSource
source = BatchSource(torch.zeros(1000, 3, 8, 8, dtype=torch.uint8), torch.device("cpu"))
batches = source.batches(torch.arange(16) for _ in iter(int, 1))  # endless
for number, batch in enumerate(batches):
    if number == 5:
        print("reading", flush=True)
        if sys.argv[1] == "exit":
            sys.exit(3)
        os.kill(os.getpid(), signal.SIGINT)
"""


@pytest.mark.slow
@pytest.mark.parametrize(("how", "code"), [("exit", 3), ("interrupt", -2)])
def test_batches_never_hold_the_end_of_the_process(root, how, code):
    environment = os.environ | {"NVAE_MEMORY_LIMIT": "1e-6", "PYTHONPATH": str(root)}
    arguments = [sys.executable, "-c", PROGRAM, how]
    result = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=120)
    assert (result.returncode, result.stdout) == (code, "reading\n")


# ------------------------------------------------------------------------------------------------------ where to keep


def test_fits_on_a_cpu_up_to_the_memory_limit(images_u8, monkeypatch):
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", str(images_u8.numel() / 2**30))
    assert memory_limit() == images_u8.numel()
    assert fits(images_u8, CPU)
    assert not fits(torch.cat([images_u8, images_u8[:1]]), CPU)


@pytest.mark.parametrize(("factor", "resident"), [(1.01, True), (0.99, False), (None, False)])
def test_fits_on_an_accelerator_in_a_share_of_its_free_memory(images_u8, monkeypatch, factor, resident):
    free = None if factor is None else int(factor * images_u8.numel() / RESIDENT_SHARE)
    monkeypatch.setattr(batches_module, "available_bytes", lambda device: free)
    device = torch.device("meta")  # computes nothing, but has all rules of an accelerator
    assert BatchSource(images_u8, device).is_resident == resident
    batch = next(BatchSource(images_u8, device).batches([torch.arange(5)]))
    assert (batch.shape, batch.dtype, batch.device) == ((5, 3, 8, 8), torch.uint8, device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("share", [RESIDENT_SHARE, 0])
@pytest.mark.parametrize("keep", [in_memory, in_a_file])
def test_batches_on_a_gpu_match(images_u8, order, monkeypatch, tmp_path, share, keep):
    monkeypatch.setattr(batches_module, "RESIDENT_SHARE", share)
    device = torch.device("cuda:0")
    source = BatchSource(keep(images_u8, tmp_path), device)
    assert source.is_resident == (share > 0)
    batches = list(source.batches(order))  # all copies are under way before the first one is looked at
    for batch, indices in zip(batches, order, strict=True):
        assert batch.device == device
        assert torch.equal(batch.cpu(), images_u8[indices])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_batches_for_a_gpu_are_pinned(images_u8, monkeypatch):
    monkeypatch.setattr(batches_module, "RESIDENT_SHARE", 0)
    assert BatchSource(images_u8, torch.device("cuda:0"))._read(torch.arange(5)).is_pinned()
