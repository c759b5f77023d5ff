import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvae.checkpoint import load_model, save, weights_digest
from nvae.data.pictures.metadata import read_metadata

pytestmark = pytest.mark.usefixtures("tools")
EXPLORE = "latent_space_exploration.py"
NAME = "exploration_tiny_temperature0.7_seed5"


def table_rows(out):
    """Number, mean change, and KL of every latent group."""
    rows = re.findall(r"^(\d+): \d+x\d+ +([\d.]+)  +(.+)$", out, re.MULTILINE)
    return [(int(number), float(change), kl) for number, change, kl in rows]


@pytest.fixture
def pick(command, typed):
    """A cherry.py result of the seeds 53 and 51, made with a scale of the noise of 0.5; returns its path."""
    typed("4 2", "", "1 2")
    arguments = ("--seed", "50", "--winners", "2", "--scale-noise", "0.5", "--out", "picks.png")
    assert command("cherry.py", "tiny", "0.6", "2", *arguments).code == 0
    return "picks.json"


def test_explore_draws_and_measures_every_group(command, files):
    code, out, _ = command(EXPLORE, "tiny", "0.7", "2", "--seed", "5")
    assert code == 0
    rows = table_rows(out)
    assert [number for number, _, _ in rows] == [1, 2, 3, 4]
    assert all(change > 0 for _, change, _ in rows)
    assert files.names() == [f"{NAME}.png"]
    texts = files.texts(files.only())
    assert (texts["seed"], texts["jams"], texts["strength"]) == ("5", "1", "1.0")
    assert texts["weights"] == weights_digest(load_model("saved_weights/tiny.checkpoint"))
    with Image.open(files.only()) as picture:
        assert picture.width == 5 * 164 + 4  # the unchanged image and four groups
    assert command(EXPLORE, "tiny", "0.7", "2", "--seed", "5").out == out
    assert len(files.names()) == 1


def test_explore_table_has_the_kl_of_the_file(command):
    save(load_model("saved_weights/tiny.checkpoint"), "known.model", metadata={"kl_per_group": [0.25, 1.5, 3.0, 12.75]})
    _, out, _ = command(EXPLORE, "known.model", "0.7", "0", "--seed", "5")
    assert [kl for _, _, kl in table_rows(out)] == ["0.25", "1.50", "3.00", "12.75"]


def test_explore_names_say_jams_strength_and_difference(command, files):
    command(EXPLORE, "tiny", "0.7", "0", "--seed", "5", "--jams", "2", "--difference", "--strength", "2")
    command(EXPLORE, "tiny", "0.7", "0", "--seed", "5", "--group", "4")
    assert files.names() == [f"{NAME}_group4_jams4.png", f"{NAME}_strength2_jams2_difference.png"]


def test_explore_more_strength_changes_more(command):
    changes = []
    for strength in ("1", "5"):
        _, out, _ = command(EXPLORE, "tiny", "0.7", "0", "--seed", "5", "--jams", "3", "--strength", strength)
        changes.append([change for _, change, _ in table_rows(out)])
    assert all(five > one for one, five in zip(*changes, strict=True))


@pytest.mark.slow
def test_explore_picture_temperature_is_that_of_the_jams(command, files):
    tables = []
    for temperature, strength in (("0.5", "2"), ("1", "1"), ("0.5", "1")):
        arguments = (temperature, "--strength", strength, "--seed", "5", "--image", "right.png")
        tables.append(table_rows(command(EXPLORE, "tiny", *arguments).out))
    assert tables[0] == tables[1] != tables[2]
    with Image.open("images/exploration_tiny_temperature1_right_seed5.png") as drawn, Image.open("right.png") as right:
        expected = np.asarray(right.resize((160, 160), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(np.asarray(drawn)[4:164, 4:164], expected)  # the picture itself comes first


def test_explore_absolute_strength_does_not_depend_on_the_temperature(command, files):
    """At temperature 1 both strengths mean the same; at a lower one the absolute jam changes more."""
    changes = {}
    for temperature in ("0.3", "1"):
        for absolute in ([], ["--absolute"]):
            _, out, _ = command(EXPLORE, "tiny", temperature, "0", "--seed", "5", "--strength", "0.8", *absolute)
            changes[temperature, bool(absolute)] = [change for _, change, _ in table_rows(out)]
    assert changes["1", True] == changes["1", False]
    assert all(one > other for one, other in zip(changes["0.3", True], changes["0.3", False], strict=True))
    name = "images/exploration_tiny_temperature0.3_seed5_strength0.8_absolute.png"
    assert files.texts(name)["absolute"] == "true"


@pytest.mark.slow
def test_explore_absolute_jams_of_a_picture_do_not_need_the_temperature(command):
    arguments = ("--strength", "0.8", "--seed", "5", "--image", "right.png")
    tables = [table_rows(command(EXPLORE, "tiny", t, *arguments, "--absolute").out) for t in ("0.5", "1")]
    assert tables[0] == tables[1] == table_rows(command(EXPLORE, "tiny", "1", *arguments).out)


def test_explore_from_a_pick_shows_that_sample(command, files, pick):
    assert command(EXPLORE, "--from", f"{pick}:2", "--seed", "1", "--out", "a.png").code == 0
    texts = files.texts("a.png")
    assert (texts["model"], texts["temperature"], texts["iterations"]) == (
        "saved_weights/tiny.checkpoint",
        "[0.6]",
        "2",
    )
    # the unchanged image is the second picked one
    picked = files.pixels("picks.png")
    np.testing.assert_allclose(files.pixels("a.png")[4:164, 4:164], picked[4:164, 168:328], atol=1)
    for wrong in (f"{pick}:3", f"{pick}:0", pick, "gone.json:1", "wide.png:1"):
        command(EXPLORE, "--from", wrong).assert_refused(wrong.split(":")[0])


def column_of(path, column):
    """A column of a picture with row labels, as explore makes it of several bases; counted from the right, from 0."""
    pixels = np.asarray(Image.open(path), int)
    right = pixels.shape[1] - 4 - 132 * column
    return pixels[4:, right - 128 : right]


def test_explore_several_samples_have_the_columns_of_each(command, files):
    for seed, bases in ((5, 3), (6, 2)):
        assert command(EXPLORE, "tiny", "0.7", "0", "--seed", str(seed), "--bases", str(bases)).code == 0
    assert files.names() == ["exploration_tiny_temperature0.7_bases2_seed6.png", f"{NAME[:-6]}_bases3_seed5.png"]
    texts = files.texts(f"images/{NAME[:-6]}_bases3_seed5.png")
    assert (texts["bases"], texts["seed"]) == ("3", "5")
    three, two = (f"images/{name}" for name in reversed(files.names()))
    with Image.open(three) as picture:
        assert picture.height == 4 + 5 * 132  # the unchanged images and four groups
    for column in range(2):  # seeds 7 and 6: the same samples, with other new noise
        np.testing.assert_array_equal(column_of(three, column)[:128], column_of(two, column)[:128])
        assert np.abs(column_of(three, column)[132:] - column_of(two, column)[132:]).max() > 5


def test_explore_table_is_the_mean_of_the_bases(command):
    def changes(*arguments):
        out = command(EXPLORE, "tiny", "0.7", "0", "--seed", "5", *arguments).out
        return np.array([change for _, change, _ in table_rows(out)])

    one, other = ("--image", "wide.png"), ("--image", "right.png")
    np.testing.assert_allclose(changes(*one, *other), (changes(*one) + changes(*other)) / 2, atol=1e-4)


def test_explore_several_picks_and_positions(command, files, pick):
    for extra in ([], ["--group", "1", "--jams", "1"]):
        assert command(EXPLORE, "--from", f"{pick}:2", "--from", f"{pick}:1", "--seed", "1", *extra).code == 0
    overview, positions = (
        f"images/exploration_tiny_temperature0.6_pick51-53_seed1{e}.png" for e in ("", "_group1_jams1")
    )
    assert files.texts(overview)["from"] == f"{pick}:2, {pick}:1"
    picked = files.pixels("picks.png")
    for column, left in ((1, 168), (0, 4)):  # pick 2, then pick 1
        expected = Image.fromarray(picked[4:164, left : left + 160].astype(np.uint8)).resize((128, 128))
        assert np.abs(column_of(overview, column)[:128] - np.asarray(expected, int)).mean() < 3
    with Image.open(positions) as both:
        command(EXPLORE, "--from", f"{pick}:2", "--seed", "1", "--group", "1", "--jams", "1", "--out", "one.png")
        with Image.open("one.png") as one:
            assert both.height == 2 * one.height
            np.testing.assert_array_equal(np.asarray(both)[: one.height], np.asarray(one))


def test_explore_picks_of_different_temperatures_need_one_for_all(command, files, pick):
    selection = json.loads(Path(pick).read_text())
    selection["cells"][1] |= {"temperature": [0.9], "statistics": None}
    Path("other.json").write_text(json.dumps(selection))
    arguments = ("--from", f"{pick}:1", "--from", "other.json:2", "--seed", "1")
    command(EXPLORE, *arguments).assert_refused("temperature")
    assert files.names() == []
    assert command(EXPLORE, "saved_weights/tiny.checkpoint", "0.8", "0", *arguments).code == 0
    assert files.texts(files.only())["temperature"] == "[0.8]"


def test_explore_pixels_are_drawn_with_one_seed(command, files, all_differ):
    for pixels in ("mean", "sample"):
        command(
            EXPLORE, "tiny", "0.7", "0", "--seed", "5", "--strength", "1", "--pixels", pixels, "--out", f"{pixels}.png"
        )
    assert all_differ([files.pixels("mean.png"), files.pixels("sample.png")])


def test_explore_animates_the_strongest_group(command, files):
    code, out, _ = command(EXPLORE, "tiny", "0.7", "0", "--seed", "5", "--animate", "--seconds", "0.3")
    assert code == 0
    strongest, _, _ = max(table_rows(out), key=lambda row: row[1])
    assert files.names() == [f"{NAME}_group{strongest}.webp"]
    with Image.open(files.only()) as picture:
        assert picture.n_frames == 6
    metadata = read_metadata(files.only())
    assert (metadata["seed"], metadata["group"]) == ("5", str(strongest))


def test_explore_animation_format_follows_the_file_name(command, tools):
    arguments = (EXPLORE, "tiny", "0.7", "0", "--group", "2", "--seconds", "0.1", "--animate", "--out")
    assert command(*arguments, "a.gif").code == 0
    assert (tools / "a.gif").read_bytes()[:3] == b"GIF"
    command(*arguments, "a.png").assert_refused("a.png")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["tiny"], "TEMPERATURE"),
        (["tiny", "0.7", "--group", "5"], "--group: got 5.*4"),
        (["tiny", "0.7", "--jams", "0"], "'0'"),
        (["tiny", "0.7", "--strength", "1,2"], "'1,2'"),
        (["tiny", "0.7", "--animate", "avi"], "'avi'"),
        (["tiny", "0.7", "--animate", "--jams", "2"], "--jams"),
        (["tiny", "0.7", "--seconds", "2"], "--animate"),
        (["tiny", "0.7", "--animate", "--seconds", "9999"], "'9999'"),
        (["tiny", "0.7", "--difference", "--group", "2"], "--difference"),
        (["tiny", "0.7", "--image", "text.png"], "text.png"),
        (["--from", "a.json:1", "--image", "right.png"], "--from"),
        (["tiny", "0.7", "--bases", "2", "--image", "right.png"], "--bases"),
        (["tiny", "0.7", "--bases", "0"], "'0'"),
        (["tiny", "0.7", "--bases", "2", "--animate"], "--animate"),
        (["gone.model", "0.7"], "gone.model"),
    ],
)
def test_explore_mistakes_are_one_line_and_write_nothing(command, tools, files, arguments, pattern):
    (tools / "text.png").write_text("a picture")
    before = files.all(tools)
    command(EXPLORE, *arguments).assert_refused(pattern)
    assert files.all(tools) == before


def test_explore_long_picture_names_give_a_short_result_name(command, files):
    shutil.copy("right.png", "z" * 240 + ".png")
    assert command(EXPLORE, "tiny", "0.7", "0", "--image", "z" * 240 + ".png").code == 0
    assert files.texts(files.only())["image"] == "z" * 240 + ".png"
