"""List the files of a zip or tar archive as pictures. Nothing is extracted: files are read into memory one by one."""

from __future__ import annotations

import tarfile
import zipfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from io import BufferedReader, BytesIO
from pathlib import Path
from threading import Lock

from nvae.data.pictures.decoding import Picture
from nvae.data.pictures.folders import PART_FOLDERS
from nvae.data.pictures.image_files import MAX_FILE_BYTES, read_content
from nvae.data.pictures.report import PictureError
from nvae.system.errors import Remedy, UserError
from nvae.system.files import text_in_place_of, zip_members

ZIP_STARTS = (b"PK\3\4", b"PK\7\x08")  # of the first file, and of a split archive
COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)  # that Python reads
TOP_FOLDER_SHARE = 0.9  # of the files, in a folder that only wraps the archive's content


@contextmanager
def open_archive(path: Path) -> Iterator[list[Picture]]:
    """Yield the files of a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz as pictures. The content decides, not the name.

    Names are without a top folder that holds nine tenths of the files or more; of a file beside this folder, the name
    begins with "../". So the names of the other files do not change when a file is added. Hidden files and folders are
    left out. Reading the pictures of a compressed tar in another order than that of their positions would decompress
    the archive again and again. Raises UserError for a file that is no such archive.
    """
    with _open(path) as archive:
        pictures = _zip_pictures(archive) if isinstance(archive, zipfile.ZipFile) else _tar_pictures(archive, path)
        by_name = {picture.name: picture for picture in pictures}  # the last one of a name is the newest
        yield _without_top_folder(list(by_name.values()))


def _open(path: Path) -> tarfile.TarFile | zipfile.ZipFile:
    """Open an archive. A tar comes first: a zip in its last file could make it look like a zip."""
    if not path.is_file():  # a pipe would block forever
        raise UserError(f"dataset.path '{path}' is no regular file; expected a folder or an archive.")
    for open_file in (tarfile.open, zipfile.ZipFile):
        try:
            archive = open_file(path)
            if isinstance(archive, zipfile.ZipFile):
                zip_members(archive)
            return archive
        except PermissionError as error:
            raise UserError(f"dataset.path '{path}' cannot be opened: {error.strerror}.") from error
        except Exception as error:  # both libraries raise almost any exception for a damaged file
            if open_file is zipfile.ZipFile and zipfile.is_zipfile(path):
                raise UserError(
                    f"dataset.path '{path}' is a zip archive that cannot be read: {error}. Make the archive again, or "
                    "extract the archive and set dataset.path to the extracted folder.",
                    Remedy.DATASET_PATH,
                ) from error
    with open(path, "rb") as file:
        is_zip = file.read(4) in ZIP_STARTS
    if is_zip:
        raise UserError(
            f"dataset.path '{path}' is a zip without its end: it was cut off, or is a part of a split archive. "
            "Get the archive again, or join the parts with zip -s 0.",
            Remedy.DATASET_PATH,
        )
    if text := text_in_place_of(path):
        raise UserError(f"dataset.path '{path}' is {text}", Remedy.DATASET_PATH)
    raise UserError(
        f"dataset.path '{path}' is a file, and no zip or tar archive that can be read; expected a folder, .zip, .tar, "
        ".tar.gz, .tar.bz2 or .tar.xz. Extract an archive of another kind, and set dataset.path to the extracted "
        "folder.",
        Remedy.DATASET_PATH,
    )


def _zip_pictures(archive: zipfile.ZipFile) -> Iterator[Picture]:
    lock = Lock()  # zipfile counts the files that are open without a lock

    def read(info: zipfile.ZipInfo) -> BytesIO:
        with lock, archive.open(info) as member:
            return read_content(member)

    for info in zip_members(archive):
        name = info.filename.replace("\\", "/")  # of programs for Windows
        parts = _visible_parts(name)
        if name.endswith("/") or not parts:
            continue
        refusal = _refusal(parts, info.file_size)
        if info.flag_bits & 1:
            refusal = PictureError("unreadable", "encrypted")
        elif info.compress_type not in COMPRESSIONS:
            method = "deflate64" if info.compress_type == 9 else f"the method {info.compress_type}"
            refusal = PictureError("unreadable", f"compressed with {method}; extract the archive by another program")
        yield Picture("/".join(parts), refusal or partial(read, info), f"{info.CRC} {info.file_size}")


def _tar_pictures(archive: tarfile.TarFile, path: Path) -> Iterator[Picture]:
    lock, stat = Lock(), path.stat()
    is_compressed = not isinstance(archive.fileobj, BufferedReader)

    def read(member: tarfile.TarInfo) -> BytesIO:
        file = archive.extractfile(member)
        assert file  # a member that is a file
        with lock, file:
            return read_content(file)

    last, files = "", set[str]()
    try:
        for member in archive:
            last, parts = member.name, _visible_parts(member.name)
            if member.isdir() or not parts:
                continue
            refusal = _refusal(parts, member.size)
            if member.isfile():
                files.add(member.name)
            elif member.islnk() and member.linkname in files:
                refusal = PictureError("duplicate", f"a hard link to {member.linkname}")
            elif member.issym() or member.islnk():
                refusal = PictureError("unreadable", "a link; tar --dereference --hard-dereference stores the file")
            else:
                refusal = PictureError("unreadable", "no regular file")
            stamp = f"{stat.st_size} {stat.st_mtime_ns} {member.offset}"
            position = member.offset if is_compressed else None
            yield Picture("/".join(parts), refusal or partial(read, member), stamp, position)
        damage = None if _ends_here(archive) else "a damaged header"
    except Exception as error:  # of tarfile, gzip, bz2, lzma and zlib
        damage = str(error)
    if damage:
        yield Picture(path.name, PictureError("broken", f"{damage}; the archive cannot be read behind '{last}'"), "")


def _ends_here(archive: tarfile.TarFile) -> bool:
    """Return whether a tar ends behind its last member. tarfile stops at a damaged header without an error."""
    archive.fileobj.seek(archive.offset)
    return not archive.fileobj.read(tarfile.BLOCKSIZE).strip(b"\0")


def _visible_parts(name: str) -> list[str]:
    """Split a member's name into folders and file; empty for a hidden file."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    hidden = any(part.startswith(".") and part != ".." for part in parts) or parts[:1] == ["__MACOSX"]
    return [] if hidden else parts


def _refusal(parts: list[str], size: int) -> PictureError | None:
    if ".." in parts:
        return PictureError("unreadable", "its name leads out of the archive")
    return PictureError("too large", f"{size:,} bytes") if size > MAX_FILE_BYTES else None


def _without_top_folder(pictures: list[Picture]) -> list[Picture]:
    tops = Counter(folder for folder, slash, _ in (picture.name.partition("/") for picture in pictures) if slash)
    (folder, count), *_ = tops.most_common(1) or [("", 0)]
    if count < TOP_FOLDER_SHARE * len(pictures) or folder.lower() in PART_FOLDERS:
        return pictures
    prefix = f"{folder}/"

    def name(picture: Picture) -> str:
        return picture.name.removeprefix(prefix) if picture.name.startswith(prefix) else f"../{picture.name}"

    return [picture._replace(name=name(picture)) for picture in pictures]
