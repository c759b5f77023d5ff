import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
from PIL import Image

from nvae.data.pictures.archives import open_archive
from nvae.data.pictures.report import PictureError
from nvae.system.errors import UserError

ARCHIVES = Path(__file__).resolve().parents[2] / "data" / "archives"


def png():
    content = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(content, "PNG")
    return content.getvalue()


def faults(path):
    """The fault of each picture of an archive, None for a picture that can be opened."""
    found = {}
    with open_archive(path) as pictures:
        for picture in pictures:
            try:
                picture.open()
                found[picture.name] = None
            except PictureError as error:
                found[picture.name] = error
    return found


def test_folder_entries_of_windows_are_no_pictures():
    found = faults(ARCHIVES / "windows_backslashes.zip")
    assert len(found) >= 6 and set(found.values()) == {None}


@pytest.mark.parametrize(("name", "words"), [("cut_off", "without its end"), ("split", "split archive")])
def test_incomplete_zip_says_what_is_wrong(name, words):
    with pytest.raises(UserError, match=words):
        faults(ARCHIVES / f"{name}.zip")


def test_first_part_of_a_split_zip_says_what_is_wrong(tmp_path):
    (tmp_path / "a.z01").write_bytes(b"PK\7\x08PK\3\4" + bytes(100))
    with pytest.raises(UserError, match="split archive"):
        faults(tmp_path / "a.z01")


def test_zip_in_a_zip_is_an_archive_to_extract():
    fault = faults(ARCHIVES / "zip_in_zip.zip")["inner.zip"]
    assert fault.kind == "not an image" and "extract" in fault.reason


def test_compression_that_python_cannot_read_is_named(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.png", png())
    content = bytearray(path.read_bytes())
    for start, offset in ((content.index(b"PK\3\4"), 8), (content.index(b"PK\1\2"), 10)):
        content[start + offset] = 9
    path.write_bytes(content)
    fault = faults(path)["a.png"]
    assert fault.kind == "unreadable" and "deflate64" in fault.reason


def test_links_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = len(png())
        archive.addfile(info, io.BytesIO(png()))
        for name, kind, target in (("b.png", tarfile.LNKTYPE, "a.png"), ("c.png", tarfile.LNKTYPE, "no.png")):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            archive.addfile(link)
    found = faults(tmp_path / "a.tar")
    assert found["a.png"] is None
    assert (found["b.png"].kind, found["c.png"].kind) == ("duplicate", "unreadable")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes on this system")
def test_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    writer = os.open(tmp_path / "pipe", os.O_RDWR)  # so that opening the pipe for reading never blocks
    os.write(writer, b"no archive at all" * 100)
    try:
        with pytest.raises(UserError, match="regular file"):
            faults(tmp_path / "pipe")
    finally:
        os.close(writer)
