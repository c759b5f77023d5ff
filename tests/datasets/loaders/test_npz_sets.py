import hashlib
import io
import sys
import zipfile

import numpy as np
import pytest
import torch

from nvae.data.sources import MEDMNIST_SETS
from nvae.schema import NAMED_DATASETS
from nvae.system.errors import UserError

COUNTS = {"train": 4, "val": 3, "test": 2}
ZENODO = "https://zenodo.org/records/10519652/files"


def arrays(shape):
    random = np.random.default_rng(0)
    return {f"{part}_images": random.integers(0, 256, (count, *shape), np.uint8) for part, count in COUNTS.items()}


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


# ----------------------------------------------------------------------------------------------------- the MedMNIST


@pytest.fixture
def write(set_folder):
    def write(file, content):
        set_folder.mkdir(exist_ok=True)
        (set_folder / file).write_bytes(content)

    return write


@pytest.mark.parametrize("name", MEDMNIST_SETS)
def test_medmnist_at_28_pixels_is_unchanged(write, load, name):
    channels = NAMED_DATASETS[name].channels
    images = arrays((28, 28) if channels == 1 else (28, 28, 3))
    write(f"{name}.npz", packed(**images))
    data = load(name, input_dimension=28, image_channels=channels)
    for part, key in (("training", "train"), ("validation", "val"), ("test", "test")):
        expected = torch.from_numpy(images[f"{key}_images"]).view(-1, 28, 28, channels).permute(0, 3, 1, 2)
        assert torch.equal(getattr(data, part), expected)


def test_medmnist_channels_are_those_of_the_model(write, load):
    gray, color = arrays((28, 28)), arrays((28, 28, 3))
    write("chestmnist.npz", packed(**gray))
    write("pathmnist.npz", packed(**color))
    expected = torch.from_numpy(gray["train_images"])
    assert torch.equal(load("chestmnist", input_dimension=28).training, torch.stack([expected] * 3, 1))
    luma = (color["train_images"] @ [0.299, 0.587, 0.114]).round()
    training = load("pathmnist", input_dimension=28, image_channels=1).training[:, 0]
    assert np.abs(training.numpy().astype(int) - luma).max() <= 1


@pytest.mark.parametrize(
    ("size", "file"), [(16, ""), (28, ""), (32, "_64"), (64, "_64"), (128, "_128"), (224, "_224"), (256, "_224")]
)
def test_medmnist_downloads_the_smallest_size_that_is_large_enough(load, medmnist, server, set_folder, size, file):
    side = int(file[1:] or 28)
    content = packed(**arrays((side, side)))
    url = f"{ZENODO}/bloodmnist{file}.npz?download=1"
    medmnist["bloodmnist"] = {f"url{file}": url, f"MD5{file}": hashlib.md5(content).hexdigest()}
    server.files[url] = content
    for _ in range(2):
        assert load("bloodmnist", input_dimension=size).training.shape == (4, 3, size, size)
    assert server.requests == [url]
    assert [path.name for path in set_folder.iterdir()] == [f"bloodmnist{file}.npz"]


def test_medmnist_validation_images_are_training_images(write, load):
    write("octmnist.npz", packed(**arrays((28, 28))))
    data = load("octmnist", {"validation_images": 1}, input_dimension=28)
    assert [len(part) for part in (data.training, data.validation, data.test)] == [3, 1, 2]


def test_medmnist_wrong_checksum_is_refused(load, medmnist, server, set_folder):
    url = f"{ZENODO}/bloodmnist_64.npz?download=1"
    medmnist["bloodmnist"] = {"url_64": url, "MD5_64": "0"}
    server.files[url] = packed(**arrays((64, 64)))
    with pytest.raises(UserError, match=r"bloodmnist_64\.npz"):
        load("bloodmnist")
    assert not set_folder.exists()


def test_medmnist_without_the_package_names_the_extra_and_the_address(load, set_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "medmnist.info", None)
    with pytest.raises(UserError, match=r"\[medmnist\].*retinamnist_64\.npz"):
        load("retinamnist")
    assert not set_folder.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"damaged",
        packed(train_images=np.zeros((2, 28, 28), np.uint8)),
        packed(**{f"{part}_images": np.zeros((2, 28, 28)) for part in COUNTS}),
        packed(**{f"{part}_images": np.zeros((2, 28), np.uint8) for part in COUNTS}),
        packed(**{f"{part}_images": np.array([{}], object) for part in COUNTS}),
    ],
)
def test_medmnist_damaged_file_is_refused(write, load, content):
    write("octmnist.npz", content)
    with pytest.raises(UserError, match=r"octmnist\.npz"):
        load("octmnist", input_dimension=28)


def test_medmnist_facts_are_those_of_the_package():
    package = pytest.importorskip("medmnist.info", reason="the extra 'medmnist' is not installed")
    assert set(MEDMNIST_SETS) == {name for name in package.INFO if "3d" not in name}
    for name in MEDMNIST_SETS:
        facts, info = NAMED_DATASETS[name], package.INFO[name]
        counts = {"train": facts.training, "val": facts.validation, "test": facts.test}
        assert (info["n_channels"], info["n_samples"], info["license"]) == (facts.channels, counts, facts.license)


# --------------------------------------------------------------------------------------- the downsampled ImageNets


@pytest.fixture
def rows():
    """Training images in the order of the batches, and validation images, each a row of 3 * 32 * 32 numbers."""
    random = np.random.default_rng(0)
    return random.integers(0, 256, (20, 3072), np.uint8), random.integers(0, 256, (3, 3072), np.uint8)


def batches(training):
    """Ten files of two images each."""
    return {f"train_data_batch_{i + 1}.npz": packed(data=training[2 * i : 2 * i + 2]) for i in range(10)}


@pytest.mark.parametrize("folders", [("", ""), ("Imagenet32_train_npz", "Imagenet32_val_npz")])
def test_imagenet32_at_32_pixels_is_unchanged(set_folder, load, rows, folders):
    training, validation = rows
    for folder, files in zip(folders, (batches(training), {"val_data.npz": packed(data=validation)}), strict=True):
        (set_folder / folder).mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            (set_folder / folder / name).write_bytes(content)
    data = load("imagenet32")
    assert torch.equal(data.training, torch.from_numpy(training).view(-1, 3, 32, 32))
    assert torch.equal(data.validation, torch.from_numpy(validation).view(-1, 3, 32, 32))
    assert data.test is None
    held_out = load("imagenet32", {"validation_images": 5})
    assert [len(part) for part in (held_out.training, held_out.validation, held_out.test)] == [15, 5, 3]


def test_imagenet64_unpacks_the_archives_of_the_publisher(write, load):
    images = np.random.default_rng(0).integers(0, 256, (20, 3 * 64**2), np.uint8)
    parts = list(batches(images).items())
    archives = {"train_part1": parts[:5], "train_part2": parts[5:], "val": [("val_data.npz", packed(data=images[:2]))]}
    for name, files in archives.items():
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for file, content in files:
                archive.writestr(file, content)
        write(f"Imagenet64_{name}_npz.zip", buffer.getvalue())
    data = load("imagenet64", input_dimension=64)
    assert torch.equal(data.training, torch.from_numpy(images).view(-1, 3, 64, 64))
    assert len(data.validation) == 2
    assert load("imagenet64", image_channels=1).training.shape == (20, 1, 32, 32)


def test_imagenet32_of_another_size_is_refused(write, load, rows):
    write("train_data_batch_1.npz", packed(data=rows[0][:, :768]))
    write("val_data.npz", packed(data=rows[1]))
    with pytest.raises(UserError, match=r"train_data_batch_1\.npz"):
        load("imagenet32")
