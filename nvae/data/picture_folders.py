"""Find the pictures in the folders of public data sets, and read pictures of one size as they are."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.image_files import open_image
from nvae.errors import UserError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")  # of public data sets


def picture_files(folder: Path) -> list[Path]:
    """Return the pictures in a folder and its subfolders, sorted by path: file systems have an order of their own.

    Raises UserError for a folder that cannot be read, or without pictures.
    """

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder '{error.filename}' cannot be read: {error.strerror}. Check its permissions.")

    files = [
        Path(parent, name)
        for parent, _, names in os.walk(folder, onerror=refuse, followlinks=True)
        for name in names
        if name.lower().endswith(SUFFIXES) and not name.startswith(".")
    ]
    if not files:
        raise UserError(f"the folder '{folder}' holds no pictures. Delete the folder to get the data set again.")
    return sorted(files)


def read_pictures(folder: Path, mode: str, progress: bool = False) -> Tensor:
    """Read the pictures in a folder and its subfolders, all of one size: uint8 (N, C, H, W), in the order of the paths.

    mode: of Pillow, "L" or "RGB". Raises UserError.
    """
    files = picture_files(folder)
    images: list[np.ndarray] = []
    for file in tqdm(files, f"reading {folder}", unit=" images", leave=False, disable=not progress):
        try:
            with open_image(file) as image:
                images.append(np.asarray(image.convert(mode)))
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises any of them for a damaged file
            raise UserError(f"the picture '{file}' is damaged: {error}. Get the data set again.") from error
        if images[-1].shape != images[0].shape:
            height, width = images[-1].shape[:2]
            raise UserError(
                f"the picture '{file}' has another size than the others: got {width} x {height}, expected "
                f"{images[0].shape[1]} x {images[0].shape[0]}. Get the data set again."
            )
    stacked = torch.from_numpy(np.stack(images))
    return stacked[:, None] if mode == "L" else stacked.permute(0, 3, 1, 2).contiguous()
