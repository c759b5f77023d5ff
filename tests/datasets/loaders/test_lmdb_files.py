"""LMDB databases: those of the original NVAE, written here with plain lmdb calls, and our own."""

import io
import os
import re
import resource
import shutil
import sys
from types import SimpleNamespace

import lmdb
import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.images import Data
from nvae.data.loaders.folder import load_folder
from nvae.data.loaders.lmdb_files import lmdb_pictures, load_lmdb, write_lmdb
from nvae.data.pictures.decoding import decode_pictures
from nvae.system.errors import UserError
from nvae.system.files import WriteError

COUNT = 23  # more than ten: the order of the keys is not that of the numbers


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write(path, records):
    """Write a database as the original's scripts do."""
    with lmdb.open(str(path), map_size=2**24) as environment, environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)


def read(path):
    """Read a database as the original's data set does, by index."""
    with lmdb.open(str(path), readonly=True, max_readers=1, lock=False) as environment, environment.begin() as view:
        return [view.get(str(i).encode()) for i in range(environment.stat()["entries"])]


def rows(images_u8):
    """Images (N, C, S, S) as an array (N, S, S, C)."""
    return images_u8.permute(0, 2, 3, 1).numpy()


@pytest.fixture
def images():
    """Images of the model's size for training and validation, uint8 (N, 8, 8, 3)."""
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (count, 8, 8, 3), np.uint8) for count in (COUNT, 12)]


@pytest.fixture
def load(make_config):
    return lambda folder, **changes: load_lmdb(make_config(dataset={"name": "lmdb", "path": str(folder)}, **changes))


@pytest.fixture
def data(images):
    return Data(*(torch.from_numpy(part.copy()).permute(0, 3, 1, 2) for part in images))


@pytest.mark.parametrize("value", [np.ndarray.tobytes, png], ids=["raw", "encoded"])
def test_lmdb_of_the_original_is_read_in_the_order_of_its_indices(tmp_path, images, load, value):
    for name, part in zip(("train", "validation"), images, strict=True):
        write(tmp_path / f"{name}.lmdb", {str(i).encode(): value(image) for i, image in enumerate(part)})
    data = load(tmp_path)
    assert np.array_equal(rows(data.training), images[0])
    assert np.array_equal(rows(data.validation), images[1])
    assert data.test is None and data.warnings == ()
    write(tmp_path / "test.lmdb", {b"0": value(images[0][3])})
    assert np.array_equal(rows(load(tmp_path).test), images[0][3:4])


def test_lmdb_raw_images_of_another_size_are_resized(tmp_path, load):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.lmdb", {b"0": bytes([200, 100, 50] * 32**2), b"1": bytes(3 * 16**2)})
    training = load(tmp_path).training
    assert training[0, :, 4, 4].tolist() == [200, 100, 50]
    assert training[1].max() == 0


def test_lmdb_arbitrary_keys_are_sorted_and_name_the_pictures(tmp_path, images):
    """LSUN's databases have digests as keys."""
    keys = [b"f0c1", b"10", b"9", b"0a\xff"]
    write(tmp_path / "db", {key: png(image) for key, image in zip(keys, images[0], strict=False)})
    names = [picture.name for picture in lmdb_pictures(tmp_path / "db")]
    assert names == ["0a\\xff", "10", "9", "f0c1"]


def test_lmdb_encoded_picture_with_the_length_of_a_raw_image_is_decoded(tmp_path, make_config):
    """Some PNG files are 3 S^2 bytes long by chance; Pillow ignores what follows the end of the picture."""
    content = png(np.full((8, 8, 3), 90, np.uint8))
    write(tmp_path / "db", {b"0": content + bytes(3 * 40**2 - len(content))})
    config = make_config(dataset={"name": "lmdb", "path": str(tmp_path)})
    images_u8 = decode_pictures(lmdb_pictures(tmp_path / "db"), config, "db").images_u8
    assert images_u8.unique().tolist() == [90]


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"BM", b"P6 ", b"\x89PNG\r\n\x1a\n", b"GIF89a"])
def test_lmdb_raw_image_that_starts_like_a_file_stays_raw(tmp_path, make_config, start):
    value = (start + bytes([7] * 256))[: 3 * 8**2]
    write(tmp_path / "db", {b"0": value})
    config = make_config(dataset={"name": "lmdb", "path": str(tmp_path)})
    images_u8 = decode_pictures(lmdb_pictures(tmp_path / "db"), config, "db").images_u8
    assert rows(images_u8).tobytes() == value


def test_lmdb_broken_records_are_left_out_and_named(tmp_path, images, load):
    records = {str(i).encode(): png(image) for i, image in enumerate(images[0])}
    write(tmp_path / "train.lmdb", records | {b"4": records[b"4"][:60], b"7": b"", b"9": b"no picture"})
    write(tmp_path / "validation.lmdb", records)
    data = load(tmp_path)
    assert np.array_equal(rows(data.training), np.delete(images[0], [4, 7, 9], axis=0))
    assert len(data.warnings) == 1
    assert sorted(re.findall(r"^  (\d+)", data.report, re.MULTILINE)) == ["4", "7", "9"]


def test_lmdb_is_opened_again_while_pictures_are_alive(tmp_path, images):
    write(tmp_path / "db", {b"0": png(images[0][0])})
    first, second = lmdb_pictures(tmp_path / "db"), lmdb_pictures(tmp_path / "db")
    assert first[0].open().read() == second[0].open().read() == png(images[0][0])


def test_lmdb_stamp_changes_with_the_database(tmp_path, images):
    write(tmp_path / "db", {b"0": png(images[0][0])})
    before = [picture.stamp for picture in lmdb_pictures(tmp_path / "db")]
    assert before == [picture.stamp for picture in lmdb_pictures(tmp_path / "db")]
    write(tmp_path / "db", {b"0": images[0][0].tobytes() * 9})
    assert before != [picture.stamp for picture in lmdb_pictures(tmp_path / "db")]


def test_lmdb_on_a_read_only_disk_is_read_and_not_changed(tmp_path, images, load, files_below):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.lmdb", {b"0": images[0][0].tobytes()})
        os.remove(tmp_path / f"{name}.lmdb" / "lock.mdb")
    before = files_below(tmp_path)
    for folder in (tmp_path, *tmp_path.iterdir()):
        folder.chmod(0o555)
    load(tmp_path)
    for folder in (tmp_path, *tmp_path.iterdir()):
        folder.chmod(0o755)
    assert files_below(tmp_path) == before


@pytest.fixture
def files_below():
    return lambda folder: {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def damage(kind, path, value):
    """Make a database of one kind of fault."""
    if kind == "missing":
        return
    write(path, {} if kind == "empty" else {str(i).encode(): value for i in range(300)})
    file = path / "data.mdb"
    if kind == "no file":
        file.unlink()
        return
    content = file.read_bytes()
    new = {"zero bytes": b"", "no database": b"hello" * 3000, "truncated": content[: len(content) // 2]}
    if kind in new:
        file.write_bytes(new[kind])
    if kind == "pipe":
        file.unlink()
        os.mkfifo(file)


@pytest.mark.parametrize(
    "kind",
    ["missing", "empty", "no file", "zero bytes", "no database", "truncated", "pipe"],
)
def test_lmdb_faults_are_one_sentence(tmp_path, images, load, kind):
    write(tmp_path / "validation.lmdb", {b"0": png(images[0][0])})
    damage(kind, tmp_path / "train.lmdb", images[0][0].tobytes() * 20)
    messages = []
    for _ in range(2):  # the first error's traceback keeps the database alive
        with pytest.raises(UserError, match=r"train\.lmdb") as raised:
            load(tmp_path)
        messages.append(str(raised.value))
    assert messages[0] == messages[1]


@pytest.mark.parametrize(("key", "damaged"), [(b"145", b"045"), (b"197", b"199"), (b"267", b"2v7")])
def test_lmdb_damaged_key_is_refused(tmp_path, images, key, damaged):
    write(tmp_path / "db", {str(i).encode(): png(images[0][0]) for i in range(300)})
    assert len(lmdb_pictures(tmp_path / "db")) == 300
    file = tmp_path / "db" / "data.mdb"
    whole = file.read_bytes()
    refused = 0
    for place in [match.start() for match in re.finditer(key, whole)]:  # also in pages without use
        file.write_bytes(whole[:place] + damaged + whole[place + len(key) :])
        try:
            assert [picture.name for picture in lmdb_pictures(tmp_path / "db")] == [str(i) for i in range(300)]
        except UserError:
            refused += 1
    assert refused


def test_lmdb_runs_no_file_of_the_working_directory(tmp_path, images, load, monkeypatch):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.lmdb", {b"0": png(images[0][0])})
    (tmp_path / "lmdb.py").write_text("open('executed', 'w')")
    monkeypatch.chdir(tmp_path)
    load(tmp_path)
    assert not (tmp_path / "executed").exists()


def test_lmdb_of_no_pictures_is_refused(tmp_path, images, load):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.lmdb", {b"0": b"no picture"})
    with pytest.raises(UserError, match=r"train\.lmdb.*not an image \(0\)"):
        load(tmp_path)


def test_lmdb_path_of_one_database_names_the_folder_above(tmp_path, images, load):
    write(tmp_path / "train.lmdb", {b"0": png(images[0][0])})
    with pytest.raises(UserError, match=f"Set dataset.path to '{tmp_path}'"):
        load(tmp_path / "train.lmdb")


def test_lmdb_without_its_package_names_the_extra(tmp_path, images, load, monkeypatch):
    for name in ("train", "validation"):
        write(tmp_path / f"{name}.lmdb", {b"0": png(images[0][0])})
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(UserError, match=r"\[lmdb\]"):
        load(tmp_path)


# --------------------------------------------------------------------------------------------------------- writing


def test_write_lmdb_has_the_layout_of_the_original(tmp_path, images, data, load):
    write_lmdb(tmp_path / "new" / "folder", data)
    assert sorted(os.listdir(tmp_path / "new" / "folder")) == ["train.lmdb", "validation.lmdb"]
    for name, part in zip(("train", "validation"), images, strict=True):
        assert read(tmp_path / "new" / "folder" / f"{name}.lmdb") == [image.tobytes() for image in part]
    assert load(tmp_path / "new" / "folder").fingerprint == data.fingerprint


def test_write_lmdb_encoded_is_read_again(tmp_path, images, data, load):
    write_lmdb(tmp_path / "db", Data(data.training, data.validation, data.validation[:2]), encode=True)
    assert read(tmp_path / "db" / "train.lmdb")[0].startswith(b"\x89PNG")
    again = load(tmp_path / "db")
    assert again.fingerprint == data.fingerprint
    assert torch.equal(again.test, data.validation[:2])


@pytest.mark.parametrize("encode", [False, True])
def test_write_lmdb_gray_images_are_read_again(tmp_path, data, load, encode):
    gray = data.map(lambda images_u8: images_u8[:, :1])
    write_lmdb(tmp_path / "db", gray, encode)
    assert encode or {len(value) for value in read(tmp_path / "db" / "train.lmdb")} == {3 * 8**2}
    assert load(tmp_path / "db", image_channels=1).fingerprint == gray.fingerprint


def test_write_lmdb_grows_the_database(tmp_path, data, monkeypatch):
    monkeypatch.setattr("nvae.data.loaders.lmdb_files.INITIAL_BYTES", 2**15)
    many = Data(data.training.repeat(300, 1, 1, 1), data.validation)
    write_lmdb(tmp_path / "db", many)
    assert read(tmp_path / "db" / "train.lmdb") == [image.tobytes() for image in rows(many.training)]


def test_write_lmdb_into_a_folder_with_files_is_refused(tmp_path, data):
    (tmp_path / "a.txt").touch()
    for path in (tmp_path, tmp_path / "a.txt"):
        with pytest.raises(UserError, match="exists"):
            write_lmdb(path, data)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_write_lmdb_to_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path, data, monkeypatch):
    """A limit on the size of files has the effect of a full disk."""
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    many = Data(data.training.repeat(300, 1, 1, 1), data.validation)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**18, limits[1]))
    try:
        with pytest.raises(WriteError, match="db cannot be written") as raised:
            write_lmdb(tmp_path / "db", many)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert raised.value.disk_full
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(("sizes", "used"), [((4, 8, 16), 8), ((4, 16, 32), 16), ((2, 4), 4)])
def test_one_of_several_sizes_of_each_picture_is_used(tmp_path, load, sizes, used):
    for name in ("train", "validation"):
        records = {
            f"{size}-{i:05}".encode(): png(np.full((size, size, 3), 10 * size // 2 + i, np.uint8))
            for size in sizes
            for i in range(3)
        }
        write(tmp_path / f"{name}.lmdb", records | {b"length": b"3"})
    data = load(tmp_path)
    assert sorted(data.training[:, 0, 0, 0].tolist()) == [10 * used // 2 + i for i in range(3)]
    assert any(f" {used}" in warning for warning in data.warnings) or str(used) in data.report


def test_advice_for_another_name_of_the_validation_database(tmp_path, load):
    for name in ("train", "val"):
        write(tmp_path / f"{name}.lmdb", {b"0": png(np.zeros((8, 8, 3), np.uint8))})
    with pytest.raises(UserError, match="Rename val.lmdb"):
        load(tmp_path)


def test_folder_of_databases_given_as_pictures_names_lmdb(tmp_path, make_config):
    write(tmp_path / "train.lmdb", {b"0": png(np.zeros((8, 8, 3), np.uint8))})
    with pytest.raises(UserError, match="dataset.name to lmdb"):
        load_folder(make_config(dataset={"name": "folder", "path": str(tmp_path)}))
