"""Files of `torch.save`: written atomically with a digest, and read with checks against damage and hostile files."""

from __future__ import annotations

import copy
import hashlib
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae.system.errors import UserError, error_of_system, is_out_of_memory
from nvae.system.files import WriteError, atomic_write, check_regular, text_in_place_of

ZIP_MAGIC = b"PK"  # torch.save writes zip files since PyTorch 1.6
DIGEST = "digest"  # the key of a file's digest
EXPECTED = "expected a .checkpoint or .model file of this program"
PLAIN = (str, int, float, bool, type(None))


class CheckpointError(UserError):
    """A checkpoint or model file that is missing, damaged, of another program, or cannot be read or written."""


class DamagedFileError(CheckpointError):
    """A file that is damaged, was cut off, or is empty."""


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


def exists(path: Path) -> bool:
    """Return whether there is a file. Raises CheckpointError where the system cannot tell, which Path.exists hides."""
    with explained_reading(path, EXPECTED):
        try:
            path.stat()
        except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: no possible name
            return False
    return True


def read_whole(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Read a file of `write_whole`, with its tensors in the CPU's memory, and compare its checksums and its digest.

    mapped: leave the tensors in the mapped file, for a caller that keeps none of them: the file stays open, but no
    memory is taken. Files of earlier versions have no digest. Reading never takes much more memory than the file is
    large. Raises DamagedFileError, or CheckpointError for a file that cannot be read or is of another program.
    """
    with explained_reading(path, EXPECTED):
        content = unpickled(path, EXPECTED)
        check_values(content, path.stat().st_size)
        if not mapped:
            content = copy.deepcopy(content)  # tensors that share a storage share one in the copy too
        if DIGEST in content and content.pop(DIGEST) != content_digest(content):
            raise ValueError("the digest differs")
    return content


def unpickled(path: Path, expected: str, others: Sequence[Any] = (), before_zip: bool = False) -> dict[str, Any]:
    """Return the dictionary in a file of `torch.save`, without running code; its tensors stay in the mapped file.

    others: what the file may have beside tensors and plain values, for `torch.serialization.safe_globals`. before_zip:
    allow the format before PyTorch 1.6. Call this in `explained_reading`.
    """
    check_regular(path)
    with open(path, "rb") as file:
        is_zip = file.read(len(ZIP_MAGIC)) == ZIP_MAGIC
    if is_zip:
        _check_records(path, expected)
    elif not before_zip:
        raise zipfile.BadZipFile
    with torch.serialization.safe_globals(list(others)), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch, about files of other programs, which are refused in a sentence
        # Mapped: torch then finds a record's numbers inside the file only, whatever size the record claims to have.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} was written by another program: {expected}.")
    return content


@contextmanager
def explained_reading(path: Path, expected: str) -> Iterator[None]:
    """Turn what the reading of a file raises into a CheckpointError, but for a lack of memory.

    Only what the file holds is damage. An error of the system, which may pass, is none: nobody may then replace the
    file.
    """
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # damaged files make zipfile and torch raise almost anything
        if (cause := error_of_system(error)) is not None:
            raise CheckpointError(
                f"{path} cannot be read: {cause.strerror}. Check the disk, the memory and the file's permissions."
            ) from error
        if is_out_of_memory(error):
            raise
        if text := text_in_place_of(path):
            raise CheckpointError(f"{path} is {text}") from error
        if isinstance(error, pickle.UnpicklingError) and (unsafe := re.search(r"GLOBAL (\S+)", str(error))):
            raise CheckpointError(
                f"{path} was written by another program: got {unsafe[1][:100]!r} in the file, which could run code; "
                f"{expected}."
            ) from error
        raise DamagedFileError(f"{path} is damaged, was cut off, or is no checkpoint: {expected}.") from error


def _check_records(path: Path, expected: str) -> None:
    """Raise BadZipFile unless all records of a zip file are whole, and stored so that torch can map them.

    Raises CheckpointError for a zip file of another program.
    """
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
        names = {Path(record.filename).name for record in records}
        if "data.pkl" not in names or "constants.pkl" in names:  # any other zip file, or TorchScript
            raise CheckpointError(f"{path} was written by another program: {expected}.")
        if any(record.compress_type != zipfile.ZIP_STORED for record in records):
            raise zipfile.BadZipFile("a record is compressed")
        if sum(record.file_size for record in records) > path.stat().st_size:
            raise zipfile.BadZipFile("records overlap each other")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def check_values(value: Any, max_size: int) -> None:
    """Check nested containers of a file: plain values, and dense, real tensors with whole storages.

    max_size: the size of the file. Its values and storages together cannot be more, unless a hostile file repeats them.
    Raises ValueError for more, and for anything else.
    """
    left, parts, storages = max_size, [value], set()
    while parts:
        part = parts.pop()
        left -= 1
        if isinstance(part, dict):
            parts += [*part, *part.values()]
        elif type(part) in (list, tuple):
            parts += part
        elif isinstance(part, Tensor) and part.device.type == "cpu" and not part.is_complex():
            storage = part.untyped_storage()  # not of a sparse tensor
            if part.numel() * part.itemsize > storage.nbytes():  # expanded, by strides of zero
                raise ValueError("a tensor is larger than its storage")
            if (place := (storage.data_ptr(), storage.nbytes())) not in storages:
                storages.add(place)
                left -= storage.nbytes()
        elif type(part) not in PLAIN:
            raise ValueError(f"got {type(part).__name__}, expected tensors and plain values")
        if left < 0:
            raise ValueError("the content is larger than the file")


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


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return a tensor's numbers as bytes, in the order of its indices."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
