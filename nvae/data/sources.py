"""Get the files of the named data sets, which nvae/schema/named_datasets.yaml lists."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from nvae.data.downloads import SourceFile, fetch
from nvae.data.paths import dataset_folder, owner_of_files
from nvae.schema import NAMED_DATASETS, DownloadedDataset, ModelConfig
from nvae.system.errors import UserError, error_of_system, is_out_of_memory

Result = TypeVar("Result")

MEDMNIST_SETS = tuple(name for name, facts in NAMED_DATASETS.items() if facts.extra == "medmnist")
MEDMNIST_SIZES = (28, 64, 128, 224)


def obtain(config: ModelConfig, progress: bool = False, again: bool = False) -> dict[str, Path]:
    """Return where the content of each of the `source_files` is, after downloading what is missing.

    again: repeat downloads and the unpacking of archives. Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, DownloadedDataset)
    files = source_files(dataset, config.input_dimension)
    homepage = NAMED_DATASETS[dataset.name].homepage
    return fetch(owner_of_files(dataset.name), files, dataset_folder(dataset), homepage, progress, again)


def obtain_and_read(config: ModelConfig, read: Callable[[dict[str, Path]], Result], progress: bool = False) -> Result:
    """Return what `read` reads from the files of a data set; files that it refuses are obtained again, once.

    read: raises RuntimeError or OSError for files that are damaged or missing, as torchvision's data sets do.
    Raises UserError.
    """
    assert isinstance(config.dataset, DownloadedDataset)
    name, folder = config.dataset.name, dataset_folder(config.dataset)
    for again in (False, True):
        paths = obtain(config, progress, again)
        try:
            return read(paths)
        except (RuntimeError, OSError) as error:
            if is_out_of_memory(error):
                raise
            cause = error_of_system(error)
            if cause is not None and cause.errno not in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
                raise UserError(f"{name} in '{folder}' cannot be read: {cause.strerror}. Check the disk.") from error
            reason = error
    raise UserError(f"{name} in '{folder}' is damaged ({reason}). Delete its files to download it again.") from reason


def extra_of(name: str) -> str | None:
    """Return the name of the extra that a data set needs, None if it needs none."""
    if name == "lmdb":
        return "lmdb"
    return NAMED_DATASETS[name].extra if name in NAMED_DATASETS else None


def source_files(dataset: DownloadedDataset, size: int) -> dict[str, SourceFile]:
    """Return the files of a data set that its loader reads, by the part or the role of each.

    size: width and height of the images of the model; some data sets are published in several sizes.
    """
    keys = dataset.model_dump() | {"suffix": medmnist_suffix(size)}

    def complete(value: str | list[str]) -> Any:
        return value.format(**keys) if isinstance(value, str) else tuple(text.format(**keys) for text in value)

    return {
        part: SourceFile(**{key: complete(value) for key, value in facts.items() if key != "when"})
        for part, facts in NAMED_DATASETS[dataset.name].files.items()
        if facts.get("when", {}).items() <= keys.items()
    }


def medmnist_suffix(size: int) -> str:
    """Return the ending of the file with the smallest published images of at least this size, or the largest ones."""
    published = next((known for known in MEDMNIST_SIZES if known >= size), MEDMNIST_SIZES[-1])
    return "" if published == MEDMNIST_SIZES[0] else f"_{published}"
