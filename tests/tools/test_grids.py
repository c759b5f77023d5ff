import errno
import os

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.errors import UserError
from nvae.tools.grids import (
    MARGIN,
    MARK,
    PAPER,
    enlarged,
    grid,
    heat_maps,
    layout,
    near_square,
    save_picture,
    save_result,
    single,
    unused_path,
)


def colored(count, side=8):
    """Images of one color each, of which no two are alike and none is gray."""
    images = torch.zeros(count, 3, side, side)
    images[:, 0] = (torch.arange(count) / count)[:, None, None]
    images[:, 2] = 0.6
    return images


def colors(count):
    """What `colored` images are in a picture, (count, 3)."""
    return np.round(colored(count)[:, :, 0, 0].numpy() * 255).astype(np.uint8)


def test_images_stand_row_by_row():
    images = torch.arange(6).float()[:, None, None, None].expand(6, 3, 8, 8) / 10
    picture = np.asarray(grid(images, columns=3, cell=16))
    assert picture.shape == (MARGIN + 2 * (16 + MARGIN), MARGIN + 3 * (16 + MARGIN), 3)
    centers = picture[MARGIN + 8 :: 16 + MARGIN, MARGIN + 8 :: 16 + MARGIN, 0]
    assert centers.tolist() == [[0, 26, 51], [76, 102, 128]]


def test_small_images_are_enlarged_and_large_ones_are_not():
    assert grid(torch.zeros(1, 3, 8, 8), 1, cell=20).width == 24 + 2 * MARGIN
    assert grid(torch.zeros(1, 3, 64, 64), 1, cell=20).width == 64 + 2 * MARGIN


def test_grey_images_and_labels_are_fine():
    labelled = grid(torch.zeros(2, 1, 8, 8), 1, cell=16, labels=["t = 0.7", "t = 1"])
    assert labelled.width > grid(torch.zeros(2, 1, 8, 8), 1, cell=16).width


# ---------------------------------------------------------------------------------------------------- the layout

TEXTS = {"labels": ["first", "the second row"], "captions": ["a", "b", "", "row 3", "e"]}


@pytest.mark.parametrize(
    "texts",
    [{}, {"labels": TEXTS["labels"]}, {"captions": TEXTS["captions"]}, TEXTS],
    ids=["no texts", "labels", "captions", "both"],
)
@pytest.mark.parametrize("cell", [5, 12])
def test_a_cell_is_found_wherever_it_is_drawn_and_nowhere_else(texts, cell):
    picture = np.asarray(grid(colored(5), 3, cell, **texts))
    places = layout(8, 3, cell, **texts)
    expected = colors(5)
    seen = np.zeros(5, int)
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            found = places.cell_at(x, y, 5)
            here = (picture[y, x] == expected).all(1)  # texts are gray
            assert here.tolist() == [i == found for i in range(5)], (x, y)
            seen += here
    assert seen.tolist() == [places.side**2] * 5


def test_between_pixels_belongs_to_the_pixel_that_it_is_in():
    """As a window says where the mouse is: numbers with a fraction."""
    places = layout(8, 2, 8)
    left, top = places.corner(1)
    assert (left, top) == (2 * MARGIN + 8, MARGIN)
    assert places.cell_at(left + 7.9, top + 0.1, 2) == 1
    assert places.cell_at(left + 8.1, top, 2) is None
    assert places.cell_at(left - 0.1, top, 2) is None
    assert places.cell_at(left, top, 1) is None, "there are fewer cells"
    assert places.cell_at(-1, -1, 2) is None


def test_a_caption_stands_below_its_image_alone():
    captions = ["unchanged", "", "x"]
    places = layout(8, 3, 64, captions=captions)
    picture = np.asarray(grid(colored(3), 3, 64, captions=captions))
    plain = np.asarray(grid(colored(3), 3, 64))
    assert picture.shape[0] == plain.shape[0] + places.caption
    assert places.caption > 0
    below = picture[MARGIN + 64 : -MARGIN]
    assert below.shape[0] == places.caption
    dark = (below < 128).all(2)
    columns = [dark[:, x : x + 64].sum() for x, _ in map(places.corner, range(3))]
    assert columns[0] > columns[2] > columns[1] == 0
    assert (np.delete(picture, slice(MARGIN + 64, -MARGIN), 0) == plain).all()


def test_labels_stand_to_the_left_of_their_rows():
    labels = ["t = 0.7", ""]
    places = layout(8, 2, 32, labels)
    picture = np.asarray(grid(colored(4), 2, 32, labels))
    plain = np.asarray(grid(colored(4), 2, 32))
    assert (picture[:, places.left :] == plain).all()
    dark = (picture[:, : places.left] < 128).all(2)
    assert dark[: places.row_height].any()
    assert not dark[places.row_height :].any()


def test_marked_images_have_a_frame_and_others_none():
    picture, plain = (np.asarray(grid(colored(4), 2, 32, marked=marked)) for marked in ([1, 2], []))
    places = layout(8, 2, 32)
    changed = (picture != plain).any(2)
    assert (picture[changed] == MARK).all()
    expected = np.zeros_like(changed)
    for cell in (1, 2):
        x, y = places.corner(cell)
        expected[y - MARGIN : y + 32 + MARGIN, x - MARGIN : x + 32 + MARGIN] = True
        expected[y + MARGIN : y + 32 - MARGIN, x + MARGIN : x + 32 - MARGIN] = False
    assert (changed == expected).all()


def test_empty_places_are_paper():
    picture = np.asarray(grid(colored(3), 2, 16))
    x, y = layout(8, 2, 16).corner(3)
    assert (picture[y:, x:] == PAPER).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 9, 10, 12, 13, 100, 101])
def test_a_grid_is_as_wide_as_high_or_a_little_wider(cells):
    columns = near_square(cells)
    assert (columns - 1) ** 2 < cells <= columns**2
    assert columns >= -(-cells // columns)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_is_left_as_it_is(channels):
    values = torch.randint(0, 256, (channels, 8, 8), generator=torch.Generator().manual_seed(0))
    picture = single(values / 255)
    assert picture.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(np.asarray(picture).reshape(8, 8, channels), values.permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------- heat maps


def test_heat_goes_from_black_to_yellow():
    colors = heat_maps(torch.linspace(0, 2, 50).view(1, 5, 10), 2.0)
    assert colors.shape == (1, 3, 5, 10)
    assert colors[0, :, 0, 0].max() < 0.05
    red, green, blue = colors[0, :, -1, -1]
    assert min(red, green) > 0.9
    assert blue < 0.8
    luminance = (colors[0] * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(0).flatten()
    assert (luminance.diff() > 0).all(), "hotter is brighter"


def test_heat_maps_of_one_scale_compare():
    values = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    together = heat_maps(values, 1.0)
    assert torch.equal(together[1:], heat_maps(values[1:], 1.0))
    assert torch.equal(together, heat_maps(3 * values, 3.0))
    assert torch.equal(heat_maps(torch.full((1, 1, 1), 9.0), 1.0), heat_maps(torch.ones(1, 1, 1), 1.0))


def test_where_nothing_changes_all_is_black():
    assert torch.equal(heat_maps(torch.zeros(1, 4, 4), 0.0), heat_maps(torch.zeros(1, 4, 4), 1.0))
    assert heat_maps(torch.zeros(1, 4, 4), 0.0).max() < 0.05


def test_every_value_becomes_a_square():
    values = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(enlarged(values, 12), values.repeat_interleave(3, 1).repeat_interleave(3, 2))


# ------------------------------------------------------------------------------------------------------- saving


def test_the_same_settings_replace_their_picture_and_others_get_a_number(tmp_path):
    def save(shade, **about):
        return save_result(grid(torch.full((1, 3, 8, 8), shade), 1), tmp_path, "sample_0.7", about).name

    def shade(name):
        with Image.open(tmp_path / name) as picture:
            return picture.getpixel((20, 20))[0]

    assert save(0.0, seed=1, temperature=[0.7]) == "sample_0.7.png"
    assert save(0.2, seed=2, temperature=[0.7]) == "sample_0.7_2.png"
    assert save(0.4, seed=1, temperature=[0.7]) == "sample_0.7.png"
    assert save(0.6, seed=2, temperature=[0.7]) == "sample_0.7_2.png"
    assert save(0.8, seed=2, temperature=[0.7], model="ä") == "sample_0.7_3.png"
    found = {name: shade(name) for name in os.listdir(tmp_path)}
    assert found == {"sample_0.7.png": 102, "sample_0.7_2.png": 153, "sample_0.7_3.png": 204}


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_anyone_else_is_not_replaced(tmp_path, content):
    (tmp_path / "a.png").write_bytes(content)
    assert save_result(single(torch.zeros(3, 8, 8)), tmp_path, "a", {"seed": 1}).name == "a_2.png"
    assert (tmp_path / "a.png").read_bytes() == content


def test_a_folder_of_that_name_is_not_replaced(tmp_path):
    (tmp_path / "a.png").mkdir()
    assert save_result(single(torch.zeros(3, 8, 8)), tmp_path, "a", {"seed": 1}).name == "a_2.png"


@pytest.mark.parametrize("name", ["cherry", "cherry_0.7_x", "v1.5.previous", "a.b"])
def test_a_name_with_dots_stays_whole(tmp_path, name):
    for expected in (f"{name}.gif", f"{name}_2.gif", f"{name}_3.gif"):
        path = unused_path(tmp_path, name, ".gif")
        assert path == tmp_path / expected
        path.write_text("")
    save_result(single(torch.zeros(3, 8, 8)), tmp_path, name, {"seed": 1})
    assert sorted(os.listdir(tmp_path)) == sorted(f"{name}{end}" for end in (".gif", "_2.gif", "_3.gif", ".png"))


def test_the_metadata_are_read_back(tmp_path):
    path = save_picture(grid(torch.zeros(1, 3, 8, 8), 1), tmp_path / "new" / "a.png", {"seed": 3, "model": "ä.model"})
    with Image.open(path) as picture:
        assert picture.text == {"seed": "3", "model": "ä.model"}


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="could not be saved"):
        save_picture(grid(torch.zeros(1, 3, 8, 8), 1), tmp_path / "file" / "a.png", {})


def test_a_disk_that_fills_up_leaves_what_was_there_and_nothing_else(tmp_path, monkeypatch):
    path = save_picture(single(torch.zeros(3, 8, 8)), tmp_path / "a.png", {})
    content = path.read_bytes()

    def full(self, file, *args, **options):
        path.with_name(file.name).write_bytes(content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(UserError, match="No space left on device; make room"):
        save_picture(single(torch.ones(3, 8, 8)), path, {})
    assert path.read_bytes() == content
    assert os.listdir(tmp_path) == ["a.png"]
