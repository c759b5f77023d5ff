"""Files of `torch.save`: written atomically with a digest, and read with checks against damage and hostile files.

A file is refused before torch reads its tensors unless all its records are plain, whole and no larger than the file.
"""

from __future__ import annotations

import hashlib
import pickletools
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nvae.system.errors import UserError, is_out_of_memory
from nvae.system.files import WriteError, atomic_write

ZIP_MAGIC = b"PK"  # torch.save writes zip files
DIGEST = "digest"  # the key of a file's digest
DOS_ATTRIBUTES = 0xFFFF  # the part of a record's attributes that torch reads: 0x10 means a folder
KNOWN_FLAGS = 0x808  # sizes after the data, and names in UTF-8
EXPECTED = "expected a .checkpoint or .model file of this program"
PLAIN = (str, int, float, bool, type(None))
MAX_VALUES = 1_000_000  # of a file whose pickle is smaller: its containers may repeat each other
STORAGES = ("Float", "Double", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
# What tensors and plain values need. The list of torch.load is longer, and has types that take memory by themselves.
GLOBALS = {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", *(f"torch {name}Storage" for name in STORAGES)}


class CheckpointError(UserError):
    """A checkpoint or model file that is missing, damaged, of another program, or cannot be written."""


class DamagedFileError(CheckpointError):
    """A file that is damaged, was cut off, or is empty."""


class ForeignFileError(CheckpointError):
    """A file of another program."""


def write_whole(content: dict[str, Any], path: Path, keep_previous: bool = True) -> None:
    """Write a dictionary of tensors and plain values with its digest, atomically. Raises CheckpointError."""
    content = content | {DIGEST: content_digest(content)}
    try:
        with atomic_write(path, keep_previous) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's writer hides the OSError of a full disk
                hidden = error.__context__
                raise hidden if isinstance(hidden, OSError) else OSError(str(error).splitlines()[0]) from error
    except WriteError as error:
        kept = " The file saved before is unchanged." if path.exists() else ""
        raise CheckpointError(f"{error}{kept}") from error


def read_whole(path: Path) -> dict[str, Any]:
    """Read a file of `write_whole`, with its tensors in the CPU's memory, and compare its checksums and its digest.

    Files of earlier versions have no digest. Reading never takes much more memory than the file is large. Raises
    DamagedFileError, ForeignFileError, or CheckpointError for a file that may not be read.
    """
    try:
        with open(path, "rb") as file:
            if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
                raise DamagedFileError(f"{path} is not a checkpoint: {EXPECTED}.")
        limits = _limits(path)
        # Mapped: torch then finds a record's numbers inside the file only, whatever size the record claims to have.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(content, dict):
            raise ForeignFileError(f"{path} was written by another program: {EXPECTED}.")
        content = _Copy(*limits).of(content)
        if DIGEST in content and content.pop(DIGEST) != content_digest(content):
            raise ValueError("the digest differs")
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}. Check the file's permissions.") from error
    except Exception as error:  # damaged files make zipfile and torch raise almost anything
        if is_out_of_memory(error):
            raise
        raise DamagedFileError(f"{path} is damaged or was cut off.") from error
    return content


def content_digest(content: dict[str, Any]) -> str:
    """Return 32 hexadecimal digits that identify all tensors and plain values of nested containers.

    Takes about 1.7 s per GB on a CPU core, as SHA-256 does; writing to a disk takes longer. Raises TypeError for values
    that a file cannot hold.
    """
    digest = hashlib.blake2b(digest_size=16)

    def add(value: Any) -> None:
        if isinstance(value, Tensor):
            digest.update(f"tensor {value.dtype} {tuple(value.shape)} ".encode())
            digest.update(tensor_bytes(value))
        elif isinstance(value, dict):
            digest.update(f"dict {len(value)} ".encode())
            for key, part in value.items():
                add(key)
                add(part)
        elif isinstance(value, list | tuple):
            digest.update(f"{'list' if isinstance(value, list) else 'tuple'} {len(value)} ".encode())
            for part in value:
                add(part)
        elif type(value) in PLAIN:
            digest.update(f"{type(value).__name__} {value!a} ".encode())
        else:
            raise TypeError(f"expected tensors and plain values, got {type(value).__name__}")

    add({key: value for key, value in content.items() if key != DIGEST})
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's numbers as bytes (N,), uint8, in the order of its indices."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def check_records(archive: zipfile.ZipFile) -> None:
    """Raise BadZipFile unless torch reads all records of a zip file as they are: plain, distinct, within the file."""
    records = archive.infolist()
    for record in records:
        is_stored = record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
        if not is_stored or record.external_attr & DOS_ATTRIBUTES or record.flag_bits & ~KNOWN_FLAGS:
            raise zipfile.BadZipFile(f"{record.filename} is compressed or is no file")
    names = [record.filename for record in records]
    pickles = sum(name.endswith("data.pkl") for name in names)
    size = Path(archive.filename).stat().st_size
    if len(set(names)) < len(names) or pickles > 1 or sum(record.file_size for record in records) > size:
        raise zipfile.BadZipFile("records repeat or overlap each other")


def _limits(path: Path) -> tuple[int, int]:
    """Check everything that can be checked before torch reads a file; return the limits of `_Copy`.

    Raises ForeignFileError for a whole zip file without tensors and plain values, and anything for a damaged file.
    """
    foreign = ForeignFileError(f"{path} was written by another program: {EXPECTED}.")
    with zipfile.ZipFile(path) as archive:
        names = {name.rpartition("/")[2]: name for name in archive.namelist()}
        is_foreign = "data.pkl" not in names or "constants.pkl" in names  # any other zip file, or TorchScript
        try:
            check_records(archive)
        except zipfile.BadZipFile as error:
            raise foreign if is_foreign else error from None
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        if is_foreign:
            raise foreign
        pickled = archive.read(names["data.pkl"])
        tensors = [record for record in archive.infolist() if record.filename.rpartition("/")[0].endswith("/data")]
    used = {argument for opcode, argument, _ in pickletools.genops(pickled) if opcode.name == "GLOBAL"}
    if unknown := sorted(used - GLOBALS):
        raise ForeignFileError(
            f"{path} was written by another program: got {unknown[0][:100].replace(' ', '.')!r} in the file, more than "
            f"tensors and plain values, {EXPECTED}."
        )
    return sum(record.file_size for record in tensors), max(len(pickled), MAX_VALUES)


class _Copy:
    """Copies nested containers with their tensors from a mapped file to memory.

    max_bytes: of all storages together. max_values: in all containers together; more means that containers repeat each
    other. Raises ValueError for more, and for a tensor with more elements than its storage has.
    """

    def __init__(self, max_bytes: int, max_values: int) -> None:
        self._bytes, self._values = max_bytes, max_values
        self._storages: dict[tuple[int, int], torch.UntypedStorage] = {}

    def of(self, value: Any) -> Any:
        self._values -= 1
        if self._values < 0:
            raise ValueError("too many values")
        if isinstance(value, Tensor):
            return self._tensor(value)
        if isinstance(value, dict):
            return {self.of(key): self.of(part) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(self.of(part) for part in value)
        return value

    def _tensor(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if tensor.numel() * tensor.itemsize > storage.nbytes():  # expanded, by strides of zero
            raise ValueError("a tensor is larger than its storage")
        place = storage.data_ptr(), storage.nbytes()
        if place not in self._storages:
            self._bytes -= storage.nbytes()
            if self._bytes < 0:
                raise ValueError("tensors are larger than their records")
            self._storages[place] = storage.clone()
        copy = torch.empty(0, dtype=tensor.dtype)
        return copy.set_(self._storages[place], tensor.storage_offset(), tensor.shape, tensor.stride())
