"""prepare: a folder, an archive, a file or a named data set into the cache or into LMDB databases."""

import gzip
import os
import struct

import lmdb
import numpy as np
import pytest
import yaml
from PIL import Image

from nvae.data.pictures import decoding as pictures
from nvae.data.registry import load_data

SIZE = 8


@pytest.fixture
def source(folder, monkeypatch):
    """A working directory with the folder mine of thirty pictures and a broken file, and an empty cache."""
    monkeypatch.setenv("NVAE_CACHE", str(folder / "cache"))
    (folder / "mine").mkdir()
    random = np.random.default_rng(0)
    for i in range(30):
        Image.fromarray(random.integers(0, 256, (12, 10, 3), np.uint8)).save(folder / "mine" / f"{i}.png")
    (folder / "mine" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30))
    return folder


@pytest.fixture
def prepare(command):
    return lambda *arguments: command("-m", "prepare", *arguments)


@pytest.fixture
def load(make_config):
    """A function: the data of a dataset section."""
    return lambda channels=3, **dataset: load_data(make_config(image_channels=channels, dataset=dataset))


def printed_config(out):
    """The lines of a config that the command prints."""
    lines = out.splitlines()
    return yaml.safe_load("\n".join(lines[lines.index("in the config:") + 1 :]))


def records(path):
    """The keys and values of a database, by plain lmdb calls."""
    with lmdb.open(str(path), readonly=True, lock=False) as environment, environment.begin() as transaction:
        return {bytes(key): bytes(value) for key, value in transaction.cursor()}


def write_mnist(folder, images):
    """Write a tiny MNIST: the same images for training and test."""
    folder.mkdir(parents=True)
    for part in ("train", "t10k"):
        content = struct.pack(">4i", 2051, *images.shape) + images.tobytes()
        (folder / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(content))


def test_prepare_lmdb_has_the_layout_of_the_original(source, prepare, load):
    result = prepare("mine", "--size", SIZE, "--lmdb", "out/db")
    assert result.code == 0
    assert "broken.png" in result.out
    data = load(name="folder", path="mine")
    for name, part in (("train", data.training), ("validation", data.validation)):
        stored = records(f"out/db/{name}.lmdb")
        assert set(stored) == {str(i).encode() for i in range(len(part))}
        for i, image in enumerate(part):
            pixels = np.frombuffer(stored[str(i).encode()], np.uint8).reshape(SIZE, SIZE, 3)
            assert np.array_equal(pixels, image.permute(1, 2, 0).numpy())
    assert sorted(os.listdir("out")) == ["db"]
    assert sorted(os.listdir("out/db")) == ["train.lmdb", "validation.lmdb"]


@pytest.mark.parametrize(("options", "channels"), [([], 3), (["--encode"], 3), (["--channels", 1], 1)])
def test_prepare_lmdb_gives_the_same_images_as_the_folder(source, prepare, load, options, channels):
    result = prepare("mine", "--size", SIZE, "--lmdb", "db", "--set", "dataset.fit=pad", *options)
    config = printed_config(result.out)
    assert config == {
        "input_dimension": SIZE,
        "image_channels": channels,
        "dataset": {"name": "lmdb", "path": "db"},
    }
    expected = load(channels, name="folder", path="mine", fit="pad")
    assert load(channels, **config["dataset"]).fingerprint == expected.fingerprint


def test_prepare_lmdb_of_an_lmdb_and_of_an_npz_file(source, prepare, load):
    np.savez("a.npz", train_images=np.full((3, 9, 9), 50, np.uint8), test_images=np.full((2, 9, 9), 90, np.uint8))
    assert prepare("a.npz", "--size", 9, "--lmdb", "first").code == 0
    assert prepare("first", "--size", SIZE, "--lmdb", "second").code == 0
    data = load(name="lmdb", path="second")
    assert data.training.unique().tolist() == [50]
    assert (len(data.training), len(data.validation)) == (3, 2)


def test_prepare_named_arrays_need_no_cache(source, prepare, load):
    write_mnist(source / "digits", np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8))
    result = prepare("mnist", "--data", "digits", "--set", "dataset.validation_images=2")
    assert result.code == 0
    assert not os.path.exists("cache")
    assert printed_config(result.out) == {
        "input_dimension": 28,
        "image_channels": 1,
        "dataset": {"name": "mnist", "path": "digits", "validation_images": 2},
    }


def test_prepare_lmdb_of_named_arrays_has_a_test_part(source, prepare, load):
    images = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)
    write_mnist(source / "digits", images)
    arguments = ("mnist", "--data", "digits", "--set", "dataset.validation_images=2", "--lmdb", "db")
    assert prepare(*arguments).code == 0
    assert [len(records(f"db/{name}.lmdb")) for name in ("train", "validation", "test")] == [4, 2, 6]
    assert records("db/test.lmdb")[b"5"] == np.repeat(images[5], 3).tobytes()


def test_prepare_prints_a_config_that_reads_the_same_pictures(source, prepare, load):
    result = prepare("mine", "--size", SIZE, "--set", "dataset.fit=pad", "--set", "dataset.percentiles=[1, 99]")
    assert result.code == 0
    assert "broken.png" in result.out
    assert printed_config(result.out) == {
        "input_dimension": SIZE,
        "image_channels": 3,
        "dataset": {"name": "folder", "path": "mine", "fit": "pad", "percentiles": [1, 99]},
    }


def test_prepare_fills_the_cache_that_training_reads(source, prepare, load, monkeypatch):
    before = load(name="folder", path="mine")
    assert not os.path.exists("cache")
    first = prepare("mine", "--size", SIZE)
    (images,) = (source / "cache").glob("*.npy")
    assert f"the images are in the cache, {source / 'cache'}" in first.out
    monkeypatch.setattr(pictures, "fit", None)  # decoding a picture again would fail
    after = load(name="folder", path="mine")
    assert (after.fingerprint, after.report) == (before.fingerprint, before.report)
    assert prepare("mine", "--size", SIZE).code == 0
    assert list((source / "cache").glob("*.npy")) == [images]


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "SOURCE"),
        (["nothing"], "nothing.*mnist"),
        (["mnst"], "mean mnist"),
        (["mine", "--size", "0"], "--size"),
        (["mine", "--size", "5000"], "input_dimension.*5000"),
        (["mine", "--channels", "2"], "--channels"),
        (["mine", "--data", "here"], "--data"),
        (["mine", "--encode"], "--lmdb"),
        (["mine", "--set", "latent_size=3"], "latent_size"),
        (["mine", "--set", "dataset.path=there"], "SOURCE"),
        (["mine", "--set", "dataset.fitt=pad"], "fitt"),
        (["mine", "--set", "dataset.fit=shrink"], "shrink"),
        (["mine", "--lmdb", "mine"], "mine.*exists"),
        (["mine", "--lmdb", "mine/broken.png"], "broken.png.*exists"),
        (["mine", "--lmdb", "mine/broken.png/db"], "broken.png"),
        (["empty.npz"], "empty.npz.*SOURCE"),
        (["toy_faces", "--data", "here"], "dataset.path"),
        (["mine", "--set", "dataset.path =there"], "SOURCE"),
        (["mine", "--set", "dataset.percentiles=[1]"], "percentiles.*two numbers"),
        (["mine\udcff"], "UTF-8"),
        ([""], "SOURCE.*empty"),
    ],
)
def test_prepare_mistakes_are_one_line_and_write_nothing(source, prepare, files, arguments, pattern):
    (source / "empty.npz").touch()
    before = files.all(source)
    prepare(*arguments).assert_refused(pattern)
    assert files.all(source) == before
