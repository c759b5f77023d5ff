"""Download the files of public data sets: once, verified, and without a trace where a download fails."""

from __future__ import annotations

import hashlib
import os
import queue
import secrets
import shutil
import socket
import tarfile
import threading
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit
from urllib.request import Request, getproxies, proxy_bypass, urlopen

from tqdm.auto import tqdm

from nvae.system.errors import Remedy, UserError
from nvae.system.files import DISK_FULL, UNFINISHED, WriteError

CONNECTION_TIMEOUT = 5  # seconds until a host counts as unreachable, the search for its address included
READ_TIMEOUT = 60  # seconds without a byte
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CHUNK = 2**18  # bytes
STAGING = "download"  # temporary folders are <folder>/download.<process id>.<random digits>.unfinished
BROKEN_ARCHIVE = (OSError, EOFError, zlib.error, tarfile.TarError, zipfile.BadZipFile, RuntimeError)


class SourceFile(NamedTuple):
    """A file of a data set, as its publisher has it."""

    name: str  # path in the data set's folder
    url: str = ""  # empty where the publisher demands an account
    md5: str = ""  # empty where none is known
    starts_with: bytes = b""  # the first bytes, for files without a checksum
    unpack_to: str | None = None  # of an archive: the folder for its content, in the data set's folder
    found_as: tuple[str, ...] = ()  # glob patterns in the data set's folder: one match is enough; () for `name`

    def find(self, folder: Path) -> Path | None:
        """Return the path of the content in a data set's folder, None if the content is not there."""
        matches = (match for pattern in self.found_as or (self.name,) for match in folder.glob(pattern))
        return next(matches, None)

    def find_original(self, folder: Path) -> Path | None:
        """Return the path of the file itself, at its place or directly in the folder, None if neither exists."""
        candidates = (folder / self.name, folder / Path(self.name).name)
        return next((path for path in candidates if path.is_file()), None)


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
    complete and has the right checksum; a failure leaves nothing else.
    again: repeat the download, or the unpacking of archives that are in the folder, although the content is there.
    Raises UserError, which says what to download by hand.
    """
    _remove_leftovers(folder)
    # An archive may hold the content of several entries.
    missing = {file.name: file for file in files.values() if again or file.find(folder) is None}
    absent = [file for file in missing.values() if file.find_original(folder) is None]
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
    try:
        for host in dict.fromkeys(urlsplit(file.url)[:2] for file in absent):
            check_connection(*host)
    except (OSError, ValueError) as error:  # ValueError: the address of a proxy that is none
        raise _failed_download(name, absent, folder, error) from error
    if missing:
        with _staging(folder) as staging:
            for file in missing.values():
                _obtain(name, file, folder, staging, progress)
    paths = {key: file.find(folder) for key, file in files.items()}
    if None in paths.values():
        names = _listed(dict.fromkeys(file.name for key, file in files.items() if paths[key] is None))
        raise UserError(f"{name}: the content of {names} is not the expected one. Get the files from {homepage}.")
    return paths


def _obtain(name: str, file: SourceFile, folder: Path, staging: Path, progress: bool) -> None:
    """Put one file, or the content of an archive, into the data set's folder."""
    original = file.find_original(folder)
    if original is None:
        original = staging / Path(file.name).name
        try:
            _download(file, original, progress)
        except (OSError, HTTPException) as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise WriteError(original, error) from error
            raise _failed_download(name, [file], folder, error) from error
    elif file.md5 and _md5(original) != file.md5:
        raise UserError(f"{original} is damaged: wrong checksum. Delete the file to download it again.")
    content = staging / "content"
    if file.unpack_to is None:
        target = content / file.name
        target.parent.mkdir(parents=True)
        shutil.copy2(original, target) if original.parent != staging else original.rename(target)
    else:
        try:
            _unpack(original, content / file.unpack_to, progress)
        except BROKEN_ARCHIVE as error:
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise
            raise UserError(
                f"the archive {original.name} of {name} cannot be unpacked ({error or type(error).__name__}). Delete "
                f"the file, if it is in '{folder}', to download it again."
            ) from error
        if original.parent == staging:
            original.unlink()
    _merge(content, folder)
    shutil.rmtree(content, ignore_errors=True)


def _failed_download(name: str, files: list[SourceFile], folder: Path, error: Exception) -> UserError:
    reason = str(getattr(error, "reason", "") or error) or type(error).__name__
    names = {file.url: Path(file.name).name for file in files}
    addresses = _listed(url if url.endswith(file) else f"{url} (as {file})" for url, file in names.items())
    return UserError(
        f"{name} is not complete in '{folder}' and cannot be downloaded ({reason}). Download {addresses} by hand into "
        f"'{folder}', or set dataset.path to the folder that contains {_listed(names.values())}.",
        Remedy.DATASET_PATH,
    )


def _listed(texts: Iterable[str]) -> str:
    *first, last = texts
    return f"{', '.join(first)} and {last}" if first else last


# --------------------------------------------------------------------------------------------------------- network


def check_connection(scheme: str, host: str) -> None:
    """Raise OSError if the host, or the proxy in front of it, accepts no connection within CONNECTION_TIMEOUT."""
    proxy = None if proxy_bypass(host) else getproxies().get(scheme)
    address = urlsplit(f"{scheme}://{host}" if proxy is None else proxy if "//" in proxy else f"//{proxy}", scheme)
    port = address.port or {"http": 80, "https": 443}.get(address.scheme)
    if not address.hostname or port is None:
        raise ConnectionError(f"the proxy is '{proxy}'; expected http://HOST:PORT")
    errors: queue.Queue[OSError | None] = queue.Queue()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), CONNECTION_TIMEOUT).close()
            errors.put(None)
        except OSError as error:
            errors.put(error)

    threading.Thread(target=connect, daemon=True).start()  # the search for an address has no time limit of its own
    try:
        error = errors.get(timeout=CONNECTION_TIMEOUT)
    except queue.Empty:
        error = TimeoutError("timed out")
    if error is not None:
        raise ConnectionError(f"no connection to {address.hostname}: {error}") from error


def _download(file: SourceFile, target: Path, progress: bool) -> None:
    """Download one file and verify it. Raises OSError or HTTPException."""
    digest, start = hashlib.md5(usedforsecurity=False), b""
    with (
        urlopen(Request(file.url, headers={"User-Agent": "nvae"}), timeout=READ_TIMEOUT) as response,
        open(target, "wb") as output,
        tqdm(desc=target.name, total=response.length, unit="B", unit_scale=True, disable=not progress) as bar,
    ):
        expected, received = response.length, 0
        if expected is not None and expected > shutil.disk_usage(target.parent).free:
            raise OSError(DISK_FULL[0], os.strerror(DISK_FULL[0]))
        while chunk := response.read(CHUNK):
            output.write(chunk)
            digest.update(chunk)
            start = start or chunk
            received += len(chunk)
            bar.update(len(chunk))
    if expected is not None and received != expected:
        raise ConnectionError(f"the connection ended after {received:,} of {expected:,} bytes")
    if not start.startswith(file.starts_with) or file.md5 not in ("", digest.hexdigest()):
        raise ConnectionError(f"{file.url} is another file than expected")


def _md5(path: Path) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


# ----------------------------------------------------------------------------------------------------------- files


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Yield a new temporary folder inside of `folder`, on the same disk; remove it, and new empty folders, at the end.

    Raises WriteError for an OSError.
    """
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    staging = folder / f"{STAGING}.{os.getpid()}.{secrets.token_hex(4)}{UNFINISHED}"
    try:
        try:
            staging.mkdir(parents=True)
            yield staging
        finally:
            shutil.rmtree(staging, ignore_errors=True)
            with suppress(OSError):  # not empty: the files are there
                for path in new_folders:
                    path.rmdir()
    except OSError as error:
        raise WriteError(folder, error) from error


def _picture_in(folder: Path) -> str | None:
    """Return the name of a picture directly in a folder, if there is one."""
    names = (path.name for path in folder.glob("*.*")) if folder.is_dir() else ()
    return next((name for name in names if name.lower().endswith(PICTURE_SUFFIXES)), None)


def _remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders of processes that were killed."""
    for path in folder.glob(f"{STAGING}.*{UNFINISHED}"):
        process = path.name.split(".")[1]
        if process.isdigit() and not _is_another_running(int(process)):
            shutil.rmtree(path, ignore_errors=True)


def _is_another_running(process: int) -> bool:
    if process == os.getpid():  # after a restart, numbers are given again
        return False
    if os.name == "nt":  # os.kill would end the process
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # the process of another user
        return True
    return True


def _unpack(archive: Path, folder: Path, progress: bool) -> None:
    """Unpack a zip or tar file, and the tar files in an archive of archives, each into a folder of its name."""
    description = f"unpacking {archive.name}"
    folder.mkdir(parents=True, exist_ok=True)
    with tqdm(desc=description, unit=" files", leave=False, disable=not progress) as bar:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as opened:
                bar.total = len(opened.infolist())
                for member in opened.infolist():
                    opened.extract(member, folder)
                    bar.update()
        else:
            with tarfile.open(archive) as opened:
                # Refuses paths outside of the folder, links to such paths, and devices.
                opened.extraction_filter = getattr(tarfile, "data_filter", None)
                for member in opened:
                    opened.extract(member, folder)
                    bar.update()
    archives = sorted(folder.glob("*.tar"))
    for inner in tqdm(archives, description, leave=False, disable=not (progress and archives)):
        _unpack(inner, inner.with_suffix(""), progress=False)
        inner.unlink()


def _merge(source: Path, target: Path) -> None:
    """Move a file or folder to `target`; of a folder that exists, each entry by itself. Each move is atomic."""
    if source.is_dir() and target.is_dir():
        for entry in source.iterdir():
            _merge(entry, target / entry.name)
    else:
        os.replace(source, target)
