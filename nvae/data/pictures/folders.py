"""List the files of a folder as pictures, and read pictures of one size as they are."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.pictures.decoding import Picture
from nvae.data.pictures.image_files import open_image, read_content
from nvae.data.pictures.report import PictureError, is_other_file
from nvae.system.errors import UserError

# Names of subfolders, and words in names of files, that are the parts of a data set.
PART_FOLDERS = {
    "train": "training",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}


def part_named_in(path: str) -> str:
    """Return the part of a data set that is a word of a path, such as test in faces-test.npy; without one, training."""
    words = (PART_FOLDERS.get(word) for word in re.split(r"[/._-]", path.lower()))
    return next(filter(None, words), "training")


def list_pictures(folder: Path) -> list[Picture]:
    """List all files in a folder and its subfolders but hidden ones, sorted by key. Links are followed.

    Whether a file is a picture is decided by its content, when the file is opened. A subfolder that cannot be read is a
    picture that cannot be opened.
    """
    pictures: list[Picture] = []

    def name_of(path: str) -> str:
        return Path(path).relative_to(folder).as_posix()

    def report_unreadable(error: OSError) -> None:
        pictures.append(Picture(f"{name_of(error.filename)}/", PictureError("unreadable", error.strerror or ""), ""))

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
    return sorted(pictures, key=lambda picture: (picture.key, picture.name))


def _file_picture(name: str, file: str) -> Picture:
    try:
        status = os.stat(file)
    except OSError as error:
        return Picture(name, PictureError("unreadable", error.strerror or ""), "")
    if not stat.S_ISREG(status.st_mode):  # opening a pipe would block forever
        return Picture(name, PictureError("not an image", "no regular file"), "")
    return Picture(name, lambda: open(file, "rb"), f"{status.st_size} {status.st_mtime_ns} {status.st_mode}")


def read_pictures(folder: Path, mode: str, progress: bool = False) -> Tensor:
    """Read the pictures in a folder and its subfolders, all of one size: uint8 (N, C, H, W), in the order of the paths.

    mode: of Pillow, "L" or "RGB". Raises UserError.
    """
    images: list[np.ndarray] = []
    pictures = tqdm(list_pictures(folder), f"reading {folder}", unit=" files", leave=False, disable=not progress)
    for picture in pictures:
        file = folder / picture.name
        try:
            with picture.open() as opened, open_image(read_content(opened)) as image:
                images.append(np.asarray(image.convert(mode)))
        except Exception as error:  # Pillow's decoders raise almost any exception for a damaged file
            if is_other_file(picture.name):
                continue
            reason = str(error) or getattr(error, "kind", type(error).__name__)
            raise UserError(f"the picture '{file}' is damaged: {reason}. Get the data set again.") from error
        if images[-1].shape != images[0].shape:
            height, width = images[-1].shape[:2]
            raise UserError(
                f"the picture '{file}' has another size than the others: got {width} x {height}, expected "
                f"{images[0].shape[1]} x {images[0].shape[0]}. Get the data set again."
            )
    if not images:
        raise UserError(f"the folder '{folder}' holds no pictures. Delete the folder to get the data set again.")
    stacked = torch.from_numpy(np.stack(images))
    return stacked[:, None] if mode == "L" else stacked.permute(0, 3, 1, 2).contiguous()
