"""The tools that make pictures, as a person uses them: what they save and say, and one sentence for every mistake."""

import errno
import io
import json
import os
import re
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nvae.checkpoint import load_model, save, weights_digest
from nvae.data.images import fit
from nvae.inference import sampling
from nvae.inference.sampling import Sampler
from nvae.tools.grids import grid, layout, single
from nvae.tools.picking import selection as cherry_picking

MODEL = "saved_weights/tiny.model"


@pytest.fixture(scope="module")
def models(make_model, tmp_path_factory):
    """Models of four latent groups on two scales: tiny.model, other.model, and known.model that knows its KLs.

    Their posteriors are far from their priors, so that pictures matter.
    """

    def make(seed=0):
        model = make_model(seed, sampling_method="logistic_mixture")  # whose mean is not its most likely value
        for group in model.groups:
            group.posterior_head.parametrizations.weight.original0.data.mul_(30)
            group.decoder_combiner.parametrizations.weight.original0.data.mul_(3)
        return model

    folder = tmp_path_factory.mktemp("models")
    save(make(), folder / "tiny.model")
    save(make(seed=1), folder / "other.model")
    save(make(), folder / "known.model", metadata={"kl_per_group": [0.25, 1.5, 3.0, 12.75]})
    return folder


@pytest.fixture
def folder(tmp_path, monkeypatch, models):
    """A working directory with the models, and two pictures: wide.png, and right.png that has the models' size."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(models, tmp_path / "saved_weights")
    ramp = np.linspace(0, 255, 20 * 14 * 3).astype(np.uint8)
    Image.fromarray(ramp.reshape(14, 20, 3)).save("wide.png")
    Image.fromarray(ramp[: 8 * 8 * 3].reshape(8, 8, 3)[::-1] + 100).save("right.png")
    return tmp_path


@pytest.fixture
def typed(monkeypatch):
    """A function: what is typed into the next command."""
    return lambda *lines: monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def saved(folder="images"):
    """What lies in the folder of results."""
    there = os.path.isdir(folder)
    return sorted(os.listdir(folder)) if there else []


def text_of(path):
    with Image.open(path) as picture:
        return picture.text


def pixels_of(path):
    with Image.open(path) as picture:
        return np.asarray(picture, int)


def cells_of(path, row=0):
    """The images in a row of a grid with captions, as interpolate and reconstruct make them."""
    pixels = pixels_of(path)
    height = layout(8, 1, cell=128, captions=["some"]).row_height
    top = 4 + row * height
    return [pixels[top : top + 128, left : left + 128] for left in range(4, pixels.shape[1] - 128, 132)]


def all_differ(pictures):
    """Whether no two are the same."""
    return len({picture.tobytes() for picture in pictures}) == len(pictures)


def frames_of(path):
    with Image.open(path) as picture:
        return picture.n_frames


# ------------------------------------------------------------------------------------------------------- sample


def test_a_grid_has_rows_and_columns(command):
    code, out, _ = command("sample.py", MODEL, "0.7", "2", "--seed", "5", "--rows", "2", "--columns", "4")
    assert code == 0
    assert "seeds 5 to 12" in out
    again = r"the same again: python3 \S*sample\.py saved_weights/tiny.model 0.7 2 --seed 5 --rows 2 --columns 4"
    assert re.search(again, out)
    assert saved() == ["sample_tiny_temperature0.7_iterations2_seed5.png"]
    with Image.open(f"images/{saved()[0]}") as picture:
        assert picture.size == (4 * 164 + 4, 2 * 164 + 4)
        about = picture.text
    assert (about["seed"], about["images"], about["iterations"], about["pixels"]) == ("5", "8", "2", "mean")
    assert (about["model"], about["weights"]) == (MODEL, weights_digest(load_model(MODEL)))


def test_a_random_seed_is_said_and_makes_the_same_again(command, folder):
    _, out, _ = command("sample.py", MODEL, "0.7", "0", "--rows", "1", "--columns", "1")
    before = files(folder / "images")
    again = re.search(r"the same again: python3 \S*sample\.py (.*)", out)[1]
    assert command("sample.py", *again.split()).code == 0
    assert files(folder / "images") == before
    assert len(before) == 1


def test_many_single_images_at_their_own_size(command):
    code, out, _ = command("sample.py", MODEL, "0.7", "0", "--seed", "8", "--count", "3", "--out", "many")
    assert code == 0
    assert "3 images in many" in out
    assert saved("many") == [f"sample_tiny_temperature0.7_iterations0_seed{seed}.png" for seed in (10, 8, 9)]
    model = load_model(MODEL)
    for seed in (8, 9, 10):
        path = f"many/sample_tiny_temperature0.7_iterations0_seed{seed}.png"
        assert text_of(path)["seed"] == str(seed)
        assert text_of(path)["weights"] == weights_digest(model)
        expected = single(Sampler(model, 0.7, iterations=0).sample([seed])[0])
        assert pixels_of(path).shape == (8, 8, 3)
        np.testing.assert_allclose(pixels_of(path), np.asarray(expected, int), atol=1)


def test_a_sweep_has_a_row_per_temperature(command):
    code, out, _ = command("sample.py", MODEL, "--sweep", "0,0.5,2", "--seed", "5", "--columns", "2")
    assert code == 0
    assert "seeds 5 to 6" in out
    (name,) = saved()
    with Image.open(f"images/{name}") as picture:
        assert picture.height == 3 * 164 + 4
        assert picture.text["temperature"] == "[0.0, 0.5, 2.0]"
        cells = np.asarray(picture, int)[4:, picture.width - 2 * 164 :]
    spread = [np.abs(row[:, :160] - row[:, 164:324]).mean() for row in cells.reshape(3, 164, 328, 3)[:, :160]]
    assert spread[0] < spread[1] < spread[2]  # the seeds differ the more, the higher the temperature


def test_a_temperature_per_scale(command):
    results = []
    for temperature in ("0.2,1.5", "1.5,0.2", "0.2"):
        command("sample.py", MODEL, temperature, "0", "--seed", "5", "--count", "1", "--out", temperature)
        (name,) = saved(temperature)
        assert f"_temperature{temperature.replace(',', '-')}_" in name
        results.append(pixels_of(f"{temperature}/{name}"))
    assert all_differ(results)


@pytest.mark.parametrize("pixels", ["sample", "most_likely"])
def test_other_pixels_are_another_picture_with_another_name(command, pixels):
    one = ("--seed", "5", "--rows", "1", "--columns", "1")
    command("sample.py", MODEL, "0.7", "0", *one)
    command("sample.py", MODEL, "0.7", "0", "--pixels", pixels, *one)
    plain, other = "sample_tiny_temperature0.7_iterations0", f"sample_tiny_temperature0.7_iterations0_{pixels}"
    assert set(saved()) == {f"{plain}_seed5.png", f"{other}_seed5.png"}
    assert text_of(f"images/{other}_seed5.png")["pixels"] == pixels
    assert all_differ([pixels_of(f"images/{name}_seed5.png") for name in (plain, other)])


def test_the_statistics_are_measured_once(command, folder, monkeypatch):
    first = command("sample.py", MODEL, "0.7", "2", "--seed", "5", "--out", "first")
    assert first.code == 0
    assert (folder / "saved_weights" / "tiny.model.statistics").is_file()

    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(sampling, "measure", measure)
    assert command("sample.py", MODEL, "0.7", "2", "--seed", "5", "--out", "second").code == 0
    assert files(folder / "first") == files(folder / "second")
    with pytest.raises(AssertionError, match="measured again"):
        command("sample.py", MODEL, "0.8", "2", "--seed", "5")


def test_one_pass_says_that_it_cannot_tell(command):
    _, out, _ = command("sample.py", MODEL, "0.7", "1", "--seed", "5", "--count", "1")
    assert "one pass cannot show" in out


def test_pictures_of_other_settings_are_kept(command):
    for rows in ("1", "2", "1"):
        command("sample.py", MODEL, "0.7", "0", "--seed", "5", "--rows", rows)
    name = "sample_tiny_temperature0.7_iterations0_seed5"
    assert saved() == [f"{name}.png", f"{name}_2.png"]
    assert [text_of(f"images/{each}")["images"] for each in saved()] == ["3", "6"]


@pytest.mark.parametrize("option", ["--temperature", "--sweep"])
def test_iterations_follow_the_model_where_the_temperature_is_an_option(command, option):
    command("sample.py", MODEL, option, "0.7", "3", "--seed", "5", "--columns", "1")
    assert text_of(f"images/{saved()[0]}")["iterations"] == "3"


# ------------------------------------------------------------------------------------------------------- cherry


def record(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def seeds_in(path):
    return [cell["seed"] for cell in record(path)["cells"]]


@pytest.fixture
def picked(command, typed):
    """A result of cherry.py, of three samples; returns a function that draws it again."""
    typed("9 1 4", "")
    assert command("cherry.py", MODEL, "0.7", "2", "--seed", "50", "--winners", "3").code == 0

    def redo(*changes):
        return command("cherry.py", "--redo", "images/cherry_0.7_tiny.json", *changes)

    return redo


def test_picks_in_their_order_with_undo_and_wrong_answers(command, typed):
    typed("3", "x", "8 0", "u", "u", "0", "1 2", "u", "nonsense", "5 6", "3 1")
    code, out, _ = command("cherry.py", MODEL, "0.7,0.9", "2", "--seed", "50", "--winners", "4")
    assert code == 0
    assert out.count("is not understood") == 2
    assert re.search(r"the same again: python3 \S*cherry\.py --redo images/cherry_0.7-0.9_tiny.json", out)
    assert saved() == ["cherry_0.7-0.9_tiny.json", "cherry_0.7-0.9_tiny.png"]
    # 3, (8 undone), then of the second batch 1, (2 undone), 5 and 6, of which the third and the first come first
    assert seeds_in("images/cherry_0.7-0.9_tiny.json") == [63, 52, 59, 64]
    cell = record("images/cherry_0.7-0.9_tiny.json")["cells"][0]
    assert (cell["model"], cell["weights"]) == (MODEL, weights_digest(load_model(MODEL)))
    assert (cell["temperature"], cell["iterations"]) == ([0.7, 0.9], 2)
    assert [cell["seed"] for cell in json.loads(text_of("images/cherry_0.7-0.9_tiny.png")["cells"])] == [63, 52, 59, 64]
    with Image.open("images/cherry_0.7-0.9_tiny.png") as picture:
        assert picture.size == (2 * 164 + 4, 2 * 164 + 4)


def test_what_was_picked_is_what_is_drawn(command, typed, folder):
    """The result's image is the one that sample.py makes of the seed."""
    typed("4", "q")
    command("cherry.py", MODEL, "0.7", "2", "--seed", "50")
    command("sample.py", MODEL, "0.7", "2", "--seed", "53", "--rows", "1", "--columns", "1", "--out", "alone")
    one, other = pixels_of("images/cherry_0.7_tiny.png"), pixels_of(f"alone/{saved('alone')[0]}")
    np.testing.assert_allclose(one, other, atol=1)


@pytest.mark.parametrize("lines", [("0", "q"), ("3", "u")])
def test_no_picks_leave_no_files(command, typed, lines):
    typed(*lines)
    code, out, _ = command("cherry.py", MODEL, "0.7", "2", "--seed", "50")
    assert code == 0
    assert "nothing was picked, nothing is saved" in out
    assert saved() == []


def test_the_end_of_the_input_keeps_the_picks(command, typed):
    typed("3 4")
    assert command("cherry.py", MODEL, "0.7", "2", "--seed", "50").code == 0
    assert seeds_in("images/cherry_0.7_tiny.json") == [52, 53]


def test_an_error_in_the_middle_leaves_no_files(command, typed, monkeypatch):
    monkeypatch.setitem(sys.modules, "chafa", None)  # as where it is not installed
    typed("q")
    arguments = (MODEL, "0.7", "0", "--seed", "50", "--inline", "sixel")
    command("cherry.py", *arguments).assert_refused("need the extra 'terminal'")
    assert saved() == []


def test_one_winner(command, typed):
    typed("7")
    assert command("cherry.py", MODEL, "0.7", "0", "--seed", "50", "--winners", "1").code == 0
    assert seeds_in("images/cherry_0.7_tiny.json") == [56]


def test_an_earlier_result_is_never_replaced(command, typed, folder):
    for _ in range(2):
        typed("3", "q")
        command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    assert saved() == [f"cherry_0.7_tiny{end}" for end in (".json", ".png", "_2.json", "_2.png")]
    (folder / "images" / "cherry_0.7_tiny_3.png").write_text("mine")
    typed("4", "q")
    command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    assert (folder / "images" / "cherry_0.7_tiny_3.png").read_text() == "mine"
    assert [seeds_in(f"images/cherry_0.7_tiny{end}.json") for end in ("", "_2", "_4")] == [[52], [52], [53]]


def test_the_record_is_written_after_every_answer(command, monkeypatch, folder):
    seen = []
    lines = iter(["3", "0", "1 2", "u", "q"])

    def read(prompt):
        record = (folder / "images" / "cherry_0.7_tiny.json").read_text()
        seen.append([cell["seed"] for cell in json.loads(record)["cells"]] if record else None)
        return next(lines)

    monkeypatch.setattr("builtins.input", read)
    command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    assert seen == [None, [52], [52], [52, 59, 60], [52, 59]]


def test_ctrl_c_keeps_the_picks_and_draws_them(command, monkeypatch):
    lines = iter(["3 5", KeyboardInterrupt()])

    def read(prompt):
        line = next(lines)
        if isinstance(line, KeyboardInterrupt):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    code, out, error = command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    assert code == 130
    assert "Traceback" not in error
    assert "images/cherry_0.7_tiny.png" in out
    assert seeds_in("images/cherry_0.7_tiny.json") == [52, 54]
    assert saved() == ["cherry_0.7_tiny.json", "cherry_0.7_tiny.png"]


def test_a_terminal_that_is_gone_is_the_end_of_the_input(command, monkeypatch):
    """Where the input ends before the signal comes, and nothing can be printed any more."""
    lines = ["3 5"]

    class Terminal(io.StringIO):
        def write(self, text):
            if not lines:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    def read(prompt):
        if len(lines) == 2:
            lines.clear()
            raise EOFError
        lines.append("the end")
        return lines[0]

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdout", Terminal())
    with suppress(OSError):
        command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    assert seeds_in("images/cherry_0.7_tiny.json") == [52, 54]
    assert saved() == ["cherry_0.7_tiny.json", "cherry_0.7_tiny.png"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there are no hang-ups")
def test_a_second_hangup_does_not_stop_the_drawing(command, monkeypatch):
    """A shell in a closing terminal passes the hang-up on, and the system sends its own."""
    unheeded, lines = [], iter(["3 5"])

    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)

    def read(prompt):
        line = next(lines, None)
        return hang_up() if line is None else line

    def drawing(*arguments):
        hang_up()
        return grid(*arguments)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(cherry_picking, "grid", drawing)
    before = signal.signal(signal.SIGHUP, lambda *_: unheeded.append("hang-up"))
    try:
        command("cherry.py", MODEL, "0.7", "0", "--seed", "50")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert saved() == ["cherry_0.7_tiny.json", "cherry_0.7_tiny.png"]
    assert unheeded == []


def test_a_redo_is_the_same_to_the_byte(picked, folder):
    before = files(folder / "images")
    code, out, _ = picked()
    assert code == 0
    assert "images/cherry_0.7_tiny_redo.png" in out
    after = files(folder / "images")
    assert before.items() < after.items()  # nothing was replaced
    for ending in (".json", ".png"):
        assert after[f"cherry_0.7_tiny_redo{ending}"] == before[f"cherry_0.7_tiny{ending}"]
    assert seeds_in("images/cherry_0.7_tiny.json") == [58, 50, 53]


def test_a_redo_of_a_redo_gets_a_name_of_its_own(picked, command):
    picked()
    picked()
    command("cherry.py", "--redo", "images/cherry_0.7_tiny_redo.json", "--out", "elsewhere")
    names = [name for name in saved() if name.endswith(".png")]
    assert names == ["cherry_0.7_tiny.png", "cherry_0.7_tiny_redo.png", "cherry_0.7_tiny_redo_2.png"]
    assert saved("elsewhere") == ["cherry_0.7_tiny_redo_redo.json", "cherry_0.7_tiny_redo_redo.png"]


def test_a_redo_with_a_change_is_another_picture_that_says_so(picked, folder):
    before, pictures = files(folder / "images"), [pixels_of("images/cherry_0.7_tiny.png")]
    for changes, key, value in (
        (("--temperature", "0.2"), "temperature", [0.2]),
        (("--temperature", "1.5,0.2"), "temperature", [1.5, 0.2]),
        (("--iterations", "0"), "iterations", 0),
        (("--pixels", "sample"), "pixels", "sample"),
        (("--scale-noise", "0"), "scale_noise", [0.0]),
        (("--scale-noise", "0.5,2"), "scale_noise", [0.5, 2.0]),
        (("saved_weights/other.model",), "model", "saved_weights/other.model"),
    ):
        there = set(saved())
        code, out, _ = picked(*changes)
        assert code == 0
        assert "rounding" not in out
        name = max(set(saved()) - there).removesuffix(".png")
        found = record(f"images/{name}.json")
        assert found.get(key, found["cells"][0].get(key)) == value
        assert seeds_in(f"images/{name}.json") == [58, 50, 53]
        assert json.loads(text_of(f"images/{name}.png")["cells"]) == found["cells"]
        pictures.append(pixels_of(f"images/{name}.png"))
    assert all_differ(pictures)
    assert before.items() < files(folder / "images").items()


def test_a_redo_of_another_model_says_that_the_images_are_others(picked):
    _, out, _ = picked("saved_weights/other.model")
    assert "saved_weights/other.model holds other weights than those that were picked from" in out
    _, out, _ = picked("saved_weights/known.model")  # a copy
    assert "other weights" not in out


def test_a_redo_after_the_weights_changed_says_so(picked, folder):
    shutil.copy("saved_weights/other.model", MODEL)
    code, out, _ = picked()
    assert code == 0
    assert "saved_weights/tiny.model holds other weights than those that were picked from" in out


@pytest.mark.parametrize(
    "arguments",
    [
        (MODEL, "0.1,0.2,0.3", "0"),
        (MODEL, "0.7", "0", "--scale-noise", "1,2,3"),
        ("--redo", "picks.json"),
    ],
)
def test_a_refused_game_leaves_no_file(command, folder, arguments):
    cell = {"model": "gone.model", "weights": "0", "seed": 1, "temperature": [0.7], "iterations": 2, "statistics": None}
    (folder / "picks.json").write_text(json.dumps({"cells": [cell]}))
    command("cherry.py", *arguments).assert_refused("scales|no file 'gone.model'")
    assert saved() == []


# -------------------------------------------------------------------------------------------------- exploration

EXPLORE = "latent_space_exploration.py"


def rows_of_table(out):
    """Number of every latent group, its mean change, and the rest of its row."""
    lines = [line.split() for line in out.splitlines() if " x " in line and line.strip()[0].isdecimal()]
    return [(int(line[0]), float(line[4]), " ".join(line[5:])) for line in lines]


def test_exploring_shows_every_group_and_says_how_much_it_changes(command):
    code, out, _ = command(EXPLORE, MODEL, "0.7", "2", "--seed", "5")
    assert code == 0
    rows = rows_of_table(out)
    assert [number for number, _, _ in rows] == [1, 2, 3, 4]
    assert all(change > 0 for _, change, _ in rows)
    assert all(kl == "not measured" for _, _, kl in rows)
    assert saved() == ["exploration_tiny_temperature0.7_seed5.png"]
    about = text_of("images/exploration_tiny_temperature0.7_seed5.png")
    assert (about["seed"], about["jams"], about["strength"], about["model"]) == ("5", "1", "1.0", MODEL)
    assert about["weights"] == weights_digest(load_model(MODEL))
    with Image.open("images/exploration_tiny_temperature0.7_seed5.png") as picture:
        assert picture.width == 5 * 164 + 4  # the unchanged one and four groups
    again = command(EXPLORE, MODEL, "0.7", "2", "--seed", "5")
    assert again.out == out
    assert len(saved()) == 1


def test_the_table_has_the_kl_of_a_model_that_knows_it(command):
    _, out, _ = command(EXPLORE, "saved_weights/known.model", "0.7", "0", "--seed", "5")
    assert [kl for _, _, kl in rows_of_table(out)] == ["0.25", "1.50", "3.00", "12.75"]


def test_several_jams_and_differences_stand_in_a_row_per_group(command):
    widths = []
    for name, arguments in (("", ["--jams", "3"]), ("_2", ["--jams", "2", "--difference"])):
        assert command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", *arguments).code == 0
        with Image.open(f"images/exploration_tiny_temperature0.7_seed5{name}.png") as picture:
            assert picture.height == 5 * 132 + 4
            widths.append(picture.width)
    assert widths[1] - widths[0] == 132  # three images; two with their differences


def test_more_strength_changes_more(command):
    changes = []
    for strength in ("1", "5"):
        _, out, _ = command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", "--jams", "3", "--strength", strength)
        changes.append([change for _, change, _ in rows_of_table(out)])
    assert all(five > one for one, five in zip(*changes, strict=True))


def test_one_group_and_its_positions(command):
    for group, side in (("1", "2x2"), ("4", "4x4")):
        code, out, _ = command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", "--group", group, "--jams", "2")
        assert code == 0
        assert f"group {group}: {side}" in out
        assert rows_of_table(out) == []
        assert text_of(f"images/exploration_tiny_temperature0.7_seed5_group{group}.png")["group"] == group


def test_exploring_around_a_picture_of_another_size_says_what_was_done_to_it(command):
    code, out, _ = command(EXPLORE, MODEL, "0.7", "--seed", "5", "--image", "wide.png")
    assert code == 0
    assert out.count("wide.png was") == 2  # cropped, resized
    assert len(rows_of_table(out)) == 4
    assert saved() == ["exploration_tiny_temperature0.7_wide_seed5.png"]
    assert text_of(f"images/{saved()[0]}")["image"] == "wide.png"


def test_around_a_picture_the_temperature_is_that_of_the_jams(command):
    tables = []
    for temperature, strength in (("0.5", "2"), ("1", "1"), ("0.5", "1")):
        arguments = (temperature, "--strength", strength, "--seed", "5", "--image", "right.png")
        _, out, _ = command(EXPLORE, MODEL, *arguments)
        assert "right.png was" not in out
        tables.append(rows_of_table(out))
    assert tables[0] == tables[1] != tables[2]


def test_an_animation_of_the_strongest_group(command):
    code, out, _ = command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", "--animate", "--seconds", "0.3")
    assert code == 0
    rows = rows_of_table(out)
    strongest, _, _ = max(rows, key=lambda row: row[1])
    assert saved() == [f"exploration_tiny_temperature0.7_seed5_group{strongest}.gif"]
    assert frames_of(f"images/{saved()[0]}") == 6
    with Image.open(f"images/{saved()[0]}") as picture:
        about = json.loads(picture.info["comment"])
    assert (about["seed"], about["group"], about["model"]) == (5, strongest, MODEL)


def test_an_animation_of_one_group(command):
    for _ in range(2):
        command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", "--animate", "gif", "--group", "2", "--seconds", "0.1")
    name = "exploration_tiny_temperature0.7_seed5_group2"
    assert saved() == [f"{name}.gif", f"{name}_2.gif"]


def test_an_mp4(command):
    pytest.importorskip("imageio_ffmpeg")
    code, _, _ = command(EXPLORE, MODEL, "0.7", "0", "--seed", "5", "--animate", "mp4", "--seconds", "0.1")
    assert code == 0
    (name,) = saved()
    assert name.endswith(".mp4")
    assert Path("images", name).read_bytes()[4:8] == b"ftyp"


# --------------------------------------------------------------------------------- interpolate and reconstruct


def test_the_way_between_two_pictures(command):
    code, out, _ = command("-m", "interpolate", MODEL, "wide.png", "right.png", "--steps", "3")
    assert code == 0
    assert out.count("wide.png was") == 2  # cropped, resized
    assert saved() == ["interpolation_tiny_wide_right.png"]
    assert json.loads(text_of("images/interpolation_tiny_wide_right.png")["pictures"]) == ["wide.png", "right.png"]
    cells = cells_of("images/interpolation_tiny_wide_right.png")
    assert len(cells) == 5  # A, three steps, B
    assert all_differ(cells)
    with Image.open("right.png") as right:
        np.testing.assert_allclose(cells[4], np.asarray(right.resize((128, 128), Image.Resampling.BICUBIC)), atol=1)
    command("-m", "reconstruct", MODEL, "wide.png", "right.png")
    (of_a, of_b) = (cells_of("images/reconstruction_tiny.png", row)[1] for row in (0, 1))
    np.testing.assert_allclose(cells[1], of_a, atol=1)
    np.testing.assert_allclose(cells[3], of_b, atol=1)
    assert np.abs(cells[1] - cells[3]).max() > 5


def test_the_way_there_and_back_as_an_animation(command):
    arguments = ("wide.png", "right.png", "--animate", "--seconds", "0.4")
    assert command("-m", "interpolate", MODEL, *arguments).code == 0
    assert saved() == ["interpolation_tiny_wide_right.gif"]
    assert frames_of("images/interpolation_tiny_wide_right.gif") == 8


@pytest.mark.parametrize(
    ("mixing", "result"),
    [
        (["--fine-from", "B"], "AB"),
        (["--coarse-from", "right.png", "--fine-from", "a"], "BA"),
    ],
)
def test_mixtures_take_the_coarse_from_one_and_the_fine_from_the_other(command, mixing, result):
    code, _, _ = command("-m", "interpolate", MODEL, "wide.png", "right.png", *mixing)
    assert code == 0
    assert saved() == [f"mixture_tiny_wide_right_{result}.png"]
    about = text_of(f"images/{saved()[0]}")
    assert about["coarse"] + about["fine"] == result
    cells = cells_of(f"images/{saved()[0]}")
    assert len(cells) == 7  # the one, what has 4, 3, 2, 1, 0 of its four groups, and the other
    command("-m", "reconstruct", MODEL, *(("wide.png", "right.png") if result == "AB" else ("right.png", "wide.png")))
    for place in (0, 1):
        picture, reconstruction = cells_of("images/reconstruction_tiny.png", row=place)
        np.testing.assert_allclose(cells[(0, 6)[place]], picture, atol=1)
        np.testing.assert_allclose(cells[(1, 5)[place]], reconstruction, atol=1)


def test_a_walk_between_samples(command):
    code, out, _ = command("-m", "interpolate", MODEL, "--walk", "3", "--seconds", "0.3", "--seed", "5")
    assert code == 0
    assert "seeds 5 to 7 and back" in out
    assert saved() == ["walk_tiny_temperature0.7_seed5.gif"]
    assert frames_of(f"images/{saved()[0]}") == 6
    command(
        *("-m", "interpolate", MODEL, "--walk", "2", "--seconds", "0.1", "--seed", "5"),
        *("--temperature", "0.5,0.9", "--iterations", "0"),
    )
    assert "walk_tiny_temperature0.5-0.9_seed5.gif" in saved()


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "0 pictures are given; give two"),
        (["wide.png"], "1 pictures are given; give two"),
        (["wide.png", "right.png", "wide.png"], "3 pictures are given; give two"),
        (["wide.png", "right.png", "--steps", "1"], "--steps 1 leads nowhere"),
        (["wide.png", "right.png", "--steps", "3", "--animate"], "--steps is of the way from A to B in one picture"),
        (["wide.png", "right.png", "--steps", "3", "--fine-from", "A"], "--steps is of the way from A to B"),
        (["wide.png", "right.png", "--animate", "--fine-from", "A"], "--animate is of the way from A to B"),
        (["wide.png", "right.png", "--seconds", "3"], "say --animate or --walk with it"),
        (["wide.png", "right.png", "--coarse-from", "A", "--fine-from", "A"], "both A: that is no mixture"),
        (["wide.png", "right.png", "--coarse-from", "A", "--fine-from", "wide.png"], "both A: that is no mixture"),
        (["wide.png", "right.png", "--coarse-from", "C"], "--coarse-from is 'C'; it can be A, the first picture"),
        (["wide.png", "right.png", "--fine-from", "left.png"], "--fine-from is 'left.png'; it can be A"),
        (["wide.png", "right.png", "--seed", "3"], "--seed belong to --walk"),
        (["wide.png", "right.png", "--temperature", "0.7"], "--temperature.* belong to --walk"),
        (["wide.png", "right.png", "--iterations", "0"], "--iterations.* belong to --walk"),
        (["wide.png", "right.png", "--walk", "3"], "--walk leads from sample to sample: leave out the pictures"),
        (["--walk", "3", "--coarse-from", "A"], "--walk leads from sample to sample"),
        (["--walk", "1"], "--walk 1 leads nowhere"),
        (["--walk", "0"], "'0' is not a whole number from 1"),
        (["--walk", "2", "--temperature", "warm"], "'warm' is not a number from 0 on"),
        (["--walk", "2", "--temperature", "1,2,3", "--iterations", "0"], "temperature: got 3"),
        (["--walk", "2", "--iterations", "1.5"], "'1.5' is not a whole number from 0 on"),
    ],
)
def test_wrong_ways_are_refused(command, folder, arguments, pattern):
    before = files(folder)
    command("-m", "interpolate", MODEL, *arguments).assert_refused(pattern)
    assert files(folder) == before


def test_options_may_stand_before_the_pictures(command):
    assert command("-m", "interpolate", MODEL, "--steps", "3", "wide.png", "right.png").code == 0


def test_reconstructions_of_more_and_more_groups(command):
    arguments = ("wide.png", "right.png", "--keep-groups", "0,1,4", "--seed", "5")
    code, out, _ = command("-m", "reconstruct", MODEL, *arguments)
    assert code == 0
    assert out.count("wide.png was") == 2  # cropped, resized
    table = [line.split() for line in out.splitlines() if line.startswith(("wide.png ", "right.png "))][-2:]
    assert [row[0] for row in table] == ["wide.png", "right.png"]
    assert all(0 < float(error) < 1 for row in table for error in row[1:])
    assert [len(row) for row in table] == [4, 4]
    assert saved() == ["reconstruction_tiny.png"]
    assert json.loads(text_of("images/reconstruction_tiny.png")["keep_groups"]) == [0, 1, 4]
    cells = cells_of("images/reconstruction_tiny.png")
    assert len(cells) == 4
    assert all_differ(cells)
    with Image.open("wide.png") as wide:
        fitted = Image.fromarray(fit(wide, 8, 3).transpose(1, 2, 0))
    np.testing.assert_allclose(cells[0], np.asarray(fitted.resize((128, 128), Image.Resampling.BICUBIC)), atol=1)


def test_a_reconstruction_needs_no_options(command):
    code, out, _ = command("-m", "reconstruct", MODEL, "right.png")
    assert code == 0
    assert "4 of 4 groups" in out
    command("-m", "reconstruct", MODEL, "wide.png")
    assert saved() == ["reconstruction_tiny.png", "reconstruction_tiny_2.png"]


def test_the_free_groups_of_a_reconstruction_have_a_temperature(command):
    for temperature in ("0", "1", "0.5,2"):
        arguments = ("--keep-groups", "1", "--temperature", temperature, "--seed", "3", "--out", temperature)
        assert command("-m", "reconstruct", MODEL, "right.png", *arguments).code == 0
    assert all_differ([pixels_of(f"{folder}/reconstruction_tiny.png") for folder in ("0", "1", "0.5,2")])


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "required: FILE"),
        (["right.png", "--keep-groups", "0,5"], "--keep-groups is 5; the model has 4 latent groups"),
        (["right.png", "--keep-groups", "0,-1"], "'-1' is not a whole number from 0 on"),
        (["right.png", "--temperature", "0.7"], "say --keep-groups with it"),
        (["right.png", "--keep-groups", "1.5"], "'1.5' is not a whole number from 0 on"),
        (["right.png", "--keep-groups", "some"], "'some' is not a whole number from 0 on"),
        (["right.png", "--keep-groups", "1", "--temperature", "1,2,3"], "temperature: got 3"),
    ],
)
def test_wrong_reconstructions_are_refused(command, folder, arguments, pattern):
    before = files(folder)
    command("-m", "reconstruct", MODEL, *arguments).assert_refused(pattern)
    assert files(folder) == before


# ----------------------------------------------------------------------------------------- mistakes, for all of them


@pytest.mark.parametrize("script", ["sample.py", "cherry.py", EXPLORE])
@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([MODEL, "warm"], "'warm' is not a number from 0 on"),
        ([MODEL, "-1"], "'-1' is not a number from 0 on"),
        ([MODEL, "nan"], "'nan' is not a number from 0 on"),
        ([MODEL, "1e400"], "'1e400' is not a number from 0 on"),
        ([MODEL, "0.7,"], "'0.7,' is not a number from 0 on"),
        ([MODEL, "0.7", "-1"], "'-1' is not a whole number from 0 on"),
        ([MODEL, "0.7", "1.5"], "'1.5' is not a whole number from 0 on"),
        ([MODEL, "0.7", "²"], "'²' is not a whole number from 0 on"),
        ([MODEL, "0.7", "2", "3"], "unrecognized arguments: 3"),
        ([MODEL, "0.7", "2", "--seed", "-1"], "'-1' is not a whole number from 0 on|expected one argument"),
        ([MODEL, "0.7", "2", "--device", "abacus"], "no device 'abacus'"),
        (["gone.model", "0.7"], "there is no file 'gone.model'; there are saved_weights/known.model, "),
        (["wide.png", "0.7"], "wide.png is not a checkpoint"),
        (["saved_weights", "0.7"], "there is no file 'saved_weights'"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(command, folder, script, arguments, pattern):
    before = files(folder)
    command(script, *arguments).assert_refused(pattern)
    assert files(folder) == before


@pytest.mark.parametrize("script", ["sample.py", EXPLORE])
def test_a_wrong_number_of_scales_names_the_scales(command, script):
    command(script, MODEL, "0.1,0.2,0.3", "0").assert_refused("2x2, 4x4")
    assert saved() == []


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["sample.py", MODEL], "give a TEMPERATURE, such as 0.7, or --sweep"),
        (["sample.py", MODEL, "--sweep", "0.5,warm"], "'0.5,warm' is not a number from 0 on"),
        (["sample.py", MODEL, "--sweep", "0.5,1", "--rows", "2"], "leave out --rows and --count"),
        (["sample.py", MODEL, "--sweep", "0.5,1", "--count", "2"], "leave out --rows and --count"),
        (["sample.py", MODEL, "--sweep", "0.5,1", "--temperature", "1"], "give one of the two"),
        (["sample.py", MODEL, "--sweep", "0.5,1", "0.7"], "after MODEL give ITERATIONS alone"),
        (["sample.py", MODEL, "--temperature", "0.5,1", "0.7", "3"], "after MODEL give ITERATIONS alone"),
        (["sample.py", MODEL, "0.7", "--count", "2", "--rows", "2"], "leave out --rows and --columns"),
        (["sample.py", MODEL, "0.7", "--count", "0"], "'0' is not a whole number from 1"),
        (["sample.py", MODEL, "0.7", "--pixels", "best"], "invalid choice: 'best'"),
        (["cherry.py"], "give a MODEL and a TEMPERATURE"),
        (["cherry.py", MODEL], "give a MODEL and a TEMPERATURE"),
        (["cherry.py", MODEL, "0.7", "--winners", "0"], "'0' is not a whole number from 1"),
        (["cherry.py", MODEL, "0.7", "--batch", "x"], "'x' is not a whole number from 1"),
        (["cherry.py", MODEL, "0.7", "--scale-noise", "-1"], "'-1' is not a number from 0 on|expected one argument"),
        (["cherry.py", MODEL, "0.7", "--iterations", "3"], "are of --redo"),
        (["cherry.py", MODEL, "0.7", "--temperature", "1"], "are of --redo"),
        (["cherry.py", "--redo", "a.json", MODEL, "0.7"], "takes another temperature as --temperature"),
        (["cherry.py", "--redo", "a.json", "--seed", "3"], "--redo has its seeds"),
        (["cherry.py", "--redo", "gone.json"], "gone.json cannot be read"),
        (["cherry.py", "--redo", "wide.png"], "wide.png is no selection"),
        (["cherry.py", "--redo", "saved_weights"], "saved_weights cannot be read"),
        ([EXPLORE, MODEL], "required: TEMPERATURE"),
        ([EXPLORE, MODEL, "0.7", "--group", "5"], "--group is 5; the model has 4 latent groups, 1 is the top one"),
        ([EXPLORE, MODEL, "0.7", "--group", "0"], "'0' is not a whole number from 1"),
        ([EXPLORE, MODEL, "0.7", "--jams", "0"], "'0' is not a whole number from 1"),
        ([EXPLORE, MODEL, "0.7", "--strength", "strong"], "'strong' is not a number from 0 on"),
        ([EXPLORE, MODEL, "0.7", "--strength", "1,2"], "'1,2' is not one number"),
        ([EXPLORE, MODEL, "0.7", "--animate", "avi"], "invalid choice: 'avi'"),
        ([EXPLORE, MODEL, "0.7", "--animate", "--jams", "2"], "goes without --jams"),
        ([EXPLORE, MODEL, "0.7", "--seconds", "2"], "--animate has a length, --seconds"),
        ([EXPLORE, MODEL, "0.7", "--animate", "--seconds", "9999"], "'9999' is more than 600 seconds"),
        ([EXPLORE, MODEL, "0.7", "--difference", "--group", "2"], "--difference is of the overview"),
        ([EXPLORE, MODEL, "0.7", "--difference", "--animate"], "--difference is of the overview"),
        (["-m", "interpolate", "gone.model", "wide.png", "right.png"], "there is no file 'gone.model'"),
        (["-m", "reconstruct", "gone.model", "wide.png"], "there is no file 'gone.model'"),
    ],
)
def test_wrong_arguments_are_one_sentence_and_write_nothing(command, folder, arguments, pattern):
    before = files(folder)
    command(*arguments).assert_refused(pattern)
    assert files(folder) == before


BROKEN = {
    "cut.png": "'cut.png'",
    "text.png": "'text.png'",
    "empty.png": "'empty.png'",
    "gone.png": "'gone.png'",
    "pictures": "'pictures' is a folder",
}


@pytest.mark.parametrize(("name", "pattern"), BROKEN.items())
def test_a_broken_picture_is_one_sentence(command, folder, name, pattern):
    (folder / "cut.png").write_bytes((folder / "wide.png").read_bytes()[:100])
    (folder / "text.png").write_text("a picture")
    (folder / "empty.png").write_bytes(b"")
    (folder / "pictures").mkdir()
    command("-m", "reconstruct", MODEL, "wide.png", name).assert_refused(pattern)
    assert saved() == []


def test_a_broken_picture_is_one_sentence_everywhere(command, folder):
    (folder / "text.png").write_text("a picture")
    for arguments in ([EXPLORE, MODEL, "0.7", "0", "--image"], ["-m", "interpolate", MODEL, "wide.png"]):
        command(*arguments, "text.png").assert_refused("'text.png'")
    assert saved() == []


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample.py", MODEL, "0.7", "0", "--columns", "1"],
        ["sample.py", MODEL, "0.7", "0", "--count", "2"],
        ["cherry.py", MODEL, "0.7", "0"],
        ["cherry.py", "--redo", "picks.json"],
        [EXPLORE, MODEL, "0.7", "0"],
        [EXPLORE, MODEL, "0.7", "0", "--animate", "--seconds", "0.1"],
        ["-m", "interpolate", MODEL, "wide.png", "right.png"],
        ["-m", "interpolate", MODEL, "--walk", "2", "--seconds", "0.1", "--iterations", "0"],
        ["-m", "reconstruct", MODEL, "right.png"],
    ],
    ids=" ".join,
)
def test_a_folder_that_cannot_be_written_is_one_sentence(command, folder, typed, arguments):
    cell = {"model": MODEL, "weights": "0", "seed": 1, "temperature": [0.7], "iterations": 0, "statistics": None}
    (folder / "picks.json").write_text(json.dumps({"cells": [cell]}))
    (folder / "file").write_text("mine")
    typed("1", "q")
    command(*arguments, "--out", "file").assert_refused("^error: file/.* could not be saved")
    assert (folder / "file").read_text() == "mine"


LONG = "x" * 300


@pytest.mark.parametrize(
    "arguments",
    [
        ["sample.py", LONG, "0.7"],
        ["-m", "reconstruct", MODEL, LONG],
        ["sample.py", MODEL, "0.7", "0", "--out", LONG],
        [EXPLORE, MODEL, "0.7", "0", "--image", "z" * 240 + ".png"],
    ],
    ids=["model", "picture", "folder", "result"],
)
def test_names_that_are_too_long_are_one_sentence(command, folder, arguments):
    shutil.copy("wide.png", "z" * 240 + ".png")
    (folder / "images").mkdir()
    command(*arguments).assert_refused("xxx|zzz")


@pytest.mark.parametrize("script", ["sample.py", "cherry.py", EXPLORE])
def test_names_that_are_no_text_are_fine(command, folder, typed, script):
    name = os.fsdecode(b"\xff.model")
    try:
        shutil.copy(MODEL, name)
    except OSError:
        pytest.skip("this file system takes no such names")
    typed("1", "q")
    assert command(script, name, "0.7", "0", "--seed", "5").code == 0


# ------------------------------------------------------------------------------------ programs with a real terminal


@pytest.fixture
def terminal(root, folder):
    """A function that starts cherry.py on a pseudo-terminal, without a display."""
    if sys.platform == "win32":
        pytest.skip("there are no pseudo-terminals")
    pexpect = pytest.importorskip("pexpect")
    started = []
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")
    environment = {key: value for key, value in os.environ.items() if key not in displays}

    def start(*arguments):
        plain = [str(root / "cherry.py"), MODEL, "0.7", "0", "--seed", "50", "--device", "cpu", "--inline", "none"]
        child = pexpect.spawn(sys.executable, [*plain, *arguments], env=environment, encoding="utf-8", timeout=120)
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


PROMPT = "leaves and keeps what is picked: "


def test_picking_in_a_terminal(terminal):
    child = terminal("--winners", "3")

    def say(line, *answers):
        child.sendline(line)
        for answer in answers:
            child.expect_exact(answer)

    child.expect_exact("picked 0 of 3")
    child.expect_exact(PROMPT)
    say("4", "picked 1 of 3", PROMPT)
    say("nonsense", "'nonsense' is not understood", PROMPT)
    say("7", "picked 2 of 3", PROMPT)
    say("u", "picked 1 of 3", PROMPT)
    say("0", "batch 2, seeds 59 to 67; picked 1 of 3", PROMPT)
    say("1 9", "in which order?", "u goes back: ")
    say("3 1", "images/cherry_0.7_tiny.png")
    child.expect(child.delimiter)  # the end
    child.wait()
    assert child.exitstatus == 0
    assert seeds_in("images/cherry_0.7_tiny.json") == [67, 53, 59]
    assert saved() == ["cherry_0.7_tiny.json", "cherry_0.7_tiny.png"]


def test_a_terminal_that_closes_leaves_the_picks_and_their_picture(terminal):
    child = terminal()
    child.expect_exact(PROMPT)
    child.sendline("3 5")
    child.expect_exact("picked 2 of 9")
    child.expect_exact(PROMPT)
    child.ptyproc.fileobj.close()  # the terminal's end
    child.ptyproc.wait()
    assert seeds_in("images/cherry_0.7_tiny.json") == [52, 54]
    assert saved() == ["cherry_0.7_tiny.json", "cherry_0.7_tiny.png"]
