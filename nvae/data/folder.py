"""folder: all pictures of a folder or an archive, converted to the model's size."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import NoReturn

from nvae.data.archives import open_archive
from nvae.data.images import Data
from nvae.data.paths import dataset_path
from nvae.data.pictures import DecodedPictures, Picture, Refusal, decode_pictures, with_reports
from nvae.errors import UserError
from nvae.schema import ModelConfig

PARTS = ("training", "validation", "test")
PART_FOLDERS = {"train": 0, "val": 1, "valid": 1, "validation": 1, "test": 2}  # indices of PARTS
NO_PART = len(PARTS)


def load_folder(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the pictures of the folder or archive `dataset.path`, subfolders included. Symbolic links are followed.

    The subfolders train/ and val/, where both have files, are the parts, with test/ where present. Otherwise a
    picture's name alone decides between training and validation, so adding a picture moves no other picture to the
    other part (except in tiny sets, where each part needs at least one). Files that cannot be used and duplicates are
    left out and named in the report. cache: keep the images for later runs, see `decode_pictures`. Raises UserError.
    """
    path = dataset_path(config.dataset)
    if not path.exists():
        raise UserError(
            f"the image folder '{path}' does not exist. Set dataset.path to the folder of your images, or set "
            "dataset.name to toy_faces to train on built-in images."
        )
    with nullcontext(_folder_pictures(path)) if path.is_dir() else open_archive(path) as pictures:
        has_parts = {0, 1} <= {_part(picture) for picture in pictures if not isinstance(picture.open, Refusal)}
        if has_parts:
            pictures = [_refuse_without_part(picture) for picture in pictures]
            pictures.sort(key=lambda picture: (_part(picture), -_rank(picture)))
        else:
            pictures = sorted(pictures, key=_rank, reverse=True)
        decoded = decode_pictures(pictures, config, str(path), progress, leave_out_duplicates=True, cache=cache)
    kept = [pictures[i] for i in decoded.indices]
    return _by_folder(kept, decoded) if has_parts else _by_name(kept, decoded, config.dataset.validation_fraction)


def _by_folder(pictures: Sequence[Picture], decoded: DecodedPictures) -> Data:
    counts = Counter(map(_part, pictures))
    for part in (0, 1):
        if not counts[part]:
            _refuse(decoded, f"0 {PARTS[part]} pictures that can be used; expected at least one")
    training, validation, test = decoded.images_u8.split([counts[0], counts[1], counts[2]])
    return with_reports(Data(training, validation, test if len(test) else None), decoded)


def _by_name(pictures: Sequence[Picture], decoded: DecodedPictures, validation_fraction: float) -> Data:
    if len(pictures) < 2:
        _refuse(decoded, f"{len(pictures)} pictures that can be used, subfolders included; expected at least two")
    below = sum(_rank(picture) < validation_fraction for picture in pictures)
    training = len(pictures) - min(max(below, 1), len(pictures) - 1)
    return with_reports(Data(decoded.images_u8[:training], decoded.images_u8[training:]), decoded)


def _refuse(decoded: DecodedPictures, problem: str) -> NoReturn:
    reasons = "".join(f" {warning}." for warning in decoded.report.warnings())
    raise UserError(f"'{decoded.report.source}' holds {problem}.{reasons} Set dataset.path to your pictures.")


# ------------------------------------------------------------------------------------------------ files and names


def _folder_pictures(folder: Path) -> list[Picture]:
    """List all files but hidden ones. Whether a file is a picture is decided by its content, when it is opened."""
    pictures: list[Picture] = []

    def name_of(path: str) -> str:
        return Path(path).relative_to(folder).as_posix()

    def report_unreadable(error: OSError) -> None:
        pictures.append(Picture(f"{name_of(error.filename)}/", Refusal("unreadable", error.strerror), ""))

    seen: set[str] = set()  # links may form a circle
    for parent, subfolders, names in os.walk(folder, onerror=report_unreadable, followlinks=True):
        if (real := os.path.realpath(parent)) in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        prefix = "" if Path(parent) == folder else f"{name_of(parent)}/"
        files = (name for name in names if not name.startswith("."))
        pictures.extend(_file_picture(prefix + name, os.path.join(parent, name)) for name in files)
    return pictures


def _file_picture(name: str, file: str) -> Picture:
    try:
        status = os.stat(file)
    except OSError as error:
        return Picture(name, Refusal("unreadable", error.strerror), "")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        return Picture(name, Refusal("not an image", "no regular file"), "")
    return Picture(name, partial(open, file, "rb"), f"{status.st_size} {status.st_mtime_ns} {status.st_mode}")


def _rank(picture: Picture) -> float:
    """Map the picture's name to a number in [0, 1)."""
    name = picture.name.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48


def _part(picture: Picture) -> int:
    """Return the index of the part whose folder holds the picture, or NO_PART."""
    folder, _, name = picture.name.partition("/")
    return PART_FOLDERS.get(folder.lower(), NO_PART) if name else NO_PART


def _refuse_without_part(picture: Picture) -> Picture:
    if _part(picture) < NO_PART or isinstance(picture.open, Refusal):
        return picture
    return picture._replace(open=Refusal("no part"))
