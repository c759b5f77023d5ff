import errno
import os
import warnings

import pytest
from PIL import Image

from nvae.data.pictures.metadata import read_metadata, save_picture
from nvae.system.files import WriteError


def test_save_picture_metadata_is_read_back(tmp_path):
    metadata = {"seed": 3, "model": "ä.model", "temperature": [0.7], "name": os.fsdecode(b"\xff")}
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "new" / "a.png", metadata)
    assert read_metadata(path) == {"seed": "3", "model": "ä.model", "temperature": "[0.7]", "name": "\\udcff"}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_read_metadata_of_a_damaged_file_is_empty(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert read_metadata(tmp_path / "a.png") == {}
    assert read_metadata(tmp_path / "missing.png") == {}


def test_read_metadata_of_a_large_picture_warns_of_nothing(tmp_path):
    path = save_picture(Image.new("1", (10_000, 10_000)), tmp_path / "a.png", {"seed": 3})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read_metadata(path) == {"seed": "3"}


def test_save_picture_full_disk_keeps_the_earlier_file(tmp_path, monkeypatch):
    path = save_picture(Image.new("RGB", (8, 8)), tmp_path / "a.png", {})
    content = path.read_bytes()

    def full(self, file, *arguments, **options):
        file.write_bytes(content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(WriteError) as error:
        save_picture(Image.new("RGB", (8, 8), "red"), path, {})
    assert error.value.disk_full
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.png"]
