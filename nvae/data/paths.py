"""Find the folder or file of a data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from nvae.schema import NAMED_DATASETS, DownloadedDataset, FolderDataset, LmdbDataset, NpzDataset, TfrecordDataset
from nvae.system.errors import Remedy, UserError
from nvae.system.files import UNFINISHED, plain_name, root_folder

MAX_DEPTH = 5  # of an entry in the folder of a data set, such as data/MNIST/raw/train-images-idx3-ubyte


def owner_of_files(name: str) -> str:
    """Return the data set whose files a data set reads: itself, or the one that it is made of."""
    return (NAMED_DATASETS[name].made_of if name in NAMED_DATASETS else "") or name


def dataset_path(dataset: FolderDataset | LmdbDataset | NpzDataset | TfrecordDataset | DownloadedDataset) -> Path:
    """Return `dataset.path`, ~ expanded, or by default dataset/NAME, of the owner of the files.

    A path that begins with dataset/ is one in `root_folder()`. The file or folder may be missing. Raises UserError for
    a path that cannot be opened.
    """
    try:
        path = Path(dataset.path or f"dataset/{owner_of_files(dataset.name)}").expanduser()
        path = root_folder() / path if path.parts[:1] == ("dataset",) else path
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


class _Entry(NamedTuple):
    """A file or folder below a folder, and the plain names of the parts of its path there."""

    path: Path
    names: list[str]


def find_below(folder: Path, patterns: Sequence[str], dataset: str, md5: str = "", files: bool = False) -> Path | None:
    """Return what matches a pattern in a folder or below, None if nothing does.

    patterns: the last parts of a path, with wildcards; names are compared as `plain_name` spells them. The first
    pattern with a match decides, then whether the match has this MD5, then whether it is in a folder with the name of
    the data set, then its depth. Folders with the name of another data set are left out, and so are files that
    `_is_of_another` without this MD5. Where a folder holds nothing but an entry of its own name, as copies of data sets
    on Kaggle do, the entry is the match. files: match files only.
    """
    exact = (_innermost(path) for pattern in patterns for path in folder.glob(pattern))
    if (found := next((path for path in exact if path.is_file() or not files), None)) is not None:
        return found
    entries, own = list(_entries_below(folder, dataset)), plain_name(dataset)
    for pattern in patterns:
        parts = [plain_name(part) for part in pattern.split("/")]
        matches = [
            entry
            for entry in entries
            if len(tail := entry.names[-len(parts) :]) == len(parts)
            and all(map(fnmatchcase, tail, parts))
            and (entry.path.is_file() or not files)
        ]
        if matches:
            matches.sort(key=lambda entry: own not in entry.names[:-1])
            paths = [_innermost(entry.path) for entry in matches]
            others = [_is_of_another(entry.names, dataset) for entry in matches]
            doubtful = paths if len(paths) > 1 or any(others) else []
            published = next((path for path in doubtful if _has_md5(path, md5)), None)
            mine = (path for path, is_other in zip(paths, others, strict=True) if not is_other)
            if (found := published or next(mine, None)) is not None:
                return found
    return None


def _is_of_another(names: Sequence[str], dataset: str) -> bool:
    """Return whether a path, as the plain names of its parts, may be a file of another data set.

    The last part that contains the name of a data set tells whose file it is, the longest name if there are several:
    fashionmnistkaggle is of fashion_mnist, not of mnist. Only a data set that has a file of this name counts.
    """
    for name in reversed(names):
        if owners := [owner for owner in NAMED_DATASETS if plain_name(owner) in name]:
            owner = owner_of_files(max(owners, key=len))
            return owner != owner_of_files(dataset) and names[-1] in _file_names(owner)
    return False


def _file_names(dataset: str) -> set[str]:
    files = NAMED_DATASETS[dataset].files.values()
    return {plain_name(Path(name).name) for file in files for name in (file["name"], *file.get("found_as", ()))}


def _entries_below(folder: Path, dataset: str) -> Iterator[_Entry]:
    """Yield the entries of a folder and its subfolders, breadth first."""
    names, own = [plain_name(name) for name in NAMED_DATASETS], plain_name(dataset)
    level = [_Entry(folder, [])]
    for _ in range(MAX_DEPTH):
        parents, level = level, []
        for parent in parents:
            with suppress(OSError):  # no folder, or one that cannot be read
                for found in sorted(os.scandir(parent.path), key=lambda found: found.name):
                    name = plain_name(found.name)
                    if found.name.startswith(".") or found.name.endswith(UNFINISHED):
                        continue
                    if found.is_dir():
                        if name in names and name != own:
                            continue
                        level.append(_Entry(Path(found.path), [*parent.names, name]))
                    yield _Entry(Path(found.path), [*parent.names, name])


def _innermost(path: Path) -> Path:
    """Return the entry of a folder that has the folder's name and is alone in the folder, as deep as there is one."""
    while path.is_dir():
        with os.scandir(path) as entries:
            visible = list(islice((entry.name for entry in entries if not entry.name.startswith(".")), 2))
        if visible != [path.name]:
            break
        path /= path.name
    return path


def _has_md5(path: Path, md5: str) -> bool:
    import pooch

    return bool(md5) and path.is_file() and pooch.file_hash(path, alg="md5") == md5
