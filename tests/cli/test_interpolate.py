import numpy as np
import pytest
from PIL import Image

from nvae.cli.interpolate import mixture_name
from nvae.tools.grids import layout

pytestmark = pytest.mark.usefixtures("tools")
PICTURES = ("wide.png", "right.png")


def cells_of(path, row=0):
    """The images in a row of a grid with captions, as interpolate and reconstruct make them."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture, int)
    height = layout(8, 1, cell=128, captions=["some"]).row_height
    top = 4 + row * height
    return [pixels[top : top + 128, left : left + 128] for left in range(4, pixels.shape[1] - 128, 132)]


def reconstructions(command, *pictures):
    command("-m", "reconstruct", "tiny", *pictures, "--out", "again.png")
    return [cells_of("again.png", row) for row in range(len(pictures))]


def test_interpolate_goes_from_reconstruction_to_reconstruction(command, files, all_differ):
    assert command("-m", "interpolate", "tiny", "--steps", "3", *PICTURES).code == 0
    assert files.names() == ["interpolation_tiny_wide_right_steps3.png"]
    cells = cells_of(files.only())
    assert len(cells) == 5  # A, three steps, B
    assert all_differ(cells)
    (picture_a, again_a), (picture_b, again_b) = reconstructions(command, *PICTURES)
    for cell, expected in zip([*cells[:2], *cells[3:]], [picture_a, again_a, again_b, picture_b], strict=True):
        np.testing.assert_allclose(cell, expected, atol=1)
    assert np.abs(cells[1] - cells[3]).max() > 5


@pytest.mark.parametrize(
    ("mixing", "result"), [(["--fine-from", "B"], "AB"), (["--coarse-from", "B", "--fine-from", "a"], "BA")]
)
def test_mixture_takes_coarse_from_one_and_fine_from_the_other(command, files, mixing, result):
    assert command("-m", "interpolate", "tiny", *PICTURES, *mixing).code == 0
    assert files.names() == [f"mixture_tiny_wide_right_{result}.png"]
    texts, cells = files.texts(files.only()), cells_of(files.only())
    assert texts["coarse"] + texts["fine"] == result
    assert len(cells) == 7  # the one, then 4, 3, 2, 1, 0 of its four groups, and the other
    ends = reconstructions(command, *(PICTURES if result == "AB" else PICTURES[::-1]))
    for (picture, again), (first, second) in zip(ends, ((0, 1), (6, 5)), strict=True):
        np.testing.assert_allclose(cells[first], picture, atol=1)
        np.testing.assert_allclose(cells[second], again, atol=1)


def test_mixture_name_counts_the_groups_of_both():
    assert [mixture_name("AB", count, 2 - count) for count in (2, 1, 0)] == ["2 A", "1 A + 1 B", "2 B"]
    assert mixture_name("BA", 1, 3) == "1 B + 3 A"


@pytest.mark.parametrize("mixing", [[], ["--coarse-from", "A"]])
def test_interpolate_between_samples_ends_at_these_samples(command, typed, files, mixing):
    typed("4 2", "", "1 2")
    arguments = ("--seed", "50", "--winners", "2", "--scale-noise", "0.5", "--out", "picks.png")
    command("cherry.py", "tiny", "0.6", "2", *arguments)
    assert command("-m", "interpolate", "tiny", "picks.json:1", "picks.png:2", *mixing).code == 0
    assert "pick53_pick51_temperature0.6" in files.only().name
    first, *_, last = cells_of(files.only())
    picked = files.pixels("picks.png")
    for cell, left in ((first, 4), (last, 168)):
        with Image.open("picks.png") as picture:
            expected = np.asarray(picture.crop((left, 4, left + 160, 164)).resize((128, 128)), int)
        assert np.abs(cell - expected).mean() < 3  # the same image at another size
    assert np.abs(picked[4:164, 4:164] - picked[4:164, 168:328]).mean() > 6


@pytest.mark.slow
def test_interpolate_seeds_are_samples(command, files):
    for end in ("seed:5", "seed:6"):
        assert (
            command("-m", "interpolate", "tiny", "seed:5", end, "--temperature", "0.9", "--iterations", "0").code == 0
        )
    command("sample.py", "tiny", "0.9", "0", "--seed", "5", "--rows", "1", "--columns", "2", "--out", "s.png")
    same, other = cells_of("images/interpolation_tiny_seed5_seed6_temperature0.9_steps8.png")[::7]
    for cell, left in ((same, 4), (other, 168)):
        with Image.open("s.png") as picture:
            expected = np.asarray(picture.crop((left, 4, left + 160, 164)).resize((128, 128)), int)
        assert np.abs(cell - expected).mean() < 3


def test_linear_interpolation_has_the_same_ends_and_another_middle(command, files):
    for linear in ([], ["--linear"]):
        assert command("-m", "interpolate", "tiny", "--steps", "3", *PICTURES, *linear).code == 0
    curved, straight = (f"interpolation_tiny_wide_right{linear}_steps3.png" for linear in ("", "_linear"))
    assert files.texts(f"images/{straight}")["linear"] == "true"
    cells = zip(cells_of(f"images/{curved}"), cells_of(f"images/{straight}"), strict=True)
    assert [np.abs(one - other).max() > 1 for one, other in cells] == [False, False, True, False, False]


def test_interpolate_animation_goes_there_and_back(command, files):
    assert command("-m", "interpolate", "tiny", *PICTURES, "--animate", "--seconds", "0.4").code == 0
    assert files.names() == ["interpolation_tiny_wide_right.webp"]
    with Image.open(files.only()) as film:
        assert film.n_frames == 8


def test_walk_is_an_animation_of_samples(command, files):
    arguments = ("--walk", "2", "--seconds", "0.3", "--seed", "5", "--temperature", "0.5,0.9", "--iterations", "0")
    assert command("-m", "interpolate", "tiny", *arguments).code == 0
    assert files.names() == ["walk_tiny_temperature0.5-0.9_samples2_seed5.webp"]
    with Image.open(files.only()) as film:
        assert film.n_frames == 6


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "got 0"),
        (["wide.png"], "got 1"),
        ([*PICTURES, "wide.png"], "got 3"),
        ([*PICTURES, "--steps", "1"], "--steps"),
        ([*PICTURES, "--steps", "3", "--animate"], "--steps"),
        ([*PICTURES, "--animate", "--fine-from", "A"], "--animate"),
        ([*PICTURES, "--seconds", "3"], "--animate"),
        ([*PICTURES, "--coarse-from", "A", "--fine-from", "A"], "--coarse-from"),
        ([*PICTURES, "--coarse-from", "C"], "'C'"),
        ([*PICTURES, "--linear", "--fine-from", "A"], "--linear"),
        ([*PICTURES, "--seed", "3"], "--walk"),
        ([*PICTURES, "--temperature", "0.7"], "--temperature"),
        (["wide.png", "seed:3"], "wide.png"),
        (["seed:3", "gone.json:1"], "gone.json"),
        (["wide.png", "text.png"], "text.png"),
        (["wide.png", "gone.png"], "gone.png"),
        ([*PICTURES, "--walk", "3"], "--walk"),
        (["--walk", "1"], "--walk"),
        (["17", "41"], "seed:17 seed:41"),
        (["--walk", "2", "--temperature", "0.1,0.2,0.3"], "2x2, 4x4"),
    ],
)
def test_interpolate_mistakes_are_one_line_and_write_nothing(command, tools, files, arguments, pattern):
    (tools / "text.png").write_text("a picture")
    before = files.all(tools)
    command("-m", "interpolate", "tiny", *arguments).assert_refused(pattern)
    assert files.all(tools) == before
