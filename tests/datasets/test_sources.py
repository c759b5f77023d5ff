"""The table of files: addresses and checksums against torchvision's, and the answer without a network."""

import errno
import os
import sys
import types

import pytest
from torchvision.datasets import (
    CIFAR10,
    CIFAR100,
    DTD,
    EMNIST,
    KMNIST,
    MNIST,
    STL10,
    SVHN,
    CelebA,
    FashionMNIST,
    Flowers102,
    Omniglot,
    Places365,
)
from torchvision.datasets.imagenet import ARCHIVE_META

from nvae.data import sources
from nvae.data.downloads import CONNECTION_TIMEOUT
from nvae.data.registry import LOADERS
from nvae.data.sources import MEDMNIST_SETS, extra_of, medmnist_suffix, obtain_and_read, source_files
from nvae.schema import DATASETS, NAMED_DATASETS
from nvae.system.errors import UserError


def files_of(name, **keys):
    """The addresses and checksums of a data set's files."""
    files = source_files(DATASETS[name](name=name, **keys), NAMED_DATASETS[name].size)
    return {(file.url, file.md5) for file in files.values()}


def test_every_named_dataset_has_a_loader_and_files():
    for name in NAMED_DATASETS:
        assert name in LOADERS and files_of(name), name


def test_idx_sets_are_those_of_torchvision():
    for name, original in (("mnist", MNIST), ("fashion_mnist", FashionMNIST), ("kmnist", KMNIST)):
        published = {(original.mirrors[0] + file, md5) for file, md5 in original.resources if "images" in file}
        assert files_of(name) == published
    assert files_of("emnist") == {(EMNIST.url, EMNIST.md5)}


def test_emnist_versions_are_those_of_torchvision():
    for version in EMNIST.splits:
        files = source_files(DATASETS["emnist"](name="emnist", version=version), 28)
        assert all(version in pattern for file in files.values() for pattern in file.found_as)


def test_array_sets_are_those_of_torchvision():
    for name, original in (("cifar10", CIFAR10), ("cifar100", CIFAR100), ("stl10", STL10)):
        assert files_of(name) == {(original.url, original.tgz_md5)}
    published = {part: (url, md5) for part, (url, _, md5) in SVHN.split_list.items()}
    assert files_of("svhn") == {published["train"], published["test"]}
    assert files_of("svhn", extra=True) == set(published.values())
    assert files_of("omniglot", version="torchvision") == {
        (f"{Omniglot.download_url_prefix}/{name}.zip", md5) for name, md5 in Omniglot.zips_md5.items()
    }


def test_picture_sets_are_those_of_torchvision():
    prefix, files = Flowers102._download_url_prefix, Flowers102._file_dict.values()
    assert files_of("flowers102") == {(prefix + name, md5) for name, md5 in files}
    assert files_of("dtd") == {(DTD._URL, DTD._MD5)}
    archives = [Places365._IMAGES_META[part, True] for part in ("train-standard", "val")]
    assert files_of("places365") == {(Places365._BASE_URL + name, md5) for name, md5 in archives}
    assert files_of("imagenet") == {("", ARCHIVE_META[part][1]) for part in ("train", "val")}
    celeba = {(file_id, md5) for file_id, md5, name in CelebA.file_list if name.endswith(".zip") or "partition" in name}
    assert {(url.partition("id=")[2], md5) for url, md5 in files_of("celeba")} == celeba


@pytest.mark.parametrize(("size", "suffix"), [(1, ""), (28, ""), (29, "_64"), (128, "_128"), (225, "_224")])
def test_medmnist_files_are_of_the_smallest_size_that_is_large_enough(size, suffix):
    assert medmnist_suffix(size) == suffix
    for name in MEDMNIST_SETS:
        (file,) = source_files(DATASETS[name](name=name), size).values()
        assert file.url == f"https://zenodo.org/records/10519652/files/{name}{suffix}.npz?download=1"


@pytest.mark.parametrize("name", NAMED_DATASETS)
def test_without_a_network_every_set_says_what_to_get(load, set_folder, medmnist, monkeypatch, name):
    """The sentence names the folder, each file, and its address, or the homepage where an account is needed."""
    monkeypatch.setitem(sys.modules, "lmdb", types.ModuleType("lmdb"))
    size = NAMED_DATASETS[name].size
    suffix = medmnist_suffix(size)
    files = source_files(DATASETS[name](name=name), size)
    medmnist[name] = {f"url{suffix}": file.url for file in files.values()} | {f"MD5{suffix}": "0"}
    with pytest.raises(UserError) as raised:
        load(name, input_dimension=size)
    message = str(raised.value)
    assert str(set_folder) in message
    assert ("no route to host" in message) == all(file.url for file in files.values())
    for file in files.values():
        assert file.name.split("/")[-1] in message
        assert (file.url or NAMED_DATASETS[name].homepage) in message
    assert not set_folder.exists()
    assert CONNECTION_TIMEOUT <= 8  # of ten seconds in all


def test_default_folder_is_named_after_the_set(make_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="'dataset/kmnist'"):
        LOADERS["kmnist"](make_config(dataset={"name": "kmnist"}), False)
    assert list(tmp_path.iterdir()) == []


def test_extras_are_in_the_package(root):
    text = (root / "pyproject.toml").read_text()
    for name in DATASETS:
        if (extra := extra_of(name)) not in (None, "lmdb"):
            assert f"\n{extra} = [" in text


@pytest.mark.parametrize(
    ("error", "readings"),
    [
        (OSError(errno.EIO, os.strerror(errno.EIO)), 1),
        (OSError(errno.ESTALE, os.strerror(errno.ESTALE)), 1),
        (FileNotFoundError(errno.ENOENT, "gone"), 2),
        (RuntimeError("wrong checksum"), 2),
    ],
    ids=str,
)
def test_only_files_that_are_damaged_or_missing_are_obtained_again(make_config, monkeypatch, error, readings):
    again = []

    def obtained(config, progress, repeat):
        again.append(repeat)
        return {}

    def read(paths):
        raise error

    monkeypatch.setattr(sources, "obtain", obtained)
    with pytest.raises(UserError):
        obtain_and_read(make_config(dataset={"name": "cifar10"}), read)
    assert again == [False, True][:readings]
