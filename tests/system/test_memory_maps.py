import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

from nvae.system import memory_maps
from nvae.system.memory_maps import chunks, release_pages, releasing, with_release

pytestmark = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
SHAPE = (2048, 3, 64, 64)  # 24 MiB
SLACK = 2**23  # around a page that is read, the system maps others: up to 2 MiB at once


def test_release_pages_gives_back_memory_and_keeps_values(tmp_path, resident):
    expected = np.random.default_rng(0).integers(0, 256, SHAPE, np.uint8)
    expected.tofile(tmp_path / "a")
    array = with_release(np.memmap(tmp_path / "a", np.uint8, "c", shape=SHAPE))
    for _ in range(2):
        assert np.array_equal(array, expected)
        assert resident(tmp_path / "a") == array.nbytes
        release_pages()
        assert resident(tmp_path / "a") == 0


def test_release_pages_keeps_what_was_written_to_the_file(tmp_path, resident):
    array = with_release(np.memmap(tmp_path / "a", np.uint8, "w+", shape=SHAPE))
    array[:] = 7
    release_pages()
    assert resident(tmp_path / "a") == 0
    assert (array == 7).all()


def test_chunks_need_the_memory_of_one_chunk(tmp_path, resident):
    np.ones(SHAPE, np.uint8).tofile(tmp_path / "a")
    images = torch.from_numpy(with_release(np.memmap(tmp_path / "a", np.uint8, "c", shape=SHAPE)))
    most = total = 0
    for chunk in chunks(images, 256):
        total += int(chunk.sum())
        most = max(most, resident(tmp_path / "a"))
    assert total == images.numel()
    assert 0 < most <= 256 * images[0].numel() + SLACK
    assert resident(tmp_path / "a") == 0


def test_releasing_yields_all_items_and_releases_after_some(monkeypatch):
    calls = []
    monkeypatch.setattr(memory_maps, "release_pages", lambda: calls.append(1))
    assert list(releasing(range(10), 4)) == list(range(10))
    assert len(calls) == 2


def test_with_release_does_not_keep_an_array_alive(tmp_path, resident):
    array = with_release(np.memmap(tmp_path / "a", np.uint8, "w+", shape=SHAPE))
    assert any(isinstance(each, mmap.mmap) and len(each) == array.nbytes for each in memory_maps._maps)
    count = len(memory_maps._maps)
    del array
    assert len(memory_maps._maps) == count - 1


def test_release_pages_without_madvise_does_nothing(tmp_path, monkeypatch, resident):
    array = with_release(np.memmap(tmp_path / "a", np.uint8, "w+", shape=SHAPE))
    array[:] = 7
    monkeypatch.delattr(mmap, "MADV_DONTNEED")
    release_pages()
    assert resident(tmp_path / "a") > 0
