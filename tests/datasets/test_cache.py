"""The cache of decoded images and arrays above the memory limit: the limit, several programs, removal, full disks."""

import errno
import os
import shutil
import tempfile
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvae.data import cache as cache_module
from nvae.data.cache import MEMORY_LIMIT, MEMORY_SHARE, cache_folder, memory_limit, new_images
from nvae.data.images import Data, resize, select, to_grayscale
from nvae.data.registry import load_data
from nvae.evaluation.quality.extractors.weights import weights_folder
from nvae.system.errors import UserError
from nvae.system.files import root_folder
from nvae.system.memory_maps import release_pages
from nvae.training.trainer import Trainer


def same(one, other):
    return torch.equal(one.training, other.training) and torch.equal(one.validation, other.validation)


# ---------------------------------------------------------------------------------------------------------- the folder


@pytest.mark.skipif(os.name == "nt", reason="Windows has no user id without a name")
def test_folders_of_a_user_without_home_are_outside_of_the_current_folder(monkeypatch, tmp_path):
    """An unknown user id in a container: neither HOME nor an entry in the list of users."""
    pwd = pytest.importorskip("pwd")

    def unknown(uid):
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for variable in ("HOME", "NVAE_CACHE", "XDG_CACHE_HOME", "TORCH_HOME"):
        monkeypatch.delenv(variable, raising=False)
    home = tmp_path / f"home_{os.getuid()}"
    assert cache_folder() == home / ".cache" / "nvae"
    assert weights_folder() == home / ".cache" / "torch" / "hub" / "checkpoints"
    for variable, folder in (("NVAE_CACHE", cache_folder), ("NVAE_ROOT", root_folder)):
        monkeypatch.setenv(variable, "~/images")
        with pytest.raises(UserError, match="~/images"):
            folder()


# ---------------------------------------------------------------------------------------------------- the memory limit


@pytest.mark.parametrize(("value", "expected"), [("2", 2**31), ("0.5", 2**29), ("1e-6", 1073)])
def test_memory_limit_is_the_variable_in_gib(monkeypatch, value, expected):
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", value)
    assert memory_limit() == expected


@pytest.mark.parametrize("memory", [None, 2**40, 2**30])
def test_memory_limit_of_a_small_machine_is_a_share_of_its_memory(monkeypatch, memory):
    monkeypatch.delenv("NVAE_MEMORY_LIMIT", raising=False)
    monkeypatch.setattr(cache_module, "available_bytes", lambda device: memory)
    assert memory_limit() == (MEMORY_SHARE * memory if memory == 2**30 else MEMORY_LIMIT)


@pytest.mark.parametrize("value", ["many", "-1", "0", "nan", "inf", "4 GB"])
def test_memory_limit_of_another_value_is_refused(monkeypatch, value):
    monkeypatch.setenv("NVAE_MEMORY_LIMIT", value)
    with pytest.raises(UserError, match=f"NVAE_MEMORY_LIMIT.*{value}"):
        memory_limit()


# ------------------------------------------------------------------------------------------ arrays above the limit


def test_new_images_above_the_limit_are_in_a_file_without_a_name(cache):
    images = new_images(100, 3, 8, 8)
    assert (images.shape, images.dtype) == ((100, 3, 8, 8), torch.uint8)
    images.copy_(torch.arange(100, dtype=torch.uint8)[:, None, None, None])
    release_pages()
    assert images[:, 2, 7, 7].tolist() == list(range(100))
    assert list(cache.iterdir()) == []
    del images
    new_images(1, 3, 8, 8)
    shutil.rmtree(cache)
    assert new_images(1, 3, 8, 8).shape == (1, 3, 8, 8)
    assert not cache.exists()


@pytest.mark.parametrize(
    "change", [to_grayscale, lambda x: resize(x, 12), lambda x: select(x, torch.arange(5, 500, 3))]
)
def test_changes_of_images_are_the_same_above_the_limit(cache, change, monkeypatch):
    images = torch.randint(0, 256, (600, 3, 8, 8), dtype=torch.uint8)
    above = change(images)
    assert cache.exists()
    monkeypatch.delenv("NVAE_MEMORY_LIMIT")
    assert torch.equal(above, change(images))


@pytest.mark.parametrize("layout", ["one array", "two arrays", "npy"])
def test_npz_above_the_limit_is_the_same(cache, make_config, tmp_path, monkeypatch, layout):
    images = np.random.default_rng(0).integers(0, 256, (500, 10, 10, 3), np.uint8)
    path = tmp_path / ("a.npy" if layout == "npy" else "a.npz")
    if layout == "npy":
        np.save(path, images)
    else:
        np.savez(path, **({"x": images} if layout == "one array" else {"x_train": images, "x_test": images[:50]}))
    config = make_config(dataset={"name": "npz", "path": str(path)})
    above = load_data(config)
    assert list(cache.iterdir()) == []
    monkeypatch.delenv("NVAE_MEMORY_LIMIT")
    assert same(above, load_data(config))


def write_imagenet(folder, order="C"):
    random = np.random.default_rng(0)
    for name in [*(f"train_data_batch_{i}" for i in range(1, 11)), "val_data"]:
        np.savez(folder / f"{name}.npz", data=np.asarray(random.integers(0, 256, (3, 3072), np.uint8), order=order))


@pytest.mark.parametrize("keys", [{}, {"validation_images": 4}])
@pytest.mark.parametrize("size", [8, 32])
def test_imagenet32_above_the_limit_is_the_same(cache, make_config, tmp_path, monkeypatch, keys, size):
    write_imagenet(tmp_path)
    config = make_config(dataset={"name": "imagenet32", "path": str(tmp_path)} | keys, input_dimension=size)
    above = load_data(config)
    assert list(cache.iterdir()) == []
    monkeypatch.delenv("NVAE_MEMORY_LIMIT")
    assert same(above, load_data(config))


def test_imagenet32_in_fortran_order_is_the_same(make_config, tmp_path):
    config = make_config(dataset={"name": "imagenet32", "path": str(tmp_path)}, input_dimension=32)
    write_imagenet(tmp_path)
    expected = load_data(config)
    write_imagenet(tmp_path, "F")
    assert same(expected, load_data(config))


@pytest.mark.parametrize("damage", ["bytes", "shape", "cut"])
def test_imagenet32_damaged_file_is_refused(make_config, tmp_path, damage):
    write_imagenet(tmp_path)
    file = tmp_path / "train_data_batch_7.npz"
    content = file.read_bytes()
    if damage == "bytes":
        middle = len(content) // 2
        file.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif damage == "cut":
        file.write_bytes(content[: len(content) // 2])
    else:
        with zipfile.ZipFile(file) as archive:
            array = archive.read("data.npy").replace(b"(3, 3072)", b"(9, 3072)")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("data.npy", array)
    with pytest.raises(UserError, match=r"train_data_batch_7\.npz"):
        load_data(make_config(dataset={"name": "imagenet32", "path": str(tmp_path)}, input_dimension=32))


@pytest.mark.parametrize("what", ["disk_usage", "fallocate", "folder"])
def test_new_images_without_space_are_refused(cache, monkeypatch, what):
    def full(*arguments):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    if what == "disk_usage":
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=2**10))
    elif what == "fallocate":
        monkeypatch.setattr(os, "posix_fallocate", full)
    else:
        cache.touch()  # not a folder
    with pytest.raises(UserError, match="NVAE_CACHE") as raised:
        new_images(1000, 3, 8, 8)
    assert raised.value.__cause__.disk_full == (what != "folder")


def test_new_images_need_no_fallocate(cache, monkeypatch):
    monkeypatch.delattr(os, "posix_fallocate")
    assert new_images(1000, 3, 8, 8).fill_(9).unique().tolist() == [9]


# ------------------------------------------------------------------------------------- several programs, removed files


PROGRAM = """
import sys
from nvae.config import load_config
from nvae.data.registry import load_data
config = load_config("nvae_small", ["input_dimension=16", "dataset.name=folder", f"dataset.path={sys.argv[1]}"])
print("ready", flush=True)
sys.stdin.readline()
print(load_data(config).fingerprint)
"""


@pytest.mark.slow
def test_two_programs_decode_the_same_pictures_at_once(cache, pictures, start_process):
    programs = [start_process("-c", PROGRAM, pictures) for _ in range(2)]
    for program in programs:
        assert program.stdout.readline() == "ready\n"
    for program in programs:
        program.stdin.write("go\n")
        program.stdin.flush()
    results = [program.communicate(timeout=300)[0] for program in programs]
    assert [program.returncode for program in programs] == [0, 0]
    assert results[0] == results[1] != ""
    assert sorted(path.suffix for path in cache.iterdir()) == [".facts", ".npy"]


def test_another_program_writes_the_same_images_meanwhile(cache, picture_config, monkeypatch):
    """The second writer starts after the first one has decoded all, and ends before it."""
    flush, writers = np.memmap.flush, []

    def flush_late(array):
        if not writers:
            writers.append(1)
            writers.append(load_data(picture_config))
        flush(array)

    monkeypatch.setattr(np.memmap, "flush", flush_late)
    first = load_data(picture_config)
    assert same(first, writers[1])
    assert len(list(cache.iterdir())) == 2
    assert same(first, load_data(picture_config))


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_cache_in_use_is_deleted_or_replaced(cache, picture_config, pictures, how):
    data = load_data(picture_config)
    expected = Data(data.training.clone(), data.validation.clone())
    if how == "deleted":
        shutil.rmtree(cache)
    else:
        (pictures / "7.png").unlink()
        load_data(picture_config)
        assert len(list(cache.glob("*.npy"))) == 1
    release_pages()
    assert same(data, expected)
    trainer = Trainer(picture_config, data, torch.device("cpu"))
    assert torch.equal(next(trainer.batches()), expected.training[trainer.order()[:8]])
