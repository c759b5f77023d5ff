import itertools
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import nvae
from nvae.checkpoint import load_model, weights_digest
from nvae.inference import sampling
from nvae.inference.sampling import Sampler
from nvae.tools.grids import single

pytestmark = pytest.mark.usefixtures("tools")
FILE = "saved_weights/tiny.checkpoint"


def test_sample_grid_has_rows_columns_and_metadata(command, files):
    code, out, _ = command("sample.py", "tiny", "0.7", "2", "--seed", "5", "--rows", "2", "--columns", "4")
    assert code == 0
    assert files.names() == ["sample_tiny_temperature0.7_iterations2_seed5.png"]
    with Image.open(files.only()) as picture:
        assert picture.size == (4 * 164 + 4, 2 * 164 + 4)
        texts = picture.text
    assert (texts["seed"], texts["images"], texts["iterations"], texts["pixels"]) == ("5", "8", "2", "mean")
    assert (texts["model"], texts["weights"]) == (FILE, weights_digest(load_model(FILE)))


def test_sample_random_seed_is_printed_and_reproduces(command, tools, files):
    _, out, _ = command("sample.py", "tiny", "0.7", "0", "--rows", "1", "--columns", "1")
    before = files.all(tools / "images")
    again = re.search(r"sample\.py (tiny .*)", out)[1]
    assert command("sample.py", *again.split()).code == 0
    assert files.all(tools / "images") == before


def test_open_sampler_makes_the_images_of_the_command_and_prints_nothing(command, files, capsys):
    command("sample.py", "tiny", "0.7,0.9", "2", "--seed", "8", "--count", "1", "--out", "many")
    saved = Path(f"{FILE}.statistics").read_bytes()
    sampler = nvae.open_sampler(FILE, [0.7, 0.9], 2, device="cpu")
    image = np.asarray(single(sampler.sample([8])[0]))
    assert np.array_equal(image, np.asarray(Image.open(f"many/{files.names('many')[0]}")))
    assert Path(f"{FILE}.statistics").read_bytes() == saved  # which the command has measured
    assert capsys.readouterr() == ("", "")


def test_sample_npz_has_the_pictures_of_the_seeds(command, monkeypatch):
    monkeypatch.setattr("nvae.cli.sample.IMAGES_PER_STEP", 2)
    arguments = ("sample.py", "tiny", "0.7", "0", "--seed", "8", "--count", "3", "--out", "many")
    assert command(*arguments).code == command(*arguments, "--npz").code == 0
    (path,) = Path("many").glob("*.npz")
    with np.load(path) as arrays:
        assert arrays.files == ["arr_0"]
        images = arrays["arr_0"]
    pictures = [np.asarray(Image.open(picture)) for picture in sorted(Path("many").glob("*.png"))]
    assert images.dtype == np.uint8
    assert np.array_equal(images, np.stack(pictures))
    assert command(*arguments[:-1], "one.npz", "--npz").code == 0
    assert Path("one.npz").read_bytes() == path.read_bytes()
    command("sample.py", "tiny", "0.7", "--npz").assert_refused("--count")


def test_sample_count_saves_single_images_with_padded_names(command, files):
    assert command("sample.py", "tiny", "0.7", "0", "--seed", "8", "--count", "3", "--out", "many").code == 0
    assert files.names("many") == [f"sample_tiny_temperature0.7_iterations0_seed{n}.png" for n in ("08", "09", "10")]
    model = load_model(FILE)
    for seed, name in zip((8, 9, 10), files.names("many"), strict=True):
        assert files.texts(f"many/{name}")["seed"] == str(seed)
        expected = np.asarray(single(Sampler(model, 0.7, iterations=0).sample([seed])[0]), int)
        np.testing.assert_allclose(files.pixels(f"many/{name}"), expected, atol=1)


@pytest.fixture
def steps_of_two(monkeypatch):
    """A function: `before` is called with the number of each step of two images before they are sampled."""

    def steps_of_two(before):
        numbers, sample = itertools.count(), Sampler.sample

        def sample_after(*arguments):
            before(next(numbers))
            return sample(*arguments)

        monkeypatch.setattr("nvae.cli.sample.IMAGES_PER_STEP", 2)
        monkeypatch.setattr(Sampler, "sample", sample_after)

    return steps_of_two


def test_sample_count_saves_images_while_the_next_ones_are_sampled(command, steps_of_two):
    def before(step):
        end = time.monotonic() + 30
        while step and len(list(Path("many").glob("*.png"))) < 2 * step:
            assert time.monotonic() < end
            time.sleep(0.01)

    steps_of_two(before)
    assert command("sample.py", "tiny", "0.7", "0", "--seed", "8", "--count", "7", "--out", "many").code == 0
    assert len(list(Path("many").glob("*.png"))) == 7


def test_sample_count_interrupted_leaves_whole_files(command, files, steps_of_two):
    def before(step):
        if step == 2:
            raise KeyboardInterrupt

    steps_of_two(before)
    assert command("sample.py", "tiny", "0.7", "0", "--seed", "8", "--count", "7", "--out", "many").code == 130
    assert all(re.fullmatch(r"sample_.*_seed(08|09|10|11)\.png", name) for name in files.names("many"))
    assert all(files.pixels(f"many/{name}").size for name in files.names("many"))


def test_sample_count_reports_an_error_of_writing(command, folder):
    Path("many").write_text("")
    command("sample.py", "tiny", "0.7", "0", "--count", "3", "--out", "many").assert_refused("many is a file")


def test_sample_out_may_name_a_file(command, tools, files):
    (tools / "folder.png").mkdir()
    for out in ("here/a.png", "folder.png"):
        assert command("sample.py", "tiny", "0.7", "0", "--seed", "5", "--out", out).code == 0
    assert files.names("here") == ["a.png"]
    assert files.names("folder.png") == ["sample_tiny_temperature0.7_iterations0_seed5.png"]
    for refused in (["--out", "a.jpg"], ["--out", "a.png", "--count", "2"]):
        command("sample.py", "tiny", "0.7", "0", *refused).assert_refused(refused[1])


def test_sample_sweep_has_one_row_per_temperature_that_spreads(command, files):
    assert command("sample.py", "tiny", "--sweep", "0,0.5,2", "3", "--seed", "5", "--columns", "2").code == 0
    with Image.open(files.only()) as picture:
        assert picture.height == 3 * 164 + 4
        assert (picture.text["temperature"], picture.text["iterations"]) == ("[0.0, 0.5, 2.0]", "3")
        cells = np.asarray(picture, int)[4:, picture.width - 2 * 164 :]
    differences = [np.abs(row[:, :160] - row[:, 164:324]).mean() for row in cells.reshape(3, 164, 328, 3)[:, :160]]
    assert differences[0] < differences[1] < differences[2]


@pytest.mark.slow
def test_sample_sweep_prints_a_warning_once(command):
    _, out, _ = command("sample.py", "tiny", "--sweep", "0.5,1,1.5", "1")
    assert len(out.splitlines()) == 3  # the warning about one pass, the file, the command
    _, out, _ = command("sample.py", "tiny", "--sweep", "0.5,1.5,0.5", "1")
    assert len(out.splitlines()) == 3


def test_sample_temperature_per_scale(command, files, all_differ):
    for temperature in ("0.2,1.5", "1.5,0.2", "0.2"):
        command("sample.py", "tiny", temperature, "0", "--seed", "5", "--count", "1", "--out", temperature)
        assert f"_temperature{temperature.replace(',', '-')}_" in files.only(temperature).name
    assert all_differ([files.pixels(files.only(folder)) for folder in ("0.2,1.5", "1.5,0.2", "0.2")])
    command("sample.py", "tiny", "0.1,0.2,0.3", "0").assert_refused("2x2, 4x4.*4 latent groups")


def test_sample_temperature_per_latent_group(command, files):
    temperatures = [0.2, 0.5, 0.9, 1.5]
    arguments = (",".join(map(str, temperatures)), "0", "--seed", "5", "--count", "1")
    assert command("sample.py", "tiny", *arguments).code == 0
    assert json.loads(files.texts(files.only())["temperature"]) == temperatures
    sampler = Sampler(load_model(FILE), temperatures, iterations=0)
    np.testing.assert_array_equal(files.pixels(files.only()), np.asarray(single(sampler.sample([5])[0])))


@pytest.mark.slow
@pytest.mark.parametrize(("text", "warns"), [("0,7", True), ("0.7,2.1", True), ("0.7,1", False), ("0", False)])
def test_sample_decimal_comma_warns(command, text, warns):
    code, _, error = command("sample.py", "tiny", text, "0", "--count", "1")
    assert code == 0
    assert (text in error) == warns


def test_sample_pixels_change_picture_and_name(command, files, all_differ):
    pictures = []
    for pixels in ("mean", "sample", "most_likely"):
        command("sample.py", "tiny", "0.7", "0", "--seed", "5", "--rows", "1", "--pixels", pixels, "--out", pixels)
        assert files.texts(files.only(pixels))["pixels"] == pixels
        assert (pixels in files.only(pixels).name) == (pixels != "mean")
        pictures.append(files.pixels(files.only(pixels)))
    assert all_differ(pictures)


def test_sample_show_seeds_adds_a_line_below_every_row(command, files):
    for name, options in (("plain.png", []), ("seeds.png", ["--show-seeds"])):
        command("sample.py", "tiny", "0.7", "0", "--seed", "5", "--out", name, *options)
    assert files.pixels("seeds.png").shape[0] > files.pixels("plain.png").shape[0]


def test_sample_pictures_of_other_settings_are_kept(command, files):
    for rows in ("1", "2", "1"):
        command("sample.py", "tiny", "0.7", "0", "--seed", "5", "--rows", rows)
    name = "sample_tiny_temperature0.7_iterations0_seed5"
    assert files.names() == [f"{name}.png", f"{name}_2.png"]
    assert [files.texts(f"images/{each}")["images"] for each in files.names()] == ["3", "6"]


@pytest.mark.slow
def test_sample_statistics_are_measured_once(command, tools, files, monkeypatch):
    assert command("sample.py", "tiny", "0.7", "2", "--seed", "5", "--out", "first").code == 0

    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(sampling, "measure", measure)
    assert command("sample.py", "tiny", "0.7", "2", "--seed", "5", "--out", "second").code == 0
    first, second = (files.only(folder) for folder in ("first", "second"))
    assert np.array_equal(files.pixels(first), files.pixels(second))
    with pytest.raises(AssertionError, match="measured again"):
        command("sample.py", "tiny", "0.8", "2", "--seed", "5")


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        (["tiny"], "TEMPERATURE"),
        (["tiny", "warm"], "'warm'"),
        (["tiny", "nan"], "'nan'"),
        (["tiny", "1e400"], "'1e400'"),
        (["tiny", "0.7", "1.5"], "'1.5'"),
        (["tiny", "0.7", "²"], "'²'"),
        (["tiny", "0.7", "2", "3"], "3"),
        (["tiny", "0.7", "2", "--device", "abacus"], "abacus"),
        (["gone", "0.7"], "gone"),
        (["", "0.7"], "'.' is a folder"),
        ([".", "0.7"], "'.' is a folder"),
        (["..", "0.7"], "'..' is a folder"),
        (["tiny", "70"], "0.7"),
        (["tiny", "--sweep", "0.5,1e9"], "1e.09"),
        (["wide.png", "0.7"], "wide.png"),
        (["tiny", "--sweep", "0.5,1", "--rows", "2"], "--rows"),
        (["tiny", "--sweep", "0.5,1", "--temperature", "1"], "--sweep"),
        (["tiny", "--sweep", "0.5,1", "0.7"], "ITERATIONS"),
        (["tiny", "0.7", "--count", "2", "--rows", "2"], "--rows"),
        (["x" * 300, "0.7"], "xxx"),
        (["tiny", "0.7", "0", "--out", "wide.png/below"], "wide.png"),
    ],
)
def test_sample_mistakes_are_one_line_and_write_nothing(command, tools, files, arguments, pattern):
    before = files.all(tools)
    command("sample.py", *arguments).assert_refused(pattern)
    assert files.all(tools) == before


@pytest.mark.slow
def test_sample_long_results_get_a_short_name(command, files):
    temperatures = ",".join(f"0.{n}" for n in range(100, 180))
    assert command("sample.py", "tiny", "--sweep", temperatures, "0", "--columns", "1").code == 0
    assert len(files.only().name) < 220
