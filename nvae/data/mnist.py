"""mnist and fashion_mnist: read from IDX files, which torchvision downloads if needed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nvae.data.images import Data, pad_or_resize
from nvae.data.paths import dataset_folder
from nvae.data.splits import split
from nvae.errors import UserError
from nvae.schema import ModelConfig

IMAGES_MAGIC = 2051
TORCHVISION_CLASSES = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
FILES = {"training": "train-images-idx3-ubyte", "test": "t10k-images-idx3-ubyte"}


def load_mnist(config: ModelConfig, progress: bool = False) -> Data:
    """Load the 60,000 training images and the 10,000 test images. Raises UserError."""
    name, folder = config.dataset.name, dataset_folder(config.dataset)
    class_name = TORCHVISION_CLASSES[name]
    folders = [folder, folder / class_name / "raw"]  # torchvision downloads to the second one
    files = _find_files(folders)
    if None in files.values():
        _download(name, class_name, folder)
        files = _find_files(folders)
    images = {part: pad_or_resize(_read_images(file), config.input_dimension) for part, file in files.items()}
    data = split(images["training"], images["test"], config.dataset)
    return data.map(lambda images_u8: images_u8.expand(-1, config.image_channels, -1, -1))


def _find_files(folders: list[Path]) -> dict[str, Path | None]:
    """Map each part to its file."""

    def find(name: str) -> Path | None:
        candidates = [folder / (name + suffix) for folder in folders for suffix in ("", ".gz")]
        return next((file for file in candidates if file.is_file()), None)

    return {part: find(name) for part, name in FILES.items()}


def _download(name: str, class_name: str, folder: Path) -> None:
    from torchvision import datasets  # takes a second

    try:
        getattr(datasets, class_name)(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{name} is not in '{folder}' and cannot be downloaded ({error}). Copy {' and '.join(FILES.values())} "
            "there (.gz or not), or set dataset.path to the folder that contains them."
        ) from error


def _read_images(file: Path) -> Tensor:
    """Read uint8 (N, 1, 28, 28) from an IDX file: magic number, count, rows, columns (big-endian), pixels."""
    try:
        content = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
    except (OSError, EOFError, zlib.error) as error:  # gzip raises any of them for a damaged file
        raise UserError(f"{file} cannot be read ({error}). Delete the file to download it again.") from error
    header = np.frombuffer(content[:16] if len(content) >= 16 else bytes(16), ">u4")
    if header[0] != IMAGES_MAGIC or len(content) != 16 + int(np.prod(header[1:], dtype=np.int64)):
        raise UserError(f"{file} is not a complete IDX file of images. Delete the file to download it again.")
    count, rows, columns = (int(value) for value in header[1:])
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=16).reshape(count, 1, rows, columns).copy())
