"""Decode pictures of any size and format into uint8 images of a model's size."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.image_files import open_image, without_size_warnings
from nvae.data.images import fit
from nvae.schema import ModelConfig

MAX_NAMED = 5  # files that a warning names; the report names all


class Picture(NamedTuple):
    """One picture of a data set: a file, a member of an archive, or a record of a database."""

    name: str  # unique in the data set, with slashes; messages show the name, and a folder's split depends on it alone
    open: Callable[[], BinaryIO | Image.Image]  # called in a thread
    stamp: str  # changes when the content changes: of the size and the time of change, for example


@dataclass(frozen=True)
class PictureReport:
    """What happened to the pictures of a data set."""

    source: str  # the folder or archive
    read: int = 0  # number of pictures that became images
    left_out: dict[str, list[str]] = field(default_factory=dict)  # of each kind of fault: the names and reasons
    notes: tuple[str, ...] = ()  # sentences on pictures that were changed in an unusual way

    @property
    def num_left_out(self) -> int:
        return sum(map(len, self.left_out.values()))

    def warnings(self) -> tuple[str, ...]:
        """Return at most a few sentences for the user."""
        if not self.num_left_out:
            return self.notes
        lines = [line for lines in self.left_out.values() for line in lines]
        more = f"; and {len(lines) - MAX_NAMED} more" if len(lines) > MAX_NAMED else ""
        total = self.read + self.num_left_out
        left_out = f"{len(lines)} of {total} images cannot be read and are left out: {'; '.join(lines[:MAX_NAMED])}"
        return (*self.notes, left_out + more)


class DecodedPictures(NamedTuple):
    """Images of the pictures that can be used, in the order of the pictures."""

    images_u8: Tensor  # uint8 (N, C, S, S)
    indices: list[int]  # of the picture of each image
    report: PictureReport


def decode_pictures(
    pictures: Sequence[Picture],
    config: ModelConfig,
    source: str,
    progress: bool = False,
    leave_out_duplicates: bool = False,
) -> DecodedPictures:
    """Decode pictures in parallel, with the keys of a `PictureDataset` in `config.dataset`.

    A picture that cannot be used is left out and named in the report, never an error. source: the name of the folder or
    archive in messages. leave_out_duplicates: of pictures with the same content, use the first one alone. The number of
    threads is `training_parameters.workers`.
    """
    size, channels, max_pixels = config.input_dimension, config.image_channels, config.dataset.max_image_pixels
    images_u8 = np.empty((len(pictures), channels, size, size), np.uint8)

    def read(picture: Picture) -> np.ndarray | str:
        try:
            with open_image(picture.open(), max_pixels) as image:
                return fit(image, size, channels)
        except Exception as error:  # Pillow's decoders raise almost any exception for a broken file
            return str(error) or type(error).__name__

    broken: list[str] = []
    indices: list[int] = []
    with ThreadPoolExecutor(config.training_parameters.workers or os.cpu_count()) as pool, without_size_warnings():
        bar = tqdm(pictures, f"reading {source}", unit=" images", leave=False, disable=not progress, delay=1)
        for i, (picture, result) in enumerate(zip(bar, pool.map(read, pictures), strict=True)):
            if isinstance(result, str):
                broken.append(f"{picture.name} ({result})")
            else:
                images_u8[len(indices)] = result
                indices.append(i)
    report = PictureReport(source, len(indices), {"broken": broken} if broken else {})
    return DecodedPictures(torch.from_numpy(images_u8)[: len(indices)], indices, report)
