import gzip

import numpy as np
import pytest
import torch
import torchvision

from nvae.data.mnist import load_mnist
from nvae.errors import UserError


def idx(images):
    return np.array([2051, *images.shape], ">u4").tobytes() + images.tobytes()


@pytest.fixture
def images():
    random = np.random.default_rng(0)
    return {
        "train": random.integers(0, 256, (7, 28, 28), np.uint8),
        "t10k": random.integers(0, 256, (3, 28, 28), np.uint8),
    }


@pytest.fixture
def folder(tmp_path, images):
    for part, pixels in images.items():
        with gzip.open(tmp_path / f"{part}-images-idx3-ubyte.gz", "wb") as file:
            file.write(idx(pixels))
    return tmp_path


@pytest.fixture
def load(make_config):
    def load(folder, name="mnist", **changes):
        return load_mnist(
            make_config(**({"dataset": {"name": name, "path": str(folder)}, "image_channels": 1} | changes))
        )

    return load


def test_mnist_at_32_pixels_is_padded(folder, images, load):
    data = load(folder, input_dimension=32)
    assert data.training.shape == (7, 1, 32, 32)
    assert torch.equal(data.training[:, 0, 2:-2, 2:-2], torch.from_numpy(images["train"]))
    assert torch.equal(data.validation[:, 0, 2:-2, 2:-2], torch.from_numpy(images["t10k"]))
    assert data.training.sum() == int(images["train"].sum(dtype=np.int64))


def test_mnist_at_28_pixels_is_unchanged(folder, images, load):
    data = load(folder, input_dimension=28)
    assert torch.equal(data.training[:, 0], torch.from_numpy(images["train"]))


def test_mnist_other_sizes_are_resampled_and_channels_repeated(folder, images, load):
    data = load(folder, input_dimension=64, image_channels=3)
    assert data.training.shape == (7, 3, 64, 64)
    assert torch.equal(data.training[:, 0], data.training[:, 2])
    assert data.training.float().mean().item() == pytest.approx(images["train"].mean(), rel=0.02)


def test_mnist_reads_uncompressed_files(tmp_path, images, load):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, pixels in images.items():
        (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))
    assert load(tmp_path, input_dimension=28).training.shape == (7, 1, 28, 28)


def test_mnist_validation_images_are_training_images(folder, images, load):
    dataset = {"name": "mnist", "path": str(folder), "validation_images": 2}
    data = load(folder, input_dimension=28, dataset=dataset, image_channels=3)
    assert torch.equal(data.test[:, 1], torch.from_numpy(images["t10k"]))
    kept = torch.cat([data.training, data.validation])
    assert (len(data.training), len(data.validation)) == (5, 2)
    assert {image.tobytes() for image in kept[:, 1].numpy()} == {image.tobytes() for image in images["train"]}


def test_mnist_is_downloaded(tmp_path, images, load, monkeypatch):
    def download(root, download):
        assert download
        raw = root / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for part, pixels in images.items():
            (raw / f"{part}-images-idx3-ubyte").write_bytes(idx(pixels))

    monkeypatch.setattr(torchvision.datasets, "FashionMNIST", download)
    assert len(load(tmp_path, "fashion_mnist", input_dimension=28).validation) == 3


def test_mnist_failed_download_is_a_user_error(tmp_path, load, monkeypatch):
    def offline(self, *args, **kwargs):
        raise RuntimeError("Error downloading train-images-idx3-ubyte.gz")

    monkeypatch.setattr(torchvision.datasets.MNIST, "download", offline)
    with pytest.raises(UserError, match="Error downloading.*t10k"):
        load(tmp_path)


@pytest.mark.parametrize("damage", [lambda b: b[:-50], lambda b: b"hello" + b, lambda b: b""])
def test_mnist_damaged_file_is_refused(folder, load, damage):
    file = folder / "train-images-idx3-ubyte.gz"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match="train-images"):
        load(folder)


def test_mnist_reads_the_real_files(root, load):
    folder = root.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(f"the real MNIST files are missing: {folder}")
    for name in ("mnist", "fashion_mnist"):
        data = load(folder / name, name, input_dimension=32)
        assert (len(data.training), len(data.validation)) == (60_000, 10_000)
