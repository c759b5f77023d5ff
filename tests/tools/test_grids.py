import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from nvae.system.errors import UserError
from nvae.tools.grids import (
    MARGIN,
    MARK,
    PAPER,
    enlarged,
    grid,
    heat_maps,
    layout,
    near_square,
    result_name,
    save_result,
    shortened,
    single,
)


def colored(count, side=8):
    """Return images of one color each, all different and none gray."""
    images = torch.zeros(count, 3, side, side)
    images[:, 0] = (torch.arange(count) / count)[:, None, None]
    images[:, 2] = 0.6
    return images


def colors(count):
    """Return the colors of the `colored` images in a picture, (count, 3)."""
    return np.round(colored(count)[:, :, 0, 0].numpy() * 255).astype(np.uint8)


def test_grid_places_images_row_by_row():
    images = torch.arange(6).float()[:, None, None, None].expand(6, 3, 8, 8) / 10
    picture = np.asarray(grid(images, columns=3, cell=16))
    assert picture.shape == (MARGIN + 2 * (16 + MARGIN), MARGIN + 3 * (16 + MARGIN), 3)
    centers = picture[MARGIN + 8 :: 16 + MARGIN, MARGIN + 8 :: 16 + MARGIN, 0]
    assert centers.tolist() == [[0, 26, 51], [76, 102, 128]]


def test_grid_enlarges_small_images_only():
    assert grid(torch.zeros(1, 3, 8, 8), 1, cell=20).width == 24 + 2 * MARGIN
    assert grid(torch.zeros(1, 3, 64, 64), 1, cell=20).width == 64 + 2 * MARGIN


def test_grid_takes_gray_images_and_labels():
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
def test_cell_at_finds_a_cell_where_it_is_drawn_and_nowhere_else(texts, cell):
    picture = np.asarray(grid(colored(5), 3, cell, **texts))
    places = layout(8, 3, cell, **texts)
    expected = colors(5)
    seen = np.zeros(5, int)
    for y in range(picture.shape[0]):
        for x in range(picture.shape[1]):
            index = places.cell_at(x, y, 5)
            here = (picture[y, x] == expected).all(1)  # texts are gray
            assert here.tolist() == [i == index for i in range(5)], (x, y)
            seen += here
    assert seen.tolist() == [places.side**2] * 5


def test_cell_at_takes_fractions_of_pixels():
    """A window gives the position of the mouse with fractions of pixels."""
    places = layout(8, 2, 8)
    left, top = places.corner(1)
    assert (left, top) == (2 * MARGIN + 8, MARGIN)
    assert places.cell_at(left + 7.9, top + 0.1, 2) == 1
    assert places.cell_at(left + 8.1, top, 2) is None
    assert places.cell_at(left - 0.1, top, 2) is None
    assert places.cell_at(left, top, 1) is None, "there are fewer cells"
    assert places.cell_at(-1, -1, 2) is None


def test_grid_caption_is_below_its_image_alone():
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


def test_grid_labels_are_left_of_their_rows():
    labels = ["t = 0.7", ""]
    places = layout(8, 2, 32, labels)
    picture = np.asarray(grid(colored(4), 2, 32, labels))
    plain = np.asarray(grid(colored(4), 2, 32))
    assert (picture[:, places.left :] == plain).all()
    dark = (picture[:, : places.left] < 128).all(2)
    assert dark[: places.row_height].any()
    assert not dark[places.row_height :].any()


def test_grid_marks_have_a_frame():
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


def test_grid_empty_places_are_paper():
    picture = np.asarray(grid(colored(3), 2, 16))
    x, y = layout(8, 2, 16).corner(3)
    assert (picture[y:, x:] == PAPER).all()


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5, 9, 10, 12, 13, 100, 101])
def test_near_square_is_as_wide_as_high_or_a_little_wider(cells):
    columns = near_square(cells)
    assert (columns - 1) ** 2 < cells <= columns**2
    assert columns >= -(-cells // columns)


@pytest.mark.parametrize(
    ("cells", "width", "columns"), [((1, 3, 6, 11, 22, 32), 1, 11), ((10, 10), 1, 5), ((12,), 3, 2)]
)
def test_near_square_of_groups_and_of_wide_cells(cells, width, columns):
    rows = [sum(-(-number // n) for number in cells) for n in (columns - 1, columns)]
    assert near_square(*cells, width=width) == columns
    assert rows[0] > (columns - 1) * width and rows[1] <= columns * width


@pytest.mark.parametrize("channels", [1, 3])
def test_single_keeps_the_pixels(channels):
    values = torch.randint(0, 256, (channels, 8, 8), generator=torch.Generator().manual_seed(0))
    picture = single(values / 255)
    assert picture.mode == {1: "L", 3: "RGB"}[channels]
    assert np.array_equal(np.asarray(picture).reshape(8, 8, channels), values.permute(1, 2, 0).numpy())


# ---------------------------------------------------------------------------------------------------- heat maps


def test_heat_maps_go_from_black_to_yellow():
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


def test_heat_maps_of_zeros_are_black():
    assert torch.equal(heat_maps(torch.zeros(1, 4, 4), 0.0), heat_maps(torch.zeros(1, 4, 4), 1.0))
    assert heat_maps(torch.zeros(1, 4, 4), 0.0).max() < 0.05


def test_enlarged_values_are_squares():
    values = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(enlarged(values, 12), values.repeat_interleave(3, 1).repeat_interleave(3, 2))


# ------------------------------------------------------------------------------------------------------- saving


def test_save_result_replaces_the_same_settings_and_numbers_others(tmp_path):
    def save(shade, **metadata):
        return save_result(grid(torch.full((1, 3, 8, 8), shade), 1), tmp_path, "sample_0.7", metadata).name

    def shade(name):
        with Image.open(tmp_path / name) as picture:
            return picture.getpixel((20, 20))[0]

    assert save(0.0, seed=1, temperature=[0.7]) == "sample_0.7.png"
    assert save(0.2, seed=2, temperature=[0.7]) == "sample_0.7_2.png"
    assert save(0.4, seed=1, temperature=[0.7]) == "sample_0.7.png"
    assert save(0.6, seed=2, temperature=[0.7]) == "sample_0.7_2.png"
    assert save(0.8, seed=2, temperature=[0.7], model="ä") == "sample_0.7_3.png"
    shades = {name: shade(name) for name in os.listdir(tmp_path)}
    assert shades == {"sample_0.7.png": 102, "sample_0.7_2.png": 153, "sample_0.7_3.png": 204}


def test_save_result_keeps_files_and_folders_of_others(tmp_path):
    (tmp_path / "a.png").write_bytes(b"hello")
    (tmp_path / "a_2.png").mkdir()
    assert save_result(single(torch.zeros(3, 8, 8)), tmp_path, "a", {"seed": 1}).name == "a_3.png"
    assert (tmp_path / "a.png").read_bytes() == b"hello"


def test_save_result_under_a_file_name(tmp_path):
    out = tmp_path / "new" / "b.PNG"
    for _ in range(2):
        assert save_result(single(torch.zeros(3, 8, 8)), out, "a", {"seed": 1}) == out
    assert os.listdir(tmp_path / "new") == ["b.PNG"]
    with pytest.raises(UserError, match="b.jpg"):
        save_result(single(torch.zeros(3, 8, 8)), tmp_path / "b.jpg", "a", {})


@pytest.mark.parametrize("part", ["x" * 300, "ä" * 150, os.fsdecode(b"\xff") * 300])
def test_result_name_is_short_enough_for_file_systems(part):
    assert result_name("a", "", "b") == "a_b"
    name = result_name("a", part)
    assert name.startswith("a_")
    assert len(os.fsencode(name)) <= 200


def test_shortened_text_keeps_its_ends_and_fits():
    font = ImageFont.load_default(12)
    assert shortened("short.png", 200, font) == "short.png"
    text = shortened("a_very_long_name_of_a_picture_of_someone_1234.png", 100, font)
    assert font.getlength(text) <= 100
    assert text.startswith("a_ve") and text.endswith(".png")
