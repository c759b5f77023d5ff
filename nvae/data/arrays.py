"""Arrays of .npy and .npz files of NumPy, read in parts. No code in a file is run, and no header fills the memory."""

from __future__ import annotations

import io
import math
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from nvae.data.cache import new_images
from nvae.system.errors import Remedy, UserError
from nvae.system.files import atomic_write, text_in_place_of, zip_members
from nvae.system.memory_maps import releasing

CHUNK_BYTES = 2**26  # of values that are read at once
MAX_HEADER = 10_000  # bytes, NumPy's own limit


class StoredArray(NamedTuple):
    """An array of a file, by what its header says."""

    name: str  # of the member of an .npz file; empty for an .npy file
    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    offset: int  # of the values, in bytes

    def __str__(self) -> str:
        return f"the array '{self.name}'" if self.name else "the array"


class ArrayFile:
    """The `arrays` of an .npz or .npy file by their names, each with as many bytes as its shape says."""

    def __init__(self, path: Path, advice: str, *remedies: Remedy) -> None:
        """advice: the last sentence of errors. remedies: of the errors. Raises UserError for a damaged file."""
        self.path, self._advice, self._remedies = path, advice, remedies
        with self._readable():
            with open(path, "rb") as stream:
                self._is_zip = stream.read(2) == b"PK"
            if self._is_zip:
                with zipfile.ZipFile(path) as archive:
                    sizes = {member.filename: member.file_size for member in zip_members(archive)}
                    for name in sizes:
                        archive.open(name).close()  # compares the two places of the name: a damaged one must not hide
                names = {name.removesuffix(".npy"): size for name, size in sizes.items() if name.endswith(".npy")}
            else:
                names = {"": path.stat().st_size}
            self.arrays = {name: self._read_header(name, size) for name, size in names.items()}

    def uint8(self, name: str) -> StoredArray:
        """Return one of the arrays. Raises UserError if there is no array of this name with the type uint8."""
        array = self.arrays.get(name)
        if array is None or array.dtype != np.uint8:
            found = "no such array" if array is None else f"the type {array.dtype}"
            raise UserError(f"{self.path}: got {found}, expected an array '{name}' of uint8. {self._advice}")
        return array

    def chunks(self, array: StoredArray, rows: int) -> Iterator[np.ndarray]:
        """Yield at most `rows` consecutive items at once of a uint8 array, in memory that the caller may change.

        Of an array in Fortran order, the items are those of the transposed array. Raises UserError for a damaged file,
        also where the values do not have the checksum.
        """
        count, *shape = reversed(array.shape) if array.fortran_order else array.shape
        row_bytes = math.prod(shape)
        rows = max(1, min(rows, CHUNK_BYTES // max(1, row_bytes)))
        with self._readable(), self._opened(array.name) as stream:
            stream.read(array.offset)
            for start in range(0, count, rows):
                length = min(rows, count - start)
                yield np.frombuffer(bytearray(stream.read(length * row_bytes)), np.uint8).reshape(length, *shape)
            stream.read(1)  # at the end of a member, zipfile compares the checksum

    def read(self, name: str) -> Tensor:
        """Return a uint8 array, above the memory limit in a memory-mapped file. Raises UserError."""
        array = self.uint8(name)
        values = new_images(*(reversed(array.shape) if array.fortran_order else array.shape))
        start = 0
        for chunk in releasing(self.chunks(array, CHUNK_BYTES)):
            values[start : start + len(chunk)] = torch.from_numpy(chunk)
            start += len(chunk)
        return values.permute(*reversed(range(values.ndim))) if array.fortran_order else values

    def _read_header(self, name: str, size: int) -> StoredArray:
        with self._opened(name) as stream:
            start = io.BytesIO(stream.read(MAX_HEADER))
        is_first = np.lib.format.read_magic(start) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        array = StoredArray(name, *read(start), start.tell())
        expected, got = math.prod(array.shape) * array.dtype.itemsize, size - array.offset
        if min(array.shape, default=0) < 0 or (expected != got and not array.dtype.hasobject):
            raise ValueError(f"{array} has {got:,} bytes, expected {expected:,} for the shape {array.shape}")
        return array

    @contextmanager
    def _opened(self, name: str) -> Iterator[IO[bytes]]:
        if self._is_zip:
            with zipfile.ZipFile(self.path) as archive, archive.open(f"{name}.npy") as stream:
                yield stream
        else:
            with open(self.path, "rb") as stream:
                yield stream

    @contextmanager
    def _readable(self) -> Iterator[None]:
        """Turn the errors of reading the file into a UserError."""
        try:
            yield
        except (UserError, MemoryError):
            raise
        except Exception as error:  # zipfile and NumPy raise almost any exception for a damaged file
            if self.path.is_file() and (text := text_in_place_of(self.path)):
                raise UserError(f"{self.path} is {text}", *self._remedies) from error
            raise UserError(
                f"{self.path} cannot be read ({str(error) or type(error).__name__}): not a sound .npz or .npy file. "
                f"{self._advice}",
                *self._remedies,
            ) from error


def write_npz(path: Path, count: int, batches: Iterable[np.ndarray]) -> None:
    """Write batches of images, uint8 (n, S, S, C), `count` in all, as the array `arr_0` of an .npz file, part by part.

    `arr_0` (N, S, S, C) is what `numpy.savez` writes, and what public programs that compute the Frechet distance read.
    Raises WriteError.
    """
    with (
        atomic_write(path) as temporary,
        zipfile.ZipFile(temporary, "w") as archive,
        archive.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        for number, batch in enumerate(batches):
            if number == 0:
                header = {"descr": "|u1", "fortran_order": False, "shape": (count, *batch.shape[1:])}
                np.lib.format.write_array_header_1_0(member, header)
            member.write(batch.tobytes())
