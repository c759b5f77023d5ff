"""Write files atomically and find unused file names."""

from __future__ import annotations

import errno
import itertools
import os
import re
import secrets
import shutil
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nvae.system.errors import UserError

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
ROOT = "NVAE_ROOT"  # an environment variable
UNFINISHED = ".unfinished"  # the ending of temporary files: <name>.<process id>.<random digits>.unfinished
DAY = 86_400  # seconds: a temporary file without a change for so long has no writer


class WriteError(UserError):
    """A file that cannot be written: its `path`, and `disk_full` if there is no space left for it."""

    def __init__(self, path: str | Path, error: OSError) -> None:
        self.path = Path(path)
        self.disk_full = error.errno in DISK_FULL
        reason = "no space left on the disk" if self.disk_full else error.strerror or str(error)
        advice = "Check the free disk space and the folder's permissions."
        blocking = next((folder for folder in self.path.parents if folder.exists() and not folder.is_dir()), None)
        if blocking is not None:
            reason, advice = f"{blocking} is a file, expected a folder", f"Rename {blocking}."
        super().__init__(f"{path} cannot be written: {reason}. {advice}")


def plain_name(name: str) -> str:
    """Return a name without what differs between spellings of one name: case, separators, and the ending .gz."""
    return re.sub(r"[-_. ]", "", name.lower().removesuffix(".gz"))


def text_in_place_of(file: Path | bytes) -> str:
    """Return what a file is, and what to do, if it is a text that came in place of the file itself; else nothing.

    file: a path, or the first 16 bytes or more. Raises OSError.
    """
    if isinstance(file, Path):
        with open(file, "rb") as opened:
            file = opened.read(100)
    texts = (
        (rb"version https://", "a Git LFS pointer. Run git lfs pull in its repository to get the file itself."),
        (rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|!--|\?xml)", "a saved web page. Download the file itself."),
    )
    return next((text for start, text in texts if re.match(start, file, re.IGNORECASE)), "")


def check_regular(path: Path) -> None:
    """Raise OSError for a pipe or a device, which could block or be read forever; folders and missing files pass."""
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(errno.EINVAL, "not a regular file", str(path))


def expand_home(path: str | Path, temporary: bool = False) -> Path:
    """Return a path with the home folder in place of a leading ~. Raises UserError for an unknown home folder.

    temporary: a user without a home folder, as an unknown user id in a container, has one among the temporary files.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        home, *parts = Path(path).parts
        if temporary and home == "~":
            return Path(tempfile.gettempdir(), f"home_{getattr(os, 'getuid', int)()}", *parts)
        raise UserError(f"the home folder in '{path}' is unknown. Name the folder without ~.") from error


def root_folder() -> Path:
    """Return the folder of saved_weights/, runs/, images/ and dataset/: NVAE_ROOT, or else the working directory.

    Raises UserError for ~ in NVAE_ROOT if the home folder is unknown.
    """
    return expand_home(os.environ.get(ROOT) or ".")


def previous_path(path: str | Path) -> Path:
    """Return where `atomic_write(path, keep_previous=True)` keeps the replaced file."""
    return Path(path).with_name(f"{Path(path).name}.previous")


@contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Turn an OSError of the context into a WriteError for `path`."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error) from error


@contextmanager
def atomic_write(path: str | Path, keep_previous: bool = False) -> Iterator[Path]:
    """Yield a temporary path in the folder of `path`; flush that file and rename it to `path` on success.

    The folder is created if needed. A crash at any instant, or a second writer, leaves a complete file at `path`:
    the old one or a new one. The temporary file is removed on errors.

    keep_previous: keep the replaced file as `previous_path(path)`.
    Raises WriteError for an OSError, including one raised while the caller writes.
    """
    path = Path(path)
    temporary = temporary_path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            _flush(temporary)
            if keep_previous and path.exists():
                link_or_copy(path, previous_path(path))
            os.replace(temporary, path)
        finally:
            with suppress(OSError):  # renamed already
                temporary.unlink()


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path` on success, so that no incomplete folder is there.

    The temporary folder is removed on errors. Raises UserError as `check_new_folder` does, and WriteError for an
    OSError, including one raised while the caller writes.
    """
    target = Path(path).resolve()
    temporary = temporary_path(target)
    with writing(path):
        check_new_folder(path)
        temporary.mkdir(parents=True)
        try:
            yield temporary
            if target.is_dir():
                target.rmdir()  # empty; on Windows, a folder cannot be renamed to one that exists
            os.rename(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)  # renamed already, unless there was an error


def check_new_folder(path: str | Path) -> None:
    """Raise UserError if something other than an empty folder exists at `path`."""
    path = Path(path)
    if os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"'{path}' exists and is not an empty folder. Name another folder, or delete this one.")


def unused_path(folder: str | Path, stem: str, suffix: str, is_free: Callable[[Path], bool] | None = None) -> Path:
    """Return the first free one of <folder>/<stem><suffix>, <folder>/<stem>_2<suffix>, <folder>/<stem>_3<suffix>, ...

    is_free: decides whether a path is free (default: nothing exists there). To reserve the path, let `is_free` create
    the file and return whether that succeeded.
    """
    paths = (Path(folder, f"{stem}{'' if number == 1 else f'_{number}'}{suffix}") for number in itertools.count(1))
    return next(filter(is_free or (lambda path: not os.path.lexists(path)), paths))


def link_or_copy(path: str | Path, target: str | Path) -> None:
    """Make `target` the file that is at `path` now: a hard link where there are any, else a copy. Raises OSError.

    Link or copy to a name that no other writer uses, then rename: nothing is ever written into an existing file, which
    might be linked to `path` too.
    """
    temporary = temporary_path(Path(target))
    try:
        try:
            os.link(path, temporary)
        except OSError:  # a file system without hard links
            shutil.copy2(path, temporary)
            _flush(temporary)
        os.replace(temporary, target)
    finally:
        with suppress(OSError):  # renamed already, unless both names were links to one file: then both remain
            temporary.unlink()


def zip_members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return all members of a zip file. Raises BadZipFile for a part of a split one, and for another number of members
    than the list at the end says.

    zipfile itself skips members behind a damaged length without a word.
    """
    members, file = archive.infolist(), archive.fp
    assert file
    file.seek(max(0, file.seek(0, 2) - 2**16 - 22))
    tail = file.read()
    end = tail[tail.rfind(b"PK\5\6") :]  # as zipfile finds the end of the list, with other bytes after it or without
    part, count = (int.from_bytes(end[start : start + 2], "little") for start in (4, 10))
    if part not in (0, 2**16 - 1):  # 65,535: the number is elsewhere
        raise zipfile.BadZipFile("it is the last part of a split archive; `zip -s 0` joins the parts")
    if count not in (len(members) % 2**16, 2**16 - 1):
        raise zipfile.BadZipFile(f"its list has {len(members)} files, and says {count}")
    return members


def remove_unfinished(
    paths: Iterable[Path], is_own: Callable[[str], bool] = lambda name: True, age: float = DAY
) -> None:
    """Remove those of the paths that are temporary files and folders left by killed processes.

    is_own: whether a file belongs to the caller, by the name that the finished file would have. age: seconds since the
    last change after which nobody writes the file any more; 0 under a lock that keeps all other writers out. What
    cannot be removed stays.
    """
    for path in list(paths):
        match = re.fullmatch(rf"(.+)\.\d+\.[0-9a-f]{{8}}{re.escape(UNFINISHED)}", path.name)
        with suppress(OSError):  # removed by another process, or in use on Windows
            if match and is_own(match[1]) and (not age or time.time() - path.stat().st_mtime > age):
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()


def temporary_path(path: Path) -> Path:
    """Return an unused path beside `path`, which `remove_unfinished` knows."""
    return path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}{UNFINISHED}")


def _flush(path: Path) -> None:
    with open(path, "rb+") as file:
        os.fsync(file.fileno())
