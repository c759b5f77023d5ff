"""cifar10, cifar100, svhn and stl10 with few images; torchvision's checksums are replaced by those of the files."""

import hashlib
import pickle
import shutil
import sys
import tarfile

import numpy as np
import pytest
import torch
import torchvision.datasets
from PIL import Image
from scipy.io import savemat
from torchvision.datasets import CIFAR10, CIFAR100, STL10, SVHN

from nvae.system.errors import UserError

TRAINING = [f"data_batch_{i}" for i in range(1, 6)]


def md5(file):
    return hashlib.md5(file.read_bytes()).hexdigest()


@pytest.fixture
def images():
    """uint8 (N, 3, 32, 32): ten for training, three for validation; resampling never leaves the range of a byte."""
    random = np.random.default_rng(0)
    counts = {"train": 10, "test": 3}
    return {part: random.integers(64, 192, (count, 3, 32, 32), np.uint8) for part, count in counts.items()}


@pytest.fixture
def original(tmp_path, images, monkeypatch, accept):
    """A folder with the archive of cifar10 and its extracted files, accepted by torchvision."""
    folder = tmp_path / "original"
    batches = folder / CIFAR10.base_folder
    batches.mkdir(parents=True)
    for name, pixels in [*zip(TRAINING, np.split(images["train"], 5), strict=True), ("test_batch", images["test"])]:
        write_batch(batches / name, pixels, "labels")
    (batches / "batches.meta").write_bytes(pickle.dumps({"label_names": ["aeroplane"]}))
    archive = folder / CIFAR10.filename
    with tarfile.open(archive, "w:gz") as file:
        file.add(batches, CIFAR10.base_folder)
    monkeypatch.setattr(CIFAR10, "train_list", [[name, md5(batches / name)] for name in TRAINING])
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", md5(batches / "test_batch")]])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": md5(batches / "batches.meta")})
    accept(md5(archive))
    return folder


def write_batch(file, pixels, labels):
    rows = pixels.reshape(len(pixels), 3072)  # all of red, then green, then blue
    file.write_bytes(pickle.dumps({"data": rows, labels: [0] * len(rows)}))


@pytest.fixture
def folder(original, set_folder):
    """The folder of the data set, with the extracted files of cifar10 only."""
    shutil.copytree(original / CIFAR10.base_folder, set_folder / CIFAR10.base_folder)
    return set_folder


def test_cifar10_at_32_pixels_is_unchanged(folder, images, load):
    data = load("cifar10")
    assert data.training.dtype == torch.uint8
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))
    assert data.training.is_contiguous()  # fast to index


def test_cifar10_validation_images_are_training_images(folder, images, load):
    data = load("cifar10", {"validation_images": 4})
    assert torch.equal(data.test, torch.from_numpy(images["test"]))
    kept = torch.cat([data.training, data.validation]).numpy()
    assert (len(data.training), len(data.validation)) == (6, 4)
    assert {image.tobytes() for image in kept} == {image.tobytes() for image in images["train"]}


@pytest.mark.parametrize("size", [16, 64])
def test_cifar10_other_sizes_match_pillow(folder, images, load, size):
    data = load("cifar10", input_dimension=size)
    for part, loaded in (("train", data.training), ("test", data.validation)):
        for image, result in zip(images[part], loaded, strict=True):
            picture = Image.fromarray(image.transpose(1, 2, 0))
            expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC)).transpose(2, 0, 1)
            assert np.abs(result.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("size", [16, 32])
def test_cifar10_one_channel_is_the_luma(folder, images, load, size):
    data = load("cifar10", image_channels=1, input_dimension=size)
    assert data.training.shape == (10, 1, size, size)
    for image, result in zip(images["test"], data.validation, strict=True):
        picture = Image.fromarray(image.transpose(1, 2, 0)).convert("L")
        expected = np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC))
        assert np.abs(result[0].numpy().astype(int) - expected).max() <= 2


def test_cifar10_archive_is_extracted(original, images, load, set_folder):
    set_folder.mkdir()
    shutil.copy(original / CIFAR10.filename, set_folder)
    assert torch.equal(load("cifar10").validation, torch.from_numpy(images["test"]))


def test_cifar10_is_downloaded_once(original, images, load, server):
    server.files[CIFAR10.url] = (original / CIFAR10.filename).read_bytes()
    for _ in range(2):
        assert torch.equal(load("cifar10").training, torch.from_numpy(images["train"]))
    assert server.requests == [CIFAR10.url]


def test_cifar10_failed_download_is_a_user_error(load):
    with pytest.raises(UserError, match=f"set.*no route.*{CIFAR10.filename}"):
        load("cifar10")


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", [lambda file: file.write_bytes(file.read_bytes()[:-5]), lambda file: file.unlink()])
def test_cifar10_damaged_batch_is_extracted_again_or_refused(original, folder, images, load, name, damage):
    damage(folder / CIFAR10.base_folder / name)
    with pytest.raises(UserError, match="no route"):
        load("cifar10")
    shutil.copy(original / CIFAR10.filename, folder)
    data = load("cifar10")
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))


def test_cifar10_that_stays_damaged_is_refused(original, folder, load, server, monkeypatch):
    server.files[CIFAR10.url] = (original / CIFAR10.filename).read_bytes()
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", "another checksum"]])
    with pytest.raises(UserError, match="cifar10.*set.*damaged"):
        load("cifar10")
    assert server.requests == [CIFAR10.url]


def test_cifar10_reads_folders_of_pictures(set_folder, images, load):
    for part, pixels in images.items():
        for i, image in enumerate(pixels):
            file = set_folder / part / f"class{i % 2}" / f"{i:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(file)
    data = load("cifar10")
    by_path = np.concatenate([images["train"][::2], images["train"][1::2]])
    assert torch.equal(data.training, torch.from_numpy(by_path))
    assert len(data.validation) == 3
    (set_folder / "test" / "class0" / "00.png").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"00\.png"):
        load("cifar10")


def test_cifar10_reads_the_real_sample(root, load):
    folder = root.parent / "shared" / "data" / "cifar10_sample"
    if not folder.is_dir():
        pytest.skip(f"the sample of CIFAR-10 is missing: {folder}")
    data = load("cifar10", {"path": str(folder)})
    assert (data.training.shape, len(data.validation)) == ((5_000, 3, 32, 32), 1_000)


# -------------------------------------------------------------------------------------- cifar100, svhn and stl10


@pytest.fixture
def cifar100(set_folder, images, monkeypatch):
    batches = set_folder / CIFAR100.base_folder
    batches.mkdir(parents=True)
    for part, pixels in images.items():
        write_batch(batches / part, pixels, "fine_labels")
        monkeypatch.setattr(CIFAR100, f"{part}_list", [[part, md5(batches / part)]])
    (batches / "meta").write_bytes(pickle.dumps({"fine_label_names": ["apple"]}))
    monkeypatch.setattr(CIFAR100, "meta", CIFAR100.meta | {"md5": md5(batches / "meta")})


def test_cifar100_at_32_pixels_is_unchanged(cifar100, images, load):
    data = load("cifar100")
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))


@pytest.fixture
def svhn(set_folder, images, monkeypatch):
    set_folder.mkdir()
    splits = {}
    for part, pixels in (images | {"extra": images["train"][:4] + 1}).items():
        file = set_folder / f"{part}_32x32.mat"
        savemat(file, {"X": pixels.transpose(2, 3, 1, 0), "y": np.ones((len(pixels), 1), np.uint8)})
        splits[part] = [SVHN.split_list[part][0], file.name, md5(file)]
    monkeypatch.setattr(SVHN, "split_list", splits)


def test_svhn_at_32_pixels_is_unchanged(svhn, images, load):
    data = load("svhn")
    assert torch.equal(data.training, torch.from_numpy(images["train"]))
    assert torch.equal(data.validation, torch.from_numpy(images["test"]))


def test_svhn_extra_images_are_for_training(svhn, images, load, set_folder):
    extra = torch.from_numpy(images["train"][:4] + 1)
    data = load("svhn", {"extra": True})
    assert torch.equal(data.training, torch.cat([torch.from_numpy(images["train"]), extra]))
    (set_folder / "extra_32x32.mat").unlink()
    with pytest.raises(UserError, match=r"extra_32x32\.mat"):
        load("svhn", {"extra": True})
    assert len(load("svhn").training) == 10


def test_svhn_damaged_file_is_refused(svhn, load, set_folder):
    (set_folder / "test_32x32.mat").write_bytes(b"damaged")
    with pytest.raises(UserError, match=r"test_32x32\.mat|train_32x32\.mat"):
        load("svhn")


def test_svhn_without_scipy_names_the_extra(load, set_folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UserError, match=r"\[svhn\]"):
        load("svhn")
    assert not set_folder.exists()


@pytest.fixture
def stl10(set_folder, monkeypatch):
    """uint8 (N, 3, 96, 96) of the parts; the file holds columns."""
    random = np.random.default_rng(0)
    counts = {"train": 3, "unlabeled": 4, "test": 2}
    parts = {part: random.integers(0, 256, (count, 3, 96, 96), np.uint8) for part, count in counts.items()}
    folder = set_folder / STL10.base_folder
    folder.mkdir(parents=True)
    for part, pixels in parts.items():
        (folder / f"{part}_X.bin").write_bytes(pixels.swapaxes(2, 3).tobytes())
        (folder / f"{part}_y.bin").write_bytes(bytes(len(pixels)))
    names = {"train_list": ["train_X.bin", "train_y.bin", "unlabeled_X.bin"], "test_list": ["test_X.bin", "test_y.bin"]}
    for key, files in names.items():
        monkeypatch.setattr(STL10, key, [[file, md5(folder / file)] for file in files])
    return parts


def test_stl10_trains_on_labeled_and_unlabeled_images(stl10, load):
    data = load("stl10", input_dimension=96)
    training = np.concatenate([stl10["train"], stl10["unlabeled"]])
    assert torch.equal(data.training, torch.from_numpy(training))
    assert torch.equal(data.validation, torch.from_numpy(stl10["test"]))


def test_stl10_is_resized(stl10, load):
    data = load("stl10", input_dimension=64, image_channels=1)
    assert data.training.shape == (7, 1, 64, 64)


@pytest.mark.parametrize("folder", ["", "archive", "archive/STL 10/binary"])
def test_arrays_are_found_in_any_folder(set_folder, stl10, load, folder):
    elsewhere = set_folder / folder / "stl10"
    elsewhere.parent.mkdir(parents=True, exist_ok=True)
    (set_folder / STL10.base_folder).rename(elsewhere)
    assert torch.equal(load("stl10", input_dimension=96).validation, torch.from_numpy(stl10["test"]))


# ------------------------------------------------------------------------------------------------------ the requests


@pytest.mark.parametrize(
    ("name", "keys", "class_name", "expected"),
    [
        ("cifar10", {}, "CIFAR10", [True, False]),
        ("cifar100", {}, "CIFAR100", [True, False]),
        ("svhn", {}, "SVHN", ["train", "test"]),
        ("svhn", {"extra": True}, "SVHN", ["train", "extra", "test"]),
        ("stl10", {}, "STL10", ["train", "unlabeled", "test"]),
    ],
)
def test_torchvision_reads_every_part_of_the_folder(load, set_folder, monkeypatch, name, keys, class_name, expected):
    requests = []

    class Recorder:
        def __init__(self, folder, part):
            assert folder == set_folder
            requests.append(part)
            last = name in ("cifar10", "cifar100")
            self.data = np.zeros((2, 32, 32, 3) if last else (2, 3, 32, 32), np.uint8)

    monkeypatch.setattr(torchvision.datasets, class_name, Recorder)
    monkeypatch.setattr("nvae.data.sources.fetch", lambda *args: {"images": set_folder / "a.bin"})
    data = load(name, keys)
    assert requests == expected
    assert len(data.training) == 2 * (len(expected) - 1)
