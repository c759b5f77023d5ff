"""Download the files of public data sets: once, verified, and without a trace where a download fails."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path, PurePath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from tqdm.auto import tqdm

from nvae.data.paths import find_below
from nvae.system.errors import Remedy, UserError
from nvae.system.files import DAY, DISK_FULL, WriteError, remove_unfinished, temporary_path, text_in_place_of
from nvae.system.locks import folder_lock

CONNECTION_TIMEOUT = 5  # seconds until a host counts as unreachable, the search for its address included
READ_TIMEOUT = 60  # seconds without a byte
RETRIES = 2  # after a connection that breaks off
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CHUNK = 2**18  # bytes
STAGING = "download"  # the final name of temporary folders, of which only the content becomes final


class SourceFile(NamedTuple):
    """A file of a data set, as its publisher has it."""

    name: str  # path in the data set's folder
    url: str = ""  # empty where the publisher demands an account
    md5: str = ""  # empty where none is known
    starts_with: str = ""  # the first bytes, for files without a checksum
    unpack_to: str | None = None  # of an archive: the folder for its content, in the data set's folder
    found_as: tuple[str, ...] = ()  # patterns of `find_below`: one match is enough; () for a file called `name`

    def find(self, folder: Path, dataset: str) -> Path | None:
        """Return the path of the content in a data set's folder or below, None if the content is not there."""
        if not self.found_as:
            return find_below(folder, (self.name,), dataset, "" if self.unpack_to else self.md5, files=True)
        unpacked = [f"{self.unpack_to}/{pattern}" for pattern in self.found_as] if self.unpack_to else []
        return find_below(folder, (*unpacked, *self.found_as), dataset)

    def find_original(self, folder: Path, dataset: str) -> Path | None:
        """Return the path of the file itself in a data set's folder or below, None if the file is not there."""
        return find_below(folder, (self.name, Path(self.name).name), dataset, self.md5, files=True)

    def is_damaged(self, path: Path) -> bool:
        """Return whether a file is not the published one; unknown of a file that a browser has decompressed."""
        import pooch

        has_digest = bool(self.md5) and path.suffix == Path(self.name).suffix
        return has_digest and pooch.file_hash(path, alg="md5") != self.md5


def fetch(
    name: str,
    files: Mapping[str, SourceFile],
    folder: Path,
    homepage: str,
    progress: bool = False,
    again: bool = False,
) -> dict[str, Path]:
    """Return where the content of each file of a data set is in its folder, after downloading what is missing.

    Archives are unpacked, also those that were put into the folder by hand. A file appears in the folder when it is
    complete and has the right checksum; a failure leaves nothing else. Of several processes, on any hosts, one at a
    time downloads into a folder, and the others then find the files there.
    again: repeat the download, or the unpacking of archives that are in the folder, although the content is there.
    Raises UserError, which says what to download by hand.
    """
    missing = _missing(name, files, folder, again)
    absent = [file for file in missing if file.find_original(folder, name) is None]
    if any(not file.url for file in absent):
        names = _listed(Path(file.name).name for file in absent)
        raise UserError(
            f"{name} is not complete in '{folder}', and its publisher demands an account or a form. Get {names} from "
            f"{homepage} and put the files into '{folder}', or set dataset.path to the folder that contains them.",
            Remedy.DATASET_PATH,
        )
    if absent and (picture := _picture_in(folder)):
        raise UserError(
            f"'{folder}' holds pictures, such as {picture}, and not the files of {name}. For your own pictures, set "
            f"dataset.name to folder; to download {name}, set dataset.path to another folder.",
            Remedy.DATASET_PATH,
        )
    if missing:
        with _staging(folder, name, progress) as staging:
            missing = _missing(name, files, folder, again)  # without what another process has got meanwhile
            for number, file in enumerate(missing):
                original = file.find_original(folder, name)
                if original is None:
                    original = staging / Path(file.name).name
                    try:
                        _download(file, original, progress)
                    except (OSError, ValueError) as error:
                        if getattr(error, "errno", None) in DISK_FULL:
                            raise
                        rest = [each for each in missing[number:] if each.find_original(folder, name) is None]
                        raise _failed_download(name, rest, folder, error) from error
                elif file.is_damaged(original):
                    damage = (
                        text_in_place_of(original) or "damaged: wrong checksum. Delete the file to download it again."
                    )
                    raise UserError(f"{original} is {damage}")
                _place(name, file, original, folder, staging, progress)
    paths = {key: path for key, file in files.items() if (path := file.find(folder, name))}
    if len(paths) < len(files):
        names = _listed(dict.fromkeys(file.name for key, file in files.items() if key not in paths))
        raise UserError(f"{name}: the content of {names} is not the expected one. Get the files from {homepage}.")
    return paths


def _missing(name: str, files: Mapping[str, SourceFile], folder: Path, again: bool) -> list[SourceFile]:
    """Return the files whose content is not in the folder, each once: an archive may hold that of several entries."""
    return list({file.name: file for file in files.values() if again or file.find(folder, name) is None}.values())


def _place(name: str, file: SourceFile, original: Path, folder: Path, staging: Path, progress: bool) -> None:
    """Put one file, or the content of an archive, into the data set's folder."""
    content = staging / "content"
    if file.unpack_to is None:
        target = content / file.name
        target.parent.mkdir(parents=True)
        shutil.copy2(original, target) if original.parent != staging else original.rename(target)
    else:
        try:
            unpack(original, content / file.unpack_to, progress)
        except Exception as error:  # zipfile and tarfile raise almost any exception for a damaged file
            if isinstance(error, MemoryError) or getattr(error, "errno", None) in DISK_FULL:
                raise
            if text := text_in_place_of(original):
                raise UserError(f"{original} is {text}") from error
            raise UserError(
                f"the archive {original.name} of {name} cannot be unpacked ({error or type(error).__name__}). Delete "
                f"the file, if it is in '{folder}', to download it again."
            ) from error
    _merge(content, folder)
    for path in staging.iterdir():
        path.unlink() if path.is_file() else shutil.rmtree(path)


def _failed_download(name: str, files: list[SourceFile], folder: Path, error: Exception) -> UserError:
    names = {file.url: Path(file.name).name for file in files}
    addresses = _listed(url if url.endswith(file) else f"{url} (as {file})" for url, file in names.items())
    return UserError(
        f"{name} is not complete in '{folder}' and cannot be downloaded ({error or type(error).__name__}). Download "
        f"{addresses} by hand into '{folder}', or set dataset.path to the folder that contains "
        f"{_listed(names.values())}.",
        Remedy.DATASET_PATH,
    )


def _listed(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


def _picture_in(folder: Path) -> str | None:
    """Return the name of a picture directly in a folder, if there is one."""
    names = (path.name for path in folder.glob("*.*")) if folder.is_dir() else ()
    return next((name for name in names if name.lower().endswith(PICTURE_SUFFIXES)), None)


# --------------------------------------------------------------------------------------------------------- network


def check_connection(url: str) -> None:
    """Raise OSError if the host accepts no connection within CONNECTION_TIMEOUT.

    `requests` may take far longer: the search for an address has no time limit, and a host may have many addresses. A
    proxy is not checked: `requests` knows its address.
    """
    from requests.utils import get_environ_proxies, select_proxy

    if select_proxy(url, get_environ_proxies(url)):
        return
    address = urlsplit(url)
    errors: list[OSError] = [TimeoutError("timed out")]

    def connect() -> None:
        try:
            port = address.port or {"http": 80, "https": 443}[address.scheme]
            socket.create_connection((address.hostname, port), CONNECTION_TIMEOUT).close()
            errors.clear()
        except OSError as error:
            errors.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(CONNECTION_TIMEOUT)
    if errors:
        raise ConnectionError(f"no connection to {address.hostname}: {errors[-1]}")


def _download(file: SourceFile, target: Path, progress: bool) -> None:
    """Download one file and verify it. Raises OSError, of which the errors of `requests` are a kind, or ValueError."""
    import pooch

    def prepare(response: Any, **options: Any) -> None:
        if int(response.headers.get("content-length", 0)) > shutil.disk_usage(target.parent).free:
            raise OSError(DISK_FULL[0], os.strerror(DISK_FULL[0]))
        response.raw.headers.pop("content-encoding", None)  # some servers call .gz files so; keep the file as it is

    check_connection(file.url)
    pooch.get_logger().setLevel("WARNING")
    registry = {target.name: f"md5:{file.md5}" if file.md5 else None}
    files = pooch.create(target.parent, "", registry=registry, urls={target.name: file.url}, retry_if_failed=RETRIES)
    options = {
        "timeout": (CONNECTION_TIMEOUT, READ_TIMEOUT),
        "headers": {"User-Agent": "nvae", "Accept-Encoding": "identity"},
        "hooks": {"response": prepare},
    }
    with tqdm(desc=target.name, total=1, unit="B", unit_scale=True, disable=not progress) as bar:
        files.fetch(target.name, downloader=pooch.HTTPDownloader(bar, CHUNK, **options))
    with open(target, "rb") as content:
        if not content.read(16).startswith(file.starts_with.encode()):
            raise ValueError(f"{file.url} is another file than expected")


# ----------------------------------------------------------------------------------------------------------- files


@contextmanager
def _staging(folder: Path, name: str, progress: bool) -> Iterator[Path]:
    """Yield a new temporary folder inside of `folder`, on the same disk; remove it, and new empty folders, at the end.

    Waits until no other process, on any host, does the same. Raises WriteError for an OSError.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]

    def say() -> None:
        if progress:
            print(f"waiting for another download of {name} into '{folder}'", file=sys.stderr)

    try:
        try:
            with folder_lock(folder, say) as is_locked:
                remove_unfinished(folder.glob(f"{STAGING}.*"), age=0 if is_locked else DAY)
                staging = temporary_path(folder / STAGING)
                try:
                    staging.mkdir()
                    yield staging
                finally:
                    shutil.rmtree(staging, ignore_errors=True)
        finally:
            with suppress(OSError):  # not empty: the files are there
                for path in new_folders:
                    path.rmdir()
    except OSError as error:
        raise WriteError(folder, error) from error


def unpack(archive: Path, folder: Path, progress: bool = False) -> None:
    """Unpack a zip or tar file, and the tar files in an archive of archives, each into a folder of its name.

    Nothing is written outside of `folder`: a member that is neither a file nor a folder, or whose name leads out of the
    folder, is refused with a ValueError. Raises almost any exception for a damaged file.
    """
    description = f"unpacking {archive.name}"
    folder.mkdir(parents=True, exist_ok=True)
    is_zip = zipfile.is_zipfile(archive)
    open_archive: Callable[[Path], Any] = zipfile.ZipFile if is_zip else tarfile.open
    with open_archive(archive) as opened:
        members = opened.infolist() if is_zip else opened
        for member in tqdm(members, description, unit=" files", leave=False, disable=not progress):
            name = member.filename if is_zip else member.name
            if PurePath(name).anchor or ".." in PurePath(name).parts:
                raise ValueError(f"the name {name!r} leads out of the archive")
            if member.is_dir() if is_zip else member.isdir():
                (folder / name).mkdir(parents=True, exist_ok=True)
            elif is_zip or member.isfile():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                content = opened.open(member) if is_zip else opened.extractfile(member)
                with content, open(folder / name, "wb") as target:
                    shutil.copyfileobj(content, target)
            else:
                raise ValueError(f"{name!r} is a link or a device, expected files and folders only")
    archives = sorted(folder.glob("*.tar"))
    for inner in tqdm(archives, description, leave=False, disable=not (progress and archives)):
        if not inner.stem.strip("."):  # "...tar" would go into the folder above
            raise ValueError(f"the name {inner.name!r} leads out of the archive")
        unpack(inner, inner.with_suffix(""))
        inner.unlink()


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; of a folder that exists, each entry by itself. Each move is atomic."""
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)
    else:
        os.replace(source, target)
