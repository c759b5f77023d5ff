"""The command `datasets`: the list, the description of one data set, and what is on the disk."""

import re

import pytest

from nvae.cli.datasets import COLUMNS, table
from nvae.schema import DATASETS, NAMED_DATASETS


@pytest.fixture
def mnist(folder):
    """The two files of mnist in dataset/mnist."""
    files = [folder / "dataset" / "mnist" / f"{part}-images-idx3-ubyte.gz" for part in ("train", "t10k")]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    return files


def on_disk(output):
    """The last column of each data set."""
    return {line.split()[0]: line.split()[-1] for line in output.strip().splitlines()[2:]}


def test_table_has_the_facts_of_every_dataset():
    rows = {row[0]: dict(zip(COLUMNS, row, strict=True)) for row in table()}
    assert set(rows) == set(DATASETS)
    for name, facts in NAMED_DATASETS.items():
        row = rows[name]
        assert (row["images"], row["size"], row["channels"]) == (
            facts.title,
            f"{facts.size} x {facts.size}",
            str(facts.channels),
        )
        for part in ("training", "validation", "test"):
            assert int(row[part].replace(",", "").replace("-", "0")) == getattr(facts, part)


def test_list_says_what_is_on_the_disk(command, mnist):
    result = command("-m", "datasets")
    assert result.code == 0
    found = on_disk(result.out)
    assert set(found) == set(DATASETS)
    assert [name for name, text in found.items() if text == "yes"] == ["mnist", "stacked_mnist"]  # of one set's files
    assert {name for name, text in found.items() if text == "-"} == set(DATASETS) - set(NAMED_DATASETS)
    mnist[0].unlink()
    assert on_disk(command("-m", "datasets").out)["mnist"] == "no"


def test_list_looks_into_the_given_folder(command, mnist, tmp_path):
    moved = tmp_path / "elsewhere"
    (tmp_path / "dataset").rename(moved)
    assert on_disk(command("-m", "datasets").out)["mnist"] == "no"
    assert on_disk(command("-m", "datasets", "--data", moved).out)["mnist"] == "yes"


def test_list_with_a_file_in_place_of_a_folder(command, folder):
    (folder / "dataset").mkdir()
    (folder / "dataset" / "mnist").touch()
    assert on_disk(command("-m", "datasets").out)["mnist"] == "no"


@pytest.mark.parametrize("name", DATASETS)
def test_description_has_the_keys_and_the_line_of_the_config(command, folder, name):
    result = command("-m", "datasets", name)
    assert result.code == 0
    assert f"dataset: {{name: {name}" in result.out
    for key in DATASETS[name].model_fields:
        assert key == "name" or f"dataset.{key}=" in result.out
    if name in NAMED_DATASETS:
        facts = NAMED_DATASETS[name]
        assert facts.homepage in result.out and facts.license in result.out
        assert re.search(rf"on disk +no, in dataset/{facts.made_of or name}", result.out)


def test_description_looks_into_the_given_folder(command, mnist):
    assert re.search(r"on disk +yes", command("-m", "datasets", "mnist").out)
    result = command("-m", "datasets", "mnist", "--data", "dataset/mnist")
    assert re.search(r"on disk +yes, in dataset/mnist", result.out)
    assert "path: dataset/mnist" in result.out
    assert re.search(r"on disk +yes", command("-m", "datasets", "mnist", "--data", "dataset").out)
    assert re.search(r"on disk +no", command("-m", "datasets", "kmnist", "--data", "dataset").out)


def test_description_names_the_extra_and_the_addresses(command, folder):
    output = command("-m", "datasets", "svhn").out
    assert ".[svhn]" in output and "http://ufldl.stanford.edu/housenumbers/train_32x32.mat" in output
    assert ".[lmdb]" in command("-m", "datasets", "lmdb").out


@pytest.mark.parametrize(
    ("name", "suggestion"), [("mnistt", "mnist"), ("Fashion-MNIST", "fashion_mnist"), ("STL-10", "stl10")]
)
def test_unknown_name_is_refused_with_the_nearest_one(command, folder, name, suggestion):
    for arguments in (("datasets", name), ("datasets", name, "--show"), ("prepare", name)):
        command("-m", *arguments).assert_refused(rf"{name}.*mean {suggestion}\?")
