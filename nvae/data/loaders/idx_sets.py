"""mnist, stacked_mnist, fashion_mnist, kmnist and emnist: read from IDX files."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvae.data.cache import new_images
from nvae.data.images import CHUNK, Data
from nvae.data.sources import obtain
from nvae.data.splits import split_arrays
from nvae.schema import ModelConfig, StackedMnistDataset
from nvae.system.errors import UserError
from nvae.system.seeds import seeded

GZIP_MAGIC, IMAGES_MAGIC = b"\x1f\x8b", 2051


def load_idx(config: ModelConfig, progress: bool = False) -> Data:
    """Load the training images and the test images. Raises UserError."""
    images = {part: _read_images(file) for part, file in obtain(config, progress).items()}
    if config.dataset.name == "emnist":
        images = {part: images_u8.swapaxes(2, 3) for part, images_u8 in images.items()}  # the file has columns first
    return split_arrays(config, [images["training"]], [images["test"]], pad=True)


def load_stacked_mnist(config: ModelConfig, progress: bool = False) -> Data:
    """Stack three random digits per image; an image depends on the seed, the part and its number alone.

    Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, StackedMnistDataset)
    counts = {"training": dataset.training_images, "test": dataset.test_images}
    parts = {}
    for part, file in obtain(config, progress).items():
        digits = _read_images(file)[:, 0]
        indices = torch.randint(
            len(digits), (counts[part], 3), generator=seeded(dataset.stack_seed, f"stacked {part} images")
        )
        parts[part] = new_images(counts[part], 3, *digits.shape[1:])
        for chosen, target in zip(indices.split(CHUNK), parts[part].split(CHUNK), strict=True):
            target.copy_(digits[chosen])
    return split_arrays(config, [parts["training"]], [parts["test"]], pad=True)


def _read_images(file: Path) -> Tensor:
    """Read uint8 (N, 1, 28, 28) from an IDX file: magic number, count, rows, columns (big-endian), pixels."""
    try:
        content = file.read_bytes()
        if content.startswith(GZIP_MAGIC):  # whatever the name: browsers decompress files and keep their names
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:  # gzip raises any of them for a damaged file
        raise UserError(f"{file} cannot be read ({error}). Delete the file to download it again.") from error
    header = np.frombuffer(content[:16] if len(content) >= 16 else bytes(16), ">u4")
    if header[0] != IMAGES_MAGIC or len(content) != 16 + int(np.prod(header[1:], dtype=np.int64)):
        raise UserError(f"{file} is not a complete IDX file of images. Delete the file to download it again.")
    count, rows, columns = (int(value) for value in header[1:])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, rows, columns).copy())
