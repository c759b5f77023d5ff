"""TFRecord files, written here by another implementation of the format."""

import io
import struct
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.loaders import tfrecord
from nvae.data.loaders.tfrecord import BLOCK, features_of, masked_crc32c
from nvae.system.errors import Remedy, UserError


def crc32c(data):
    """Bit by bit."""
    crc = 2**32 - 1
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc >> 1) ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ (2**32 - 1)


def masked(data):
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def record(data):
    length = struct.pack("<Q", len(data))
    return length + masked(length) + data + masked(data)


def varint(number):
    groups = []
    while number > 127:
        groups.append(number & 127 | 128)
        number >>= 7
    return bytes([*groups, number])


def message(number, content):
    return varint(number << 3 | 2) + varint(len(content)) + content


def example(packed=True, **features):
    """A tf.train.Example. Values: bytes, floats, or lists of whole numbers."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = message(1, message(1, value))
        elif isinstance(value, float):
            feature = message(2, message(1, struct.pack("<f", value)))
        elif packed:
            feature = message(3, message(1, b"".join(map(varint, value))))
        else:
            feature = message(3, b"".join(b"\x08" + varint(number) for number in value))
        entries += message(1, message(1, name.replace("__", "/").encode()) + message(2, feature))
    return message(1, entries)


def raw(image, **others):
    return example(data=image.tobytes(), shape=list(image.shape), **others)


def write(file, examples):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"".join(map(record, examples)))


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), np.uint8)


@pytest.fixture
def load(load):
    return lambda keys=None, size=8: load("tfrecord", keys, input_dimension=size)


def as_images(array):
    return torch.from_numpy(array).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "length", [0, 1, 3, 4, 8, 100, BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 3, BLOCK + 4, 2 * BLOCK + 2]
)
def test_checksum_is_that_of_the_definition(length):
    rows = np.random.default_rng(length).integers(0, 256, (2, length), np.uint8)
    assert [value.tobytes() for value in masked_crc32c(rows)] == [masked(row.tobytes()) for row in rows]
    assert crc32c(b"123456789") == 0xE3069283  # the check value of the polynomial


def test_layout_of_glow_is_read(set_folder, images, load):
    """Two files for training and one for validation, with labels, which are not used."""
    parts = {"train/train-r03-s-0000-of-0002": images[:5], "train/train-r03-s-0001-of-0002": images[5:9]}
    for name, part in (parts | {"validation/validation-r03-s-0000-of-0001": images[9:]}).items():
        write(set_folder / f"{name}.tfrecords", [raw(image, label=[7], weight=0.5) for image in part])
    data = load()
    assert torch.equal(data.training, as_images(images[:9])) and torch.equal(data.validation, as_images(images[9:]))
    assert data.test is None and not data.warnings
    assert load(size=4).training.shape == (9, 3, 4, 4)


def test_single_file_is_split_by_position(set_folder, images, load):
    file = set_folder / "all.tfrecord"
    write(file, map(raw, images))
    data = load({"path": str(file), "validation_fraction": 0.25})
    assert (len(data.training), len(data.validation)) == (9, 3)
    assert {image.numpy().tobytes() for image in torch.cat([data.training, data.validation])} == {
        image.tobytes() for image in images.transpose(0, 3, 1, 2)
    }
    assert torch.equal(load({"path": str(file), "validation_fraction": 0.25}).validation, data.validation)
    last = load({"path": str(file), "validation_images": 3, "validation_choice": "last"})
    assert torch.equal(last.training, as_images(images[:9])) and torch.equal(last.validation, as_images(images[9:]))


def test_test_files_are_the_test_part(set_folder, images, load):
    for part, rows in (("train", images[:4]), ("test", images[4:6]), ("val", images[6:])):
        write(set_folder / f"faces-{part}.tfrecord-00000-of-00001", map(raw, rows))
    data = load()
    assert torch.equal(data.test, as_images(images[4:6])) and len(data.validation) == 6


def test_layouts_of_a_picture(set_folder, images, load):
    """Channels first, as in ProGAN's files; gray; encoded; and numbers that are not packed."""
    gray, buffer = images[2, :, :, :1], io.BytesIO()
    Image.fromarray(images[3]).save(buffer, "PNG")
    examples = [
        raw(images[0].transpose(2, 0, 1)),
        example(packed=False, data=images[1].tobytes(), shape=[8, 8, 3]),
        raw(gray),
        raw(gray[:, :, 0]),
        example(image__encoded=buffer.getvalue(), image__height=[8]),
        example(image=buffer.getvalue()),
    ]
    write(set_folder / "train.tfrecords", examples)
    write(set_folder / "test.tfrecords", [raw(images[4])])
    expected = np.stack([images[0], images[1], gray.repeat(3, 2), gray.repeat(3, 2), images[3], images[3]])
    assert torch.equal(load().training, as_images(expected))


def test_of_files_of_several_sizes_one_size_is_read(set_folder, load):
    for log in (3, 4, 5):
        image = np.full((2**log, 2**log, 3), log, np.uint8)
        for part in ("train", "validation"):
            write(set_folder / part / f"{part}-r0{log}-s-0000-of-0001.tfrecords", [raw(image)])
    for size, log in ((4, 3), (8, 3), (12, 4), (32, 5), (64, 5)):
        data = load(size=size)
        assert data.training.unique().tolist() == [log] and len(data.training) == 1


# ------------------------------------------------------------------------------------------------------------ damage


def damaged(content, place, bit=1):
    return content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]


def test_damage_is_refused_or_named(set_folder, images, load):
    """Every byte of a header is checked when the file is opened; a damaged picture is left out and named."""
    records = [record(raw(image)) for image in images]
    whole, length = b"".join(records), len(records[0])
    file = set_folder / "all.tfrecords"
    write(file, [])
    headers = [damaged(whole, place) for start in (0, length) for place in range(start, start + 12)]
    for content in (*headers, whole[:-1], whole[: length + 5], b"no record", b"\x1f\x8b" + whole):
        file.write_bytes(content)
        with pytest.raises(UserError, match=r"all\.tfrecords"):
            load()
    for place in (12, 50, length - 1):
        file.write_bytes(damaged(whole, length + place))
        data = load()
        assert len(data.training) + len(data.validation) == len(images) - 1
        assert "all.tfrecords/1" in data.report and "wrong checksum" in data.report


def test_hostile_messages_are_left_out(set_folder, images, load):
    """Whatever lengths and numbers a message claims, its memory is bounded by the file."""
    long = varint(2**60)
    hostile = [
        b"",
        b"\xff" * 40,
        b"\x0a" + long,
        message(1, message(1, b"\x08" + long + message(2, b""))),  # a number in place of a name
        message(1, message(1, message(1, b"data") + message(2, message(1, b"\x08" + long)))),  # and of bytes
        example(data=b"123", shape=[2**40, 2**40]),
        example(data=b"123", shape=[2**63, 3]),
        example(data=b"123", shape=[]),
        example(data=b"", shape=[0, 0, 3]),
        example(data=[1, 2], shape=[1, 1, 1]),
        example(shape=[1, 1, 1]),
        example(other=b"1"),
    ]
    write(set_folder / "train.tfrecords", [*hostile, *map(raw, images)])
    write(set_folder / "val.tfrecords", map(raw, images))
    tracemalloc.start()
    data = load()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(data.training, as_images(images)) and len(data.warnings) == 1
    assert peak < 2**26


def test_features_are_those_that_were_written():
    features = features_of(example(data=b"abc", shape=[1, 300, 2**40], weight=0.5))
    assert features == {"data": [b"abc"], "shape": [1, 300, 2**40], "weight": []}


def test_missing_files_are_a_user_error(set_folder, load):
    for content in (None, "validation.tfrecords"):
        if content:
            write(set_folder / content, [])
        with pytest.raises(UserError, match="TFRecord") as error:
            load()
        assert error.value.remedies == (Remedy.DATASET_PATH,)


def test_file_of_zeros_is_refused_after_a_part(set_folder, load, monkeypatch):
    """Each 16 bytes are the header and the end of an empty record, whose checksums are not 0."""
    checked = []
    monkeypatch.setattr(tfrecord, "_are_sound", lambda headers: checked.append(len(headers)))
    set_folder.mkdir()
    (set_folder / "train.tfrecord").write_bytes(bytes(16 * 3 * tfrecord.HEADERS))
    with pytest.raises(UserError, match="damaged"):
        load()
    assert checked == [tfrecord.HEADERS]
