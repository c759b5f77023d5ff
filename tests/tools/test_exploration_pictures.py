from types import SimpleNamespace

import numpy as np
import pytest
import torch

from nvae.inference.exploration import PositionEffects
from nvae.tools.exploration_pictures import (
    CELL,
    MAX_SIDE,
    change_table,
    overview,
    positions_columns,
    positions_picture,
    shown_positions,
)
from nvae.tools.grids import BLOCK_MARGIN, MARGIN, PAPER, color_bar, grid, heat_maps, layout

STEP = CELL + MARGIN


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture
def view():
    return SimpleNamespace(image=torch.full((1, 3, 8, 8), 0.2), pseudo_input=None)


def cells_of(picture, rows, columns):
    """The cells of a grid without captions, (rows, columns, CELL, CELL, 3), counted from the right."""
    pixels = np.asarray(picture)
    left = pixels.shape[1] - columns * STEP
    cells = [
        [
            pixels[MARGIN + y * STEP : MARGIN + y * STEP + CELL, left + x * STEP : left + x * STEP + CELL]
            for x in range(columns)
        ]
        for y in range(rows)
    ]
    return np.array(cells)


def test_overview_puts_each_heat_map_beside_its_jam_in_one_scale(model, view):
    images = [torch.full((2, 3, 8, 8), 0.2) for _ in model.groups]
    images[1][1] += 0.4  # the strongest change
    images[3][0] += 0.2
    cells = cells_of(overview(model, [view], [images], difference=True), 5, 4)
    means = cells.mean((2, 3))
    jam, changed = 0.2 * 255, np.round(np.array([0.6, 0.4]) * 255)
    np.testing.assert_allclose(means[2, 0], jam, atol=1)
    np.testing.assert_allclose(means[2, 2], changed[0], atol=1)
    np.testing.assert_allclose(means[4, 0], changed[1], atol=1)
    hot, warm, cold = (heat_maps(torch.full((1, 1, 1), v), 0.4).flatten().numpy() * 255 for v in (0.4, 0.2, 0.0))
    np.testing.assert_allclose(means[2, 3], hot, atol=2)
    np.testing.assert_allclose(means[4, 1], warm, atol=2)
    np.testing.assert_allclose(means[1, 1], cold, atol=2)


def test_overview_shows_the_picture_before_its_reconstruction(model, view):
    images = [torch.full((1, 3, 8, 8), 0.5) for _ in model.groups]
    for difference, count in ((False, 1), (True, 1), (False, 3)):
        drawn = [group.repeat(count, 1, 1, 1) for group in images]
        picture = overview(model, [view], [drawn], difference, originals=torch.full((1, 3, 8, 8), 0.8))
        pixels = np.asarray(picture)[MARGIN + 20].astype(int)
        first, second = (np.abs(pixels - round(v * 255)).max(1) < 2 for v in (0.8, 0.2))
        assert first.any() and second.any()
        assert np.nonzero(first)[0].max() < np.nonzero(second)[0].min()


@pytest.mark.parametrize("difference", [False, True])
@pytest.mark.parametrize("originals", [None, torch.tensor([0.8, 0.9]).view(2, 1, 1, 1).expand(2, 3, 8, 8)])
def test_overview_of_several_bases_has_a_row_per_group_and_columns_per_base(model, difference, originals):
    """Base i is of brightness 0.1 (i + 1); jam k of group g adds 0.05 (g + 1) + 0.3 k; one scale for all heat maps."""
    views = [SimpleNamespace(image=torch.full((1, 3, 8, 8), 0.1 * (i + 1)), pseudo_input=None) for i in range(2)]
    added = [[0.05 * (group + 1) + 0.3 * jam for jam in range(2)] for group in range(len(model.groups))]
    images = [[view.image + torch.tensor(a).view(2, 1, 1, 1) for a in added] for view in views]
    step, first = 2 if difference else 1, 1 if originals is None else 2
    picture = overview(model, views, images, difference, originals)
    cells = cells_of(picture, first + len(added), 4 * step).mean((2, 3)) / 255
    means, white = cells.mean(-1), [1.0] * (2 * step - 1)
    np.testing.assert_allclose(means[first - 1], [0.1, *white, 0.2, *white], atol=0.01)
    if originals is not None:
        np.testing.assert_allclose(means[0, [0, 2 * step]], [0.8, 0.9], atol=0.01)
    expected = np.concatenate([np.array(added) + 0.1, np.array(added) + 0.2], axis=1)
    np.testing.assert_allclose(means[first:, ::step], expected, atol=0.01)
    if difference:
        maps = heat_maps(torch.tensor(added)[None], 0.5)[0].permute(1, 2, 0).numpy()
        np.testing.assert_allclose(cells[first:, 1::2], np.concatenate([maps, maps], axis=1), atol=0.02)


def many_groups(*sizes):
    """A model with this many latent groups on every level."""
    levels = [SimpleNamespace(groups=size, resolution=2**i, name="") for i, size in enumerate(sizes)]
    return SimpleNamespace(
        levels=levels, groups=[SimpleNamespace(level=level) for level in levels for _ in range(level.groups)]
    )


def rows_and_columns_by_level(sizes, width):
    """The row and the first column of every group: the grid is the narrowest that is not higher than wide."""
    per_row = next(n for n in range(1, 100) if sum(-(-size // n) for size in sizes) <= n * width)
    places, row = [], 0
    for size in sizes:
        places += [(row + i // per_row, i % per_row * width) for i in range(size)]
        row += -(-size // per_row)
    return places, row, per_row * width


@pytest.mark.parametrize("originals", [None, torch.full((1, 3, 8, 8), 0.9)])
@pytest.mark.parametrize(("bases", "jams", "difference"), [(1, 1, False), (1, 2, True), (2, 1, False), (3, 4, True)])
def test_overview_of_many_groups_has_every_group_once_and_starts_a_row_per_level(
    model, view, originals, bases, jams, difference
):
    """Group g has brightness 0.2 + 0.01 g."""
    sizes = (1, 3, 6, 11, 22, 32)
    images = [torch.full((jams, 3, 8, 8), 0.2 + 0.01 * group) for group in range(75)]
    originals = None if originals is None else originals.expand(bases, -1, -1, -1)
    picture = overview(many_groups(*sizes), [view] * bases, [images] * bases, difference, originals)
    assert max(picture.width, picture.height) <= MAX_SIDE + 100  # the color bar stands below
    if bases == 3:  # is reduced
        return
    step = 2 if difference else 1
    width = bases * jams * step
    places, rows, columns = rows_and_columns_by_level(sizes, width)
    heads = 1 if bases == 1 or originals is None else 2
    pixels = np.asarray(picture).mean(-1) / 255
    of_layout = layout(8, columns, CELL, ["unchanged"], ["1"], block=width if width > 1 else columns)
    left = pixels.shape[1] - of_layout.corner(columns - 1)[0] - CELL - MARGIN  # the labels may be wider
    assert rows <= columns
    for group, (row, column) in enumerate(places):
        for jam in range(0, width, step):
            x, y = of_layout.corner((heads + row) * columns + column + jam)
            assert pixels[y : y + CELL, left + x : left + x + CELL].mean() == pytest.approx(
                0.2 + 0.01 * group, abs=0.004
            )
    x, y = of_layout.corner(heads * columns + width)  # right of the only group of the first level
    assert pixels[y:, left + x :][: CELL + MARGIN].min() == 1
    if not difference:
        assert pixels.shape[0] == MARGIN + (heads + rows) * of_layout.row_height


def test_overview_of_many_groups_draws_the_new_context_on_the_level_of_the_context(dvp_view):
    model = many_groups(1, 8, 24)
    images = [torch.full((1, 3, 8, 8), 0.4) for _ in model.groups]
    picture = overview(model, [dvp_view], [images], False, None, torch.full((1, 3, 8, 8), 0.5))
    columns = 7  # 1 + 2 + 4 rows
    pixels, places = np.asarray(picture).mean(-1) / 255, layout(8, columns, CELL, captions=["some"])
    left = picture.width - places.corner(columns - 1)[0] - CELL - MARGIN
    cells = [places.corner(row * columns + column) for row in range(2) for column in range(3)]
    means = [pixels[y : y + CELL, left + x : left + x + CELL].mean() for x, y in cells]
    np.testing.assert_allclose(means, [0.2, 0.3, 1, 0.4, 0.5, 1], atol=0.01)


def test_blocks_of_columns_have_wider_margins():
    corners = [layout(8, 6, CELL, block=2).corner(cell)[0] for cell in range(6)]
    assert np.diff(corners).tolist() == [STEP, STEP + BLOCK_MARGIN] * 2 + [STEP]


def test_change_table_has_a_row_per_level_with_the_mean_of_the_changes_and_the_sum_of_the_kl(model, view):
    images = [view.image + 0.1 * (group + 1) for group in range(4)]
    lines = change_table(model, [view], [images], [1.0, 2.0, 4.0, 8.0]).splitlines()
    assert [line.split()[-2:] for line in lines[1:]] == [
        ["0.1000", "1.00"],
        ["0.2000", "2.00"],
        ["0.3000", "4.00"],
        ["0.4000", "8.00"],
        ["0.1500", "3.00"],
        ["0.3500", "12.00"],
        ["0.2500", "15.00"],
    ]


@pytest.mark.parametrize("original", [None, torch.zeros(3, 8, 8)])
@pytest.mark.parametrize("side", [2, 4, 8])
def test_positions_picture_has_no_empty_cell(model, view, side, original):
    columns = positions_columns(original is not None, of_context=False)
    shown = shown_positions(side * side, columns)
    assert shown % columns == 0
    images, changes = torch.full((shown, 3, 8, 8), 0.5), torch.ones(shown, 8, 8)
    strongest = [divmod(position, side) for position in range(shown)]
    positions = PositionEffects(torch.ones(side, side), torch.ones(8, 8), strongest, images, changes)
    pixels = np.asarray(positions_picture(model, view, 0, positions, original))
    plain = np.asarray(grid(torch.zeros(columns * 3, 3, 8, 8), columns, CELL, captions=[""] * columns * 3))
    assert pixels.shape[1] == plain.shape[1]
    height = (plain.shape[0] - MARGIN) // 3
    rows = 1 + 2 * shown // columns
    for row in range(rows):
        for column in range(columns):
            top, left = MARGIN + row * height, MARGIN + column * STEP
            assert (pixels[top : top + CELL, left : left + CELL] != PAPER).any(-1).all()


@pytest.fixture
def dvp_view():
    return SimpleNamespace(image=torch.full((1, 3, 8, 8), 0.2), pseudo_input=torch.full((1, 3, 8, 8), 0.3))


def captioned_cells(picture, columns, side=CELL):
    """The mean brightness of every cell of a grid with captions, (rows, columns), in [0, 1]."""
    pixels, places = np.asarray(picture).mean(-1) / 255, layout(8, columns, side, captions=["some"])
    rows = (pixels.shape[0] - MARGIN) // places.row_height
    corners = [[places.corner(row * columns + column) for column in range(columns)] for row in range(rows)]
    return np.array([[pixels[y : y + side, x : x + side].mean() for x, y in row] for row in corners])


def test_overview_draws_pseudo_inputs_beside_the_unchanged_image_and_the_jammed_context(make_dvp, dvp_view):
    images = [torch.full((1, 3, 8, 8), value) for value in (0.4, 0.6, 0.7, 0.8)]
    picture = overview(make_dvp(), [dvp_view], [images], False, None, torch.full((1, 3, 8, 8), 0.5))
    cells = captioned_cells(picture, 3, side=160).flatten()
    np.testing.assert_allclose(cells[:7], [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8], atol=0.01)


@pytest.mark.parametrize("difference", [False, True])
def test_overview_of_many_jams_has_a_row_of_new_contexts(make_dvp, dvp_view, difference):
    images = [torch.full((2, 3, 8, 8), value) for value in (0.4, 0.6, 0.7, 0.8)]
    picture = overview(make_dvp(), [dvp_view], [images], difference, None, torch.full((2, 3, 8, 8), 0.5))
    step = 2 if difference else 1
    means = cells_of(picture, 6, 2 * step).mean((2, 3, 4)) / 255
    np.testing.assert_allclose(means[0, :2], [0.2, 0.3], atol=0.01)
    np.testing.assert_allclose(means[1:, 0], [0.4, 0.5, 0.6, 0.7, 0.8], atol=0.01)
    np.testing.assert_allclose(means[1:, step], [0.4, 0.5, 0.6, 0.7, 0.8], atol=0.01)
    if difference:  # the change of the context is that of the pseudo-input, 0.2 of at most 0.6
        maps = heat_maps(torch.tensor([[[0.2, 0.2, 0.4]]]), 0.6)[0, :, 0].mean(0)
        np.testing.assert_allclose(means[1:4, 1], maps, atol=0.02)


def test_positions_picture_of_a_context_draws_pseudo_inputs_and_the_whole_grid_of_coefficients(make_dvp, dvp_view):
    model, columns = make_dvp(), positions_columns(with_original=False, of_context=True)
    model.padding = 2  # coefficients have no margin
    influence = torch.tensor([[1.0, 1.0, 0.0]]).expand(3, 3).contiguous()
    images, contexts = torch.full((4, 3, 8, 8), 0.5), torch.full((4, 3, 8, 8), 0.7)
    strongest = [(0, 0), (0, 1), (1, 0), (1, 1)]
    positions = PositionEffects(influence, torch.ones(8, 8), strongest, images, torch.ones(4, 8, 8), contexts)
    cells = captioned_cells(positions_picture(model, dvp_view, 0, positions), columns)
    np.testing.assert_allclose(cells[0, :2], [0.2, 0.3], atol=0.01)
    np.testing.assert_allclose(cells[1], 0.5, atol=0.01)
    np.testing.assert_allclose(cells[3], 0.7, atol=0.01)
    black, white = heat_maps(torch.tensor([[[0.0, 1.0]]]), 1.0)[0, :, 0].mean(0).tolist()
    assert cells[0, 3] == pytest.approx((5 * white + 3 * black) / 8, abs=0.02)  # 3 columns on 8 pixels: 3, 2 and 3


def test_color_bar_goes_through_the_colors_of_the_heat_maps():
    bar = np.asarray(color_bar(0.5, "a text", 600, 128)).astype(int)
    row = bar[MARGIN + 2]
    colored = row[(row != PAPER).any(1)]
    ends = heat_maps(torch.tensor([[[0.0, 0.5]]]), 0.5)[0, :, 0].T.numpy() * 255
    np.testing.assert_allclose(colored[[0, -1]], ends, atol=3)
    assert (np.diff(colored.sum(1)) >= -3).all()
