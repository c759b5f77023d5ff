"""CIFAR-10's files with few images; torchvision's checksums are replaced by those of the files."""

import hashlib
import pickle
import shutil
import tarfile
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import CIFAR10, cifar

from nvae.data.cifar10 import load_cifar10
from nvae.data.registry import load_data
from nvae.errors import UserError

TRAINING = [f"data_batch_{i}" for i in range(1, 6)]
download_and_extract = cifar.download_and_extract_archive


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def images():
    """uint8 (N, 3, 32, 32): ten for training, three for validation; resampling never leaves the range of a byte."""
    random = np.random.default_rng(0)
    counts = {"train": 10, "test": 3}
    return {part: random.integers(64, 192, (count, 3, 32, 32), np.uint8) for part, count in counts.items()}


@pytest.fixture(autouse=True)
def original(tmp_path, images, monkeypatch):
    """A folder with the archive and its extracted files, accepted by torchvision; the network is off."""
    folder = tmp_path / "original"
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    for name, pixels in [*zip(TRAINING, np.split(images["train"], 5), strict=True), ("test_batch", images["test"])]:
        rows = pixels.reshape(len(pixels), 3072)  # all of red, then green, then blue
        (batches / name).write_bytes(pickle.dumps({"data": rows, "labels": [0] * len(rows)}))
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": ["aeroplane"]}))
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in TRAINING])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batches / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(batches / "batches.meta")})
    monkeypatch.setattr(CIFAR10, "tgz_md5", md5(archive))

    def offline(*args, **kwargs):
        raise URLError("no route to host")

    monkeypatch.setattr("urllib.request.urlopen", offline)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A folder with the extracted files only."""
    shutil.copytree(original / CIFAR10.base_folder, tmp_path / "set" / CIFAR10.base_folder)
    return tmp_path / "set"


@pytest.fixture
def load(make_config):
    def load(folder, load=load_cifar10, **changes):
        return load(
            make_config(**({"dataset": {"name": "cifar10", "path": str(folder)}, "input_dimension": 32} | changes))
        )

    return load


@pytest.mark.parametrize("loader", [load_cifar10, load_data])
def test_cifar10_at_32_pixels_is_unchanged(folder, images, load, loader):
    data = load(folder, loader)
    assert data.training.dtype == torch.uint8
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))
    assert data.training.is_contiguous()  # fast to index


def test_cifar10_validation_images_are_training_images(folder, images, load):
    data = load(folder, dataset={"name": "cifar10", "path": str(folder), "validation_images": 4})
    assert torch.equal(data.test, torch.from_numpy(images["test"]))
    kept = torch.cat([data.training, data.validation]).numpy()
    assert (len(data.training), len(data.validation)) == (6, 4)
    assert {image.tobytes() for image in kept} == {image.tobytes() for image in images["train"]}


@pytest.mark.parametrize("size", [16, 64])
def test_cifar10_other_sizes_match_pillow(folder, images, load, size):
    data = load(folder, input_dimension=size)
    for part, loaded in (("train", data.training), ("test", data.validation)):
        for image, result in zip(images[part], loaded, strict=True):
            picture = Image.fromarray(image.transpose(1, 2, 0))
            expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            assert np.abs(result.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [16, 32])
def test_cifar10_one_channel_is_the_luma(folder, images, load, size):
    data = load(folder, image_channels=1, input_dimension=size)
    assert data.training.shape == (10, 1, size, size)
    for image, result in zip(images["test"], data.validation, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        assert np.abs(result[0].numpy().astype(int) - expected).max() <= 2


def test_cifar10_archive_is_extracted(original, images, load, tmp_path):
    folder = tmp_path / "archive"
    folder.mkdir()
    shutil.copy(original / CIFAR10.filename, folder)
    assert torch.equal(load(folder).validation, torch.from_numpy(images["test"]))


def test_cifar10_is_downloaded_once(original, images, load, tmp_path, monkeypatch):
    urls = []

    def download(url, root, filename, md5):
        urls.append(url)
        shutil.copytree(original, root)
        download_and_extract(url, root, filename=filename, md5=md5)

    monkeypatch.setattr(cifar, "download_and_extract_archive", download)
    for _ in range(2):
        assert torch.equal(load(tmp_path / "new").training, torch.from_numpy(images["train"]))
    assert urls == [CIFAR10.url]


def test_cifar10_failed_download_is_a_user_error(load, tmp_path):
    with pytest.raises(UserError, match=f"new.*no route.*{CIFAR10.filename}"):
        load(tmp_path / "new")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch"])
def test_cifar10_damaged_batch_is_extracted_again_or_refused(original, folder, images, load, name):
    batch = folder / CIFAR10.base_folder / name
    batch.write_bytes(batch.read_bytes()[:-50])
    with pytest.raises(UserError, match="no route"):
        load(folder)
    shutil.copy(original / CIFAR10.filename, folder)
    data = load(folder)
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))


def test_cifar10_without_metadata_is_refused(folder, load):
    (folder / CIFAR10.base_folder / "batches.meta").unlink()
    with pytest.raises(UserError, match=f"{CIFAR10.base_folder}.*set"):
        load(folder)


def test_cifar10_damaged_download_is_refused(load, tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "download_and_extract_archive", lambda url, root, filename, md5: None)
    with pytest.raises(UserError, match=f"{CIFAR10.base_folder}.*new"):
        load(tmp_path / "new")
