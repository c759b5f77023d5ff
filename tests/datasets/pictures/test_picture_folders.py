import numpy as np
import pytest
import torch
from PIL import Image

from nvae.data.pictures.folders import list_pictures, read_pictures
from nvae.system.errors import UserError


@pytest.fixture
def folder(tmp_path):
    for i, name in enumerate(["b/2.png", "b/10.png", "a/1.PNG"]):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((4, 6, 3), 10 * i, np.uint8)).save(file)
    (tmp_path / "a" / "notes.txt").touch()
    (tmp_path / "a" / "._1.png").touch()
    return tmp_path


def names(folder):
    return [picture.name for picture in list_pictures(folder)]


def test_list_pictures_has_all_files_sorted_by_name(folder):
    assert names(folder) == ["a/1.PNG", "a/notes.txt", "b/10.png", "b/2.png"]


def test_list_pictures_follows_links(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("linked")
    (elsewhere / "a").symlink_to(folder / "a")
    assert names(elsewhere) == ["a/1.PNG", "a/notes.txt"]


def test_read_pictures_of_a_folder_without_pictures_are_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(UserError, match=str(tmp_path)):
        read_pictures(tmp_path, "L")


@pytest.mark.parametrize("content", [b"\x89PNG\r\n\x1a\n damaged", b""])
def test_read_pictures_names_a_damaged_picture(folder, content):
    (folder / "b" / "3.png").write_bytes(content)
    with pytest.raises(UserError, match=r"3\.png"):
        read_pictures(folder, "L")


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("RGB", 3)])
def test_read_pictures_stacks_them(folder, mode, channels):
    images_u8 = read_pictures(folder, mode)
    expected = torch.tensor([20, 10, 0], dtype=torch.uint8)[:, None, None, None].expand(-1, channels, 4, 6)
    assert torch.equal(images_u8, expected)


def test_read_pictures_of_different_sizes_are_refused(folder):
    Image.new("L", (5, 5)).save(folder / "b" / "3.png")
    with pytest.raises(UserError, match=r"3\.png.*5 x 5.*6 x 4"):
        read_pictures(folder, "L")
