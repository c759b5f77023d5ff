"""Untrusted image files start no program, do not block, and stay within the memory limit."""

import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from nvae.data.loaders.folder import load_folder
from nvae.data.pictures.image_files import open_image, read_image_files
from nvae.system.errors import UserError

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n{} loop\n%%EOF\n"


@pytest.fixture
def no_programs(monkeypatch):
    """Fail as soon as any program is started."""

    def start(*arguments, **options):
        raise AssertionError(f"a program was started: {arguments}")

    monkeypatch.setattr(subprocess, "Popen", start)
    monkeypatch.setattr(os, "system", start)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff", "a.eps"])
def test_open_image_refuses_eps_by_content(tmp_path, no_programs, name):
    (tmp_path / name).write_bytes(EPS)
    with pytest.raises(OSError, match="cannot identify"), open_image(tmp_path / name):
        pass


def test_read_image_files_refuses_eps_without_starting_a_program(tmp_path, config, no_programs):
    (tmp_path / "a.png").write_bytes(EPS)
    with pytest.raises(UserError, match=r"a\.png"):
        read_image_files([tmp_path / "a.png"], config, "cpu")


def test_folder_leaves_out_eps_and_pipes(tmp_path, make_config, no_programs):
    for index in range(3):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    (tmp_path / "eps.png").write_bytes(EPS)
    os.mkfifo(tmp_path / "pipe.png")
    data = load_folder(make_config(dataset={"path": str(tmp_path)}))
    assert len(data.training) + len(data.validation) == 3
    assert "eps.png" in data.warnings[0] and "pipe.png" in data.warnings[0]


def test_open_image_refuses_a_pipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(OSError, match="regular"), open_image(tmp_path / "pipe.png"):
        pass


def test_open_image_limit_is_checked_before_decoding(tmp_path):
    path = Path(tmp_path / "large.png")
    Image.new("1", (300, 200)).save(path)
    with open_image(path, max_pixels=60_000) as image:
        assert image.size == (300, 200)
    with pytest.raises(ValueError, match="300 x 200"), open_image(path, max_pixels=59_999):
        pass


def test_folder_limit_is_a_key(tmp_path, make_config):
    for index in range(2):
        Image.new("RGB", (8, 8), (index, 0, 0)).save(tmp_path / f"{index}.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "larger.png")
    kept = load_folder(make_config(dataset={"path": str(tmp_path), "max_image_pixels": 64}))
    assert len(kept.training) + len(kept.validation) == 2
    assert "larger.png" in kept.warnings[0]
    everything = load_folder(make_config(dataset={"path": str(tmp_path), "max_image_pixels": 72}))
    assert len(everything.training) + len(everything.validation) == 3


@pytest.mark.parametrize(
    "tags", [{254: 1}, {254: 3}, {255: 2}, {50706: b"\x01\x04\0\0"}, "cr2", {254: 0}, {254: 2}, {}]
)
def test_thumbnail_of_a_raw_file_is_no_picture(tmp_path, config, make_config, tags):
    """Raw files of cameras are TIFF files: the first page is a thumbnail, the picture is in another place."""
    is_raw = tags not in ({254: 0}, {254: 2}, {})
    for shade in (100, 200):
        Image.new("RGB", (8, 8), (shade, 0, 0)).save(tmp_path / f"{shade}.tiff")
    file = tmp_path / "picture.tiff"
    Image.new("RGB", (8, 8), (7, 0, 0)).save(file, tiffinfo={} if tags == "cr2" else tags)
    if tags == "cr2":  # a mark behind the header, before the first list of tags
        content = file.read_bytes()
        place = int.from_bytes(content[4:8], "little")
        content += b"CR\2\0"
        tail = content[place:]
        file.write_bytes(content[:4] + len(content).to_bytes(4, "little") + b"CR\2\0" + content[12:] + tail)
    data = load_folder(make_config(dataset={"path": str(tmp_path)}))
    assert len(data.training) + len(data.validation) == 3 - is_raw
    assert ("picture.tiff" in data.report) == is_raw
    if is_raw:
        with pytest.raises(UserError, match=r"picture\.tiff.*convert"):
            read_image_files(file, config, "cpu")
    else:
        read_image_files(file, config, "cpu")
