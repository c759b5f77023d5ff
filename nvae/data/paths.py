"""Find the folder or file of a data set."""

from __future__ import annotations

from pathlib import Path

from nvae.schema import DownloadedDataset, FolderDataset, LmdbDataset, NpzDataset
from nvae.system.errors import Remedy, UserError


def dataset_path(dataset: FolderDataset | LmdbDataset | NpzDataset | DownloadedDataset) -> Path:
    """Return `dataset.path`, ~ expanded, or by default dataset/NAME.

    The file or folder may be missing. Raises UserError for a path that cannot be opened.
    """
    try:
        path = Path(dataset.path or f"dataset/{dataset.name}").expanduser()
        path.exists()
    except (OSError, RuntimeError) as error:  # RuntimeError: ~ with the name of no user
        raise UserError(
            f"dataset.path '{dataset.path}' cannot be opened: {getattr(error, 'strerror', error)}. Set dataset.path to "
            "the folder.",
            Remedy.DATASET_PATH,
        ) from error
    return path


def dataset_folder(dataset: LmdbDataset | DownloadedDataset) -> Path:
    """Return `dataset_path`. The folder may be missing. Raises UserError for anything but a folder."""
    folder = dataset_path(dataset)
    if folder.exists() and not folder.is_dir():
        raise UserError(
            f"dataset.path '{folder}' is a file; expected a folder. Set dataset.path to the folder that contains the "
            "file.",
            Remedy.DATASET_PATH,
        )
    return folder
