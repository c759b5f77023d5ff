"""tfrecord: pictures in TFRecord files, as Glow's data sets and the original NVAE's scripts have them.

The files are read without TensorFlow. A record is its length (uint64), the checksum of the length, the data, and the
checksum of the data, little-endian; a checksum is a masked CRC-32C. The data is a message of protobuf,
`tf.train.Example` (TensorFlow's documentation, "TFRecord and tf.train.Example").
"""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from nvae.data.images import Data
from nvae.data.paths import dataset_path
from nvae.data.pictures.decoding import Picture, decode_parts, with_reports
from nvae.data.pictures.folders import part_named_in
from nvae.data.pictures.report import PictureError
from nvae.data.splits import split
from nvae.schema import ModelConfig, TfrecordDataset
from nvae.system.errors import Remedy, UserError

PATTERNS = ("*.tfrecord", "*.tfrecords", "*.tfrecord-*", "*.tfrecords-*")
HEADER = 12  # bytes: the length of a record and its checksum
HEADERS = 10_000  # that are checked at once
PICTURES = ("data", "image/encoded", "image")  # names of the feature with a picture
BLOCK = 4096  # bytes whose checksum is computed at once


def load_tfrecord(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the records of the file `dataset.path`, or of all TFRecord files in the folder and its subfolders.

    A file whose path has a part of its name such as train, validation or test belongs to this part of the data set, any
    other file to the training images. `validation_images` of these are for validation, or `validation_fraction` where
    there are no validation and test files, chosen by position. cache: keep the images for later runs, see
    `decode_pictures`. Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, TfrecordDataset)
    path = dataset_path(dataset)
    found = {file for pattern in PATTERNS for file in path.rglob(pattern)} if path.is_dir() else {path}
    files = _of_one_size(sorted(file for file in found if file.is_file()), config.input_dimension)
    parts: dict[str, list[Picture]] = {}
    for file in files:
        name = file.name if file == path else file.relative_to(path).as_posix()
        parts.setdefault(part_named_in(name), []).extend(record_pictures(file, name))
    if "training" not in parts:
        raise UserError(
            f"'{path}' holds no TFRecord files for training; expected files such as train/train-r05-s-0000-of-2000"
            ".tfrecords. Set dataset.path to a file, or to the folder of the files.",
            Remedy.DATASET_PATH,
        )
    sources = {part: (os.path.join(path, part), pictures) for part, pictures in parts.items()}
    decoded = decode_parts(sources, config, progress, cache)
    images = {part: result.images_u8 for part, result in decoded.items()}
    held_out = [images[part] for part in ("validation", "test") if part in images]
    if not held_out and len(images["training"]) < 2:
        raise UserError(f"'{path}' holds one picture that can be used; expected at least two.", Remedy.DATASET_PATH)
    return with_reports(split(images["training"], held_out, dataset), *decoded.values())


def _of_one_size(files: list[Path], size: int) -> list[Path]:
    """Return the files of the smallest images that are large enough, or of the largest, and those of unknown size.

    Files of the same pictures at several sizes have names with -rNN for images of 2^NN x 2^NN pixels.
    """
    named = {file: 2 ** int(match[1]) for file in files if (match := re.search(r"-r(\d\d)\b", file.name))}
    sizes = sorted(set(named.values()))
    chosen = next((known for known in sizes if known >= size), sizes[-1] if sizes else 0)
    return [file for file in files if named.get(file, chosen) == chosen]


def record_pictures(file: Path, name: str) -> list[Picture]:
    """Return the records of a file as pictures; a record is read when its picture is opened.

    name: of the file in the names of the pictures. Raises UserError for a file that is damaged or no TFRecord file.
    """
    places: list[tuple[int, int]] = []  # offset and length of the data
    headers: list[bytes] = []
    position, stat, is_sound = 0, file.stat(), True  # the headers are checked in parts: a file of zeros has many
    with open(file, "rb") as stream:
        while is_sound and position < stat.st_size:
            stream.seek(position)
            headers.append(stream.read(HEADER).ljust(HEADER, b"\0"))
            places.append((position + HEADER, int.from_bytes(headers[-1][:8], "little")))
            position += HEADER + places[-1][1] + 4
            if len(headers) == HEADERS or position >= stat.st_size:
                is_sound, headers = _are_sound(headers), []
    if position != stat.st_size or not is_sound:
        raise UserError(
            f"'{file}' is damaged, was cut off, or is no TFRecord file. Get the file again, and decompress a "
            "file that was compressed as a whole."
        )
    stamp = f"{stat.st_size} {stat.st_mtime_ns}"
    return [Picture(f"{name}/{i}", partial(_open_record, file, *place), stamp) for i, place in enumerate(places)]


def _are_sound(headers: list[bytes]) -> bool:
    """Return whether the checksums of headers are right."""
    rows = np.frombuffer(b"".join(headers), np.uint8).reshape(-1, HEADER)
    return bool((masked_crc32c(rows[:, :8]) == rows[:, 8:].copy().view("<u4")[:, 0]).all())


def _open_record(file: Path, offset: int, length: int) -> IO[bytes] | Image.Image:
    """Return the picture in a record: uint8 values with a shape, (H, W, C) or (C, H, W), or an encoded picture."""
    with open(file, "rb") as stream:
        stream.seek(offset)
        content = stream.read(length + 4)
    data = np.frombuffer(content[:length], np.uint8)
    if masked_crc32c(data[None])[0].tobytes() != content[length:]:
        raise PictureError("broken", "wrong checksum")
    features = features_of(content[:length])
    values = next((features[key][0] for key in PICTURES if features.get(key)), None)
    if not isinstance(values, bytes):
        raise PictureError("not an image", f"no feature {' or '.join(PICTURES)}")
    if not (shape := features.get("shape")):
        return io.BytesIO(values)
    array: np.ndarray = np.frombuffer(values, np.uint8).reshape(np.array(shape))
    if array.ndim == 3 and array.shape[0] in (1, 3) and array.shape[2] not in (1, 3):
        array = np.moveaxis(array, 0, 2)
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


# ---------------------------------------------------------------------------------------- messages of protobuf


def features_of(example: bytes) -> dict[str, list[bytes | int]]:
    """Return the texts of bytes and the whole numbers of a tf.train.Example by their names; other features are empty.

    Raises ValueError or IndexError for anything else.
    """
    result: dict[str, list[bytes | int]] = {}
    for _, features in _fields(example):
        for _, entry in _fields(features):
            parts = dict(_fields(entry))  # 1: the name, 2: the feature
            values = result.setdefault(str(parts.get(1, b""), "utf-8"), [])  # type: ignore[arg-type]
            for kind, listed in _fields(parts.get(2, b"")):  # 1: bytes, 2: floats, 3: whole numbers
                for _, value in _fields(listed):
                    if kind == 1:
                        values.append(value)
                    elif kind == 3:
                        values += [value] if isinstance(value, int) else _varints(value)
    return result


def _fields(message: bytes | int) -> Iterator[tuple[int, bytes | int]]:
    """Yield the number and the value of each field of a message."""
    if isinstance(message, int):
        raise ValueError("got a number, expected a message")
    position = 0
    while position < len(message):
        key, position = _varint(message, position)
        if key & 7 == 0:
            value, position = _varint(message, position)
            yield key >> 3, value
            continue
        length = {1: 8, 5: 4}.get(key & 7, -1)
        if key & 7 == 2:
            length, position = _varint(message, position)
        if not 0 <= length <= len(message) - position:
            raise ValueError("a field is longer than its message")
        yield key >> 3, message[position : position + length]
        position += length


def _varint(message: bytes, position: int) -> tuple[int, int]:
    """Return a number in groups of seven bits, the lowest first, and the position behind the number."""
    value = shift = 0
    while True:
        value |= (message[position] & 127) << shift
        position, shift = position + 1, shift + 7
        if message[position - 1] < 128:
            return value, position
        if shift > 63:
            raise ValueError("a number is longer than 64 bits")


def _varints(packed: bytes) -> list[int]:
    values, position = [], 0
    while position < len(packed):
        value, position = _varint(packed, position)
        values.append(value)
    return values


# ------------------------------------------------------------------------------------------------- the checksum


def masked_crc32c(rows: np.ndarray) -> np.ndarray:
    """Return the checksum of TFRecord files of each row of uint8 (N, L): uint32 (N,).

    A block of bytes changes the state of the CRC by the exclusive or of a number for each byte, which depends on the
    byte's value and on how many bytes of the block follow.
    """
    tables, state = _tables(), np.full(len(rows), 2**32 - 1, "<u4")
    for start in range(0, rows.shape[1], BLOCK):
        block = rows[:, start : start + BLOCK].copy()
        length = block.shape[1]
        block[:, :4] ^= state.view(np.uint8).reshape(-1, 4)[:, :length]
        rest = state >> (8 * length) if length < 4 else 0
        state = np.bitwise_xor.reduce(tables[np.arange(BLOCK - length, BLOCK), block], axis=1) ^ rest
        state = state.astype("<u4")
    crc = ~state
    return ((crc >> 15) | (crc << 17)) + np.uint32(0xA282EAD8)


@cache
def _tables() -> np.ndarray:
    """Return the numbers of `masked_crc32c` by position in a block and value, uint32 (BLOCK, 256)."""
    tables = np.empty((BLOCK, 256), np.uint32)
    last = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        last = (last >> 1) ^ (last & 1) * np.uint32(0x82F63B78)  # the polynomial of Castagnoli, reflected
    tables[-1] = last
    for i in range(BLOCK - 2, -1, -1):
        tables[i] = (tables[i + 1] >> 8) ^ last[tables[i + 1] & 255]
    return tables
