"""mnist and fashion_mnist: from IDX files where they lie, else downloaded by torchvision."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.nn import functional

from nvae.data.images import HOW_TO_SAY, Data, resized
from nvae.errors import UserError
from nvae.schema import ModelConfig

SIDE = 28
IMAGES_MAGIC = 2051
_SETS = {"mnist": torchvision.datasets.MNIST, "fashion_mnist": torchvision.datasets.FashionMNIST}
_FILES = {"training": "train-images-idx3-ubyte", "validation": "t10k-images-idx3-ubyte"}


def load_mnist(config: ModelConfig) -> Data:
    """The 60,000 images for training, and the set's own 10,000 test images for validation. Raises UserError."""
    name, folder = config.dataset.name, Path(config.dataset.path).expanduser()
    dataset = _SETS[name]
    places = [folder, folder / dataset.__name__ / "raw"]  # as they come, or where torchvision puts them
    found = {part: _find(places, file) for part, file in _FILES.items()}
    if not all(found.values()):
        try:
            dataset(folder, download=True)
        except (OSError, RuntimeError) as error:
            raise UserError(
                f"{name} is not in '{folder}' and cannot be downloaded ({error}); put {' and '.join(_FILES.values())} "
                f"there (.gz or not), or say where they are {HOW_TO_SAY}."
            ) from error
        found = {part: _find(places, file) for part, file in _FILES.items()}
    size, channels = config.input_dimension, config.image_channels
    return Data(
        **{part: _fitted(_read_images(file), size).expand(-1, channels, -1, -1) for part, file in found.items()}
    )


def _find(places: list[Path], name: str) -> Path | None:
    candidates = [place / (name + ending) for place in places for ending in ("", ".gz")]
    return next((file for file in candidates if file.is_file()), None)


def _read_images(file: Path) -> Tensor:
    """uint8 (N, 1, 28, 28) from an IDX file: magic number, count, rows, columns, all big-endian, then the pixels."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # what gzip makes of a damaged file
        raise UserError(f"{file} cannot be read ({error}); delete it and it is downloaded again.") from error
    header = np.frombuffer(content[:16] if len(content) >= 16 else bytes(16), ">u4")
    if header[0] != IMAGES_MAGIC or len(content) != 16 + int(np.prod(header[1:], dtype=np.int64)):
        raise UserError(f"{file} is not a whole IDX file of images; delete it and it is downloaded again.")
    count, rows, columns = (int(value) for value in header[1:])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, rows, columns).copy())


def _fitted(images: Tensor, size: int) -> Tensor:
    """To size x size. 32 is 28 with a black margin of 2, as networks that halve need it; others are resampled."""
    return functional.pad(images, (2, 2, 2, 2)) if size == SIDE + 4 else resized(images, size)
