"""Data sets above the memory limit: a training run, and the memory of passes over all images."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data import batches as batches_module
from nvae.data.batches import BatchSource
from nvae.data.images import Data, resize, select, to_grayscale
from nvae.data.pictures import decoding as pictures_module
from nvae.data.registry import load_data
from nvae.evaluation import likelihood as likelihood_module
from nvae.evaluation.likelihood import evaluate
from nvae.models.dvp.context import DCTContext
from nvae.system import memory_maps
from nvae.system.memory_maps import release_pages, with_release
from nvae.training.loop import train
from nvae.training.trainer import Trainer


def tree(folder):
    """Everything about a folder that a program could change."""
    paths = [folder, *folder.rglob("*")]
    stats = [(path.stat().st_mtime_ns, path.stat().st_ctime_ns, path.stat().st_mode) for path in paths]
    return {str(p): (s, p.read_bytes() if p.is_file() else None) for p, s in zip(paths, stats, strict=True)}


# ---------------------------------------------------------------------------------------------------- a training run


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_training_from_the_cache_equals_training_from_memory(cache, picture_config, pictures, tmp_path, monkeypatch):
    """The same weights; and the pictures stay as they are, also in a folder without write access."""
    weights = {}
    pictures.chmod(0o555)
    try:
        for kept in ("cache", "memory"):
            if kept == "memory":
                monkeypatch.delenv("NVAE_MEMORY_LIMIT")
                shutil.rmtree(cache)
            before = tree(pictures)
            path = train(picture_config, kept, "cpu", folder=tmp_path, on_event=id, progress=False)
            assert tree(pictures) == before
            assert cache.exists() == (kept == "cache")
            weights[kept] = torch.load(path, weights_only=True)["weights"]
    finally:
        pictures.chmod(0o755)
    assert weights["cache"].keys() == weights["memory"].keys()
    assert all(torch.equal(weights["memory"][name], tensor) for name, tensor in weights["cache"].items())


# --------------------------------------------------------------------------------------- memory of passes over the set


@pytest.fixture
def large(tmp_path, resident, monkeypatch):
    """A data set of 24 MiB in a file, and a list that gets the file's bytes in memory before each release."""
    shape, file = (2048, 3, 64, 64), tmp_path / "large"
    np.random.default_rng(0).integers(0, 256, shape, np.uint8).tofile(file)
    array = with_release(np.memmap(file, np.uint8, "c", shape=shape))
    memory = []

    class Map:
        def madvise(self, advice):
            memory.append(resident(file))
            array.base.madvise(advice)

    monkeypatch.setattr(memory_maps, "_maps", [Map()])
    images = torch.from_numpy(array)
    return Data(images, images[:100]), memory


@pytest.fixture
def dct(make_config):
    config = make_config(family="dvp", input_dimension=64, latents_per_scale=[1, 1], latent_size=1, context_size=3)
    return DCTContext(config)


PASSES = {
    "fingerprint": lambda data, dct: data.fingerprint,
    "calibrate": lambda data, dct: dct.calibrate(data.training),
    "gray": lambda data, dct: to_grayscale(data.training),
    "resize": lambda data, dct: resize(data.training, 8),
    "select": lambda data, dct: select(data.training, torch.arange(0, 2048, 2)),
    "to a device": lambda data, dct: BatchSource(data.training, torch.device("meta")),
}


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux")
@pytest.mark.parametrize("name", PASSES)
def test_passes_over_a_large_set_need_little_memory(large, dct, name):
    data, memory = large
    PASSES[name](data, dct)
    assert len(memory) >= 4
    assert max(memory) < data.training.numel() / 2  # chunks of 3 MiB, and what the system maps around a page


def test_batches_and_evaluation_release_pages_after_every_batch(picture_config, make_model, monkeypatch):
    calls = []
    images = torch.zeros(40, 3, 8, 8, dtype=torch.uint8)
    for module in (batches_module, likelihood_module):
        monkeypatch.setattr(module, "release_pages", lambda: calls.append(1))
    evaluate(make_model(), images, batch_size=8, samples=2)
    assert len(calls) == 5
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", "1e-9")
    trainer = Trainer(picture_config, Data(images, images), torch.device("cpu"))
    for images_u8 in trainer.batches():
        trainer.step(images_u8)
    assert len(calls) == 10


@pytest.mark.slow
def test_decoding_to_the_cache_needs_little_memory(cache, make_config, tmp_path, resident, monkeypatch):
    """The file is as large as all images together, and most of it is not in memory at any time."""
    folder, memory = tmp_path / "many", []
    folder.mkdir()
    for i in range(100):
        Image.new("RGB", (256, 256), (i, 2 * i, 3)).save(folder / f"{i}.bmp")
    (folder / "broken.bmp").touch()

    def release():
        (file,) = cache.glob("*.npy.*")
        memory.append(resident(file))
        release_pages()

    monkeypatch.setattr(memory_maps, "release_pages", release)
    monkeypatch.setattr(pictures_module, "CHUNK", 10)
    config = make_config(dataset={"name": "folder", "path": str(folder)}, input_dimension=256)
    data = load_data(config)
    assert len(data.training) + len(data.validation) == 100
    assert len(memory) == 20  # while decoding, and while the images move to the front
    assert max(memory) < 100 * 3 * 256**2 / 2
