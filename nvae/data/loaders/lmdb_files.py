"""lmdb: pictures in LMDB databases, in the layout of the original NVAE, read and written."""

from __future__ import annotations

import errno
import io
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import IO, Any
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.extras import import_extra
from nvae.data.images import Data
from nvae.data.paths import dataset_folder
from nvae.data.pictures.decoding import Picture, decode_parts, with_reports
from nvae.data.pictures.image_files import open_image
from nvae.schema import LmdbDataset, ModelConfig
from nvae.system.errors import Remedy, UserError
from nvae.system.files import DISK_FULL, atomic_folder
from nvae.system.memory_maps import chunks

DATABASES = {"training": "train.lmdb", "validation": "validation.lmdb", "test": "test.lmdb"}  # of each part
DATA_FILE = "data.mdb"  # in the folder of a database
CHUNK = 256  # records per transaction
INITIAL_BYTES = 2**26  # of a new database, which grows as needed
MIN_FREE_BYTES = 2**20  # a disk with less free space is full


# --------------------------------------------------------------------------------------------------------- reading


def load_lmdb(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load train.lmdb, validation.lmdb and, if present, test.lmdb in the folder `dataset.path`.

    cache: keep the images for later runs, see `decode_pictures`. Raises UserError.
    """
    assert isinstance(config.dataset, LmdbDataset)
    folder = dataset_folder(config.dataset)
    for name in (DATABASES["training"], DATABASES["validation"]):
        if not (folder / name).exists():
            above = f" Set dataset.path to '{folder.parent}'." if folder.name in DATABASES.values() else ""
            others = [other for other in ("val.lmdb", "valid.lmdb") if (folder / other).exists()]
            if others and name == DATABASES["validation"]:
                above = f" Rename {others[0]} to {name}."
            raise UserError(
                f"the folder '{folder}' holds no database {name}; expected a folder with train.lmdb and "
                f"validation.lmdb.{above or ' Set dataset.path to that folder.'}",
                Remedy.DATASET_PATH,
            )
    databases = {part: folder / name for part, name in DATABASES.items() if (folder / name).exists()}
    parts, notes = {}, {}
    for part, database in databases.items():
        pictures, notes[part] = _of_one_size(lmdb_pictures(database), config.input_dimension)
        parts[part] = str(database), pictures
    decoded = decode_parts(parts, config, progress, cache)
    for part, result in decoded.items():
        report = result.report.model_copy(update={"notes": (*notes[part], *result.report.notes)})
        decoded[part] = result._replace(report=report)
    images = {part: result.images_u8 for part, result in decoded.items()}
    return with_reports(Data(images["training"], images["validation"], images.get("test")), *decoded.values())


def lmdb_pictures(path: Path) -> list[Picture]:
    """Return the records of one LMDB database as pictures; the records are read when a picture is opened.

    path: the folder with data.mdb, or a database in a single file. A value is an encoded picture, or the bytes of a
    square RGB image, uint8 (S, S, 3). The order is by number if all keys are decimal numbers, as in the original NVAE,
    or else by key. Raises UserError for a database that is missing, damaged or empty.
    """
    database = _opened(path)
    with _readable(path):
        keys = database.keys()
    if not keys:
        raise UserError(f"the LMDB database '{path}' holds no records.")
    keys.sort(key=int if all(map(bytes.isdigit, keys)) else None)
    return [
        Picture(key.decode(errors="backslashreplace"), partial(_open_record, database, key), database.stamp)
        for key in keys
    ]


def _of_one_size(pictures: list[Picture], size: int) -> tuple[list[Picture], tuple[str, ...]]:
    """Return the pictures of one size where a database holds each in several, and a sentence that says so.

    Such databases have the keys SIZE-NUMBER and "length". The size is the smallest one at or above `size`, or else the
    largest.
    """
    sizes: dict[int, list[Picture]] = {}
    for picture in pictures:
        if match := re.fullmatch(r"(\d{1,5})-\d+", picture.name):
            sizes.setdefault(int(match[1]), []).append(picture)
        elif picture.name != "length":
            return pictures, ()
    if not sizes or "length" not in {picture.name for picture in pictures}:
        return pictures, ()
    used = min((candidate for candidate in sizes if candidate >= size), default=max(sizes))
    note = f"the database holds pictures of the sizes {', '.join(map(str, sorted(sizes)))}; used are those of {used}"
    return sizes[used], (note,) if len(sizes) > 1 else ()


class _Database:
    """A database that is open for reading, until the last picture that refers to the database is gone."""

    def __init__(self, path: Path, lmdb: ModuleType) -> None:
        file = path / DATA_FILE if path.is_dir() else path
        stat = file.stat()
        if not file.is_file():
            raise UserError(f"'{file}' is not a regular file; expected an LMDB database.")  # a pipe would block forever
        self._path = path
        self.stamp = f"{path.name} {stat.st_size} {stat.st_mtime_ns}"
        # Without a lock, nothing is written, so that the disk may be read-only.
        self._environment = lmdb.open(str(path), subdir=path.is_dir(), readonly=True, lock=False)
        expected = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        if stat.st_size < expected:
            self._environment.close()
            raise UserError(f"the LMDB database '{path}' is damaged. Copy the database again.")

    def keys(self) -> list[bytes]:
        """Return all keys. Raises UserError for a key that is damaged: it is not found in its place, or is another's.

        LMDB has no checksums, so that a damaged value stays unnoticed where it can be decoded.
        """
        with self._environment.begin(buffers=True) as transaction:
            count = transaction.stat()["entries"]
            # Damaged pages may lead back to earlier ones.
            keys = [bytes(key) for key in islice(transaction.cursor().iternext(values=False), count + 1)]
            is_whole = len(set(keys)) == len(keys) == count
            if not is_whole or any(transaction.get(key) is None for key in keys):
                raise UserError(f"the LMDB database '{self._path}' has damaged keys. Copy the database again.")
        return keys

    def get(self, key: bytes) -> bytes:
        with self._environment.begin() as transaction:  # of this call alone: the calls are in many threads
            return transaction.get(key, b"")


# LMDB refuses to open a database twice in one process.
_open_databases: WeakValueDictionary[str, _Database] = WeakValueDictionary()


def _opened(path: Path) -> _Database:
    lmdb = import_lmdb()
    with _readable(path):
        real = os.path.realpath(path)
        if (database := _open_databases.get(real)) is None:
            database = _open_databases[real] = _Database(path, lmdb)
        return database


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turn the errors of reading a database into a UserError."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"the LMDB database '{path}' does not exist; expected a folder with {DATA_FILE}.") from error
    except (import_lmdb().Error, OSError) as error:
        raise UserError(
            f"the LMDB database '{path}' cannot be read ({str(error).removeprefix(f'{path}: ')}). Check the file, or "
            "copy the database again."
        ) from error


def import_lmdb() -> ModuleType:
    """Import the package lmdb. Raises UserError where the extra is not installed."""
    return import_extra("lmdb", "the library of LMDB databases", "lmdb")


def _open_record(database: _Database, key: bytes) -> IO[bytes] | Image.Image:
    """Return the raw image in a value, or else the value as an open file.

    The length of an encoded picture may be that of a raw image by chance, so that the content decides too.
    """
    value = database.get(key)
    side = math.isqrt(len(value) // 3)
    if side and len(value) == 3 * side**2 and not _is_encoded(value):
        return Image.frombytes("RGB", (side, side), value)
    return io.BytesIO(value)


def _is_encoded(value: bytes) -> bool:
    try:
        with open_image(io.BytesIO(value)):
            return True
    except Exception:  # Pillow raises almost any exception for what is no picture
        return False


# --------------------------------------------------------------------------------------------------------- writing


def write_lmdb(folder: Path, data: Data, encode: bool = False, progress: bool = False) -> None:
    """Write a data set as LMDB databases in the original NVAE's layout.

    folder: a new or empty folder; train.lmdb, validation.lmdb and, with a test part, test.lmdb appear in the folder
    together when all are complete. Keys are the decimal indices 0, ..., N - 1. A value is the bytes of an RGB image,
    uint8 (S, S, 3), or with `encode` a PNG file, which the original program does not expect. Raises UserError, and
    WriteError for a disk that is full.
    """
    lmdb = import_lmdb()
    with atomic_folder(folder) as temporary:
        for part, name in DATABASES.items():
            if (images_u8 := getattr(data, part)) is not None:
                _write_database(lmdb, temporary / name, images_u8, encode, progress)


def _write_database(lmdb: ModuleType, path: Path, images_u8: Tensor, encode: bool, progress: bool) -> None:
    bar = tqdm(total=len(images_u8), desc=f"writing {path.name}", leave=False, disable=not progress, delay=1)
    try:
        # The folder is private until it is complete: no lock is needed, and one flush at the end.
        with bar, lmdb.open(str(path), map_size=INITIAL_BYTES, lock=False, sync=False) as environment:
            for number, chunk in enumerate(chunks(images_u8, CHUNK)):
                _put(
                    lmdb,
                    environment,
                    {str(i).encode(): _value(image, encode) for i, image in enumerate(chunk, number * CHUNK)},
                )
                bar.update(len(chunk))
            environment.sync(True)
    except lmdb.Error as error:
        # The error has no errno, and LMDB calls a write that a full disk cuts short an input/output error.
        is_full = any(os.strerror(code) in str(error) for code in DISK_FULL)
        is_full = is_full or shutil.disk_usage(path.parent).free < MIN_FREE_BYTES
        raise OSError(errno.ENOSPC if is_full else errno.EIO, str(error)) from error


def _put(lmdb: ModuleType, environment: Any, records: dict[bytes, bytes]) -> None:
    """Write records in one transaction; double the size of the database until they fit."""
    while True:
        try:
            with environment.begin(write=True) as transaction:
                for key, value in records.items():
                    transaction.put(key, value)
            return
        except lmdb.MapFullError:
            environment.set_mapsize(2 * environment.info()["map_size"])


def _value(image_u8: Tensor, encode: bool) -> bytes:
    """Return the value for an image, uint8 (C, S, S)."""
    if not encode:  # the original's raw images have three channels
        return image_u8.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy().tobytes()
    array = image_u8.permute(1, 2, 0).contiguous().numpy()
    buffer = io.BytesIO()
    Image.fromarray(array[:, :, 0] if len(image_u8) == 1 else array).save(buffer, "PNG")
    return buffer.getvalue()
