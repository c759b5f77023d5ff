"""Every tool on a model with a context above all scales: the DVP-VAE."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nvae.checkpoint import load_model, save
from nvae.data.images import to_pixels
from nvae.data.pictures.metadata import read_metadata
from nvae.inference.reconstruction import pseudo_inputs
from nvae.inference.sampling import Sampler
from nvae.tools.grids import layout

EXPLORE = "latent_space_exploration.py"


@pytest.fixture
def dvp(folder, make_dvp):
    """A working directory with a model of a context and three groups on two scales, and two pictures of its size."""
    save(make_dvp(), folder / "saved_weights" / "dvp.checkpoint")
    ramp = np.linspace(0, 255, 8 * 8 * 3).astype(np.uint8).reshape(8, 8, 3)
    Image.fromarray(ramp).save("a.png")
    Image.fromarray(ramp[::-1].transpose(1, 0, 2).copy()).save("b.png")
    return load_model("saved_weights/dvp.checkpoint")


def enlarged(images, side):
    """Images (N, C, S, S) in [0, 1] as the cells of a picture."""
    return [
        np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BICUBIC), int)
        for image in to_pixels(images)
    ]


def cells_of(path, row=0, side=128, captions=True):
    """The cells of a row of a picture."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture, int)
    top = 4 + row * layout(8, 1, side, captions=["some"] if captions else []).row_height
    return [pixels[top : top + side, left : left + side] for left in range(4, pixels.shape[1] - side, side + 4)]


def assert_shows(cells, images, side=128):
    """Assert that cells show images, but for rounding, which grows in a few steps of a diffusion prior."""
    for cell, expected in zip(cells, enlarged(images, side), strict=True):
        np.testing.assert_allclose(cell, expected, atol=4)


def read(*paths):
    """Read pictures as images (N, C, S, S) in [0, 1]."""
    pixels = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    return pixels.permute(0, 3, 1, 2) / 255


# -------------------------------------------------------------------------------------------------- temperatures


@pytest.mark.parametrize(
    ("temperature", "context", "stored"),
    [("0.7", None, [0.7]), ("0.7", "0.2", [0.2, 0.7, 0.7]), ("0.5,0.9", "0.2", [0.2, 0.5, 0.9])],
)
def test_sample_has_a_temperature_of_the_context(dvp, command, files, temperature, context, stored):
    option = [] if context is None else ["--context-temperature", context]
    arguments = (temperature, "0", *option, "--seed", "5", "--rows", "1", "--columns", "2")
    assert command("sample.py", "dvp", *arguments).code == 0
    assert json.loads(files.texts(files.only())["temperature"]) == stored
    assert f"temperature{'-'.join(f'{value:g}' for value in stored)}_" in files.only().name
    images = Sampler(dvp, stored, iterations=0).sample([5, 6])
    assert_shows(cells_of(files.only(), side=160, captions=False), images, 160)


def test_sample_full_list_of_temperatures_starts_with_the_context(dvp, command, files):
    arguments = ("0", "--seed", "5", "--rows", "1", "--columns", "1", "--out")
    assert command("sample.py", "dvp", "0.2,0.5,0.9", *arguments, "full.png").code == 0
    assert command("sample.py", "dvp", "0.5,0.9", *arguments, "composed.png", "--context-temperature", "0.2").code == 0
    assert command("sample.py", "dvp", "0.2,0.5,0.5,0.9", *arguments, "groups.png").code == 0
    np.testing.assert_array_equal(files.pixels("full.png"), files.pixels("composed.png"))
    np.testing.assert_array_equal(files.pixels("full.png"), files.pixels("groups.png"))
    command("sample.py", "dvp", "0.2,0.5,0.7,0.8,0.9", *arguments, "wrong.png").assert_refused("2x2, 4x4.*context")


def test_sweep_keeps_the_temperature_of_the_context(dvp, command, files):
    arguments = ("--sweep", "0.4,1", "--context-temperature", "0.2", "--seed", "5", "--columns", "2")
    assert command("sample.py", "dvp", *arguments).code == 0
    assert files.names() == ["sample_dvp_sweep0.4-1_context0.2_iterations20_seed5.png"]
    assert json.loads(files.texts(files.only())["temperature"]) == [[0.2, 0.4, 0.4], [0.2, 1.0, 1.0]]
    sampler = Sampler(dvp, [0.2, 0.4, 0.4], iterations=0)
    height = layout(8, 1, 160).row_height
    first_row = files.pixels(files.only())[4:164, -2 * height : -height][:, :160]
    np.testing.assert_allclose(first_row, enlarged(sampler.sample([5]), 160)[0], atol=1)


@pytest.mark.slow
def test_picks_record_the_temperature_of_the_context(dvp, command, typed, files):
    typed("1 2", "", "")
    arguments = ("0.7", "0", "--context-temperature", "0.2", "--winners", "2", "--seed", "1", "--out", "picks.png")
    assert command("cherry.py", "dvp", *arguments).code == 0
    content = json.loads(Path("picks.json").read_text())
    assert [cell["temperature"] for cell in content["cells"]] == [[0.2, 0.7, 0.7]] * 2
    assert command("cherry.py", "--redo", "picks.json", "--out", "same.png").code == 0
    np.testing.assert_array_equal(files.pixels("picks.png"), files.pixels("same.png"))
    for options, stored in (
        (["--context-temperature", "0.9"], [0.9, 0.7, 0.7]),
        (["--temperature", "0.5", "--context-temperature", "0.9"], [0.9, 0.5, 0.5]),
        (["--temperature", "0.5"], [0.5]),
    ):
        assert command("cherry.py", "--redo", "picks.json", "--out", "redo.png", *options).code == 0
        content = json.loads(Path("redo.json").read_text())
        assert [cell["temperature"] for cell in content["cells"]] == [stored] * 2
        assert_shows(cells_of("redo.png", side=160, captions=False), Sampler(dvp, stored, 0).sample([1, 2]), 160)
        for suffix in (".json", ".png"):
            Path("redo").with_suffix(suffix).unlink()
    assert command(EXPLORE, "--from", "picks.json:1", "--seed", "1", "--out", "e.png").code == 0
    assert json.loads(files.texts("e.png")["temperature"]) == [0.2, 0.7, 0.7]
    assert command("-m", "interpolate", "dvp", "picks.json:1", "picks.json:2", "--out", "i.png").code == 0
    assert json.loads(files.texts("i.png")["temperature"]) == [0.2, 0.7, 0.7]


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample.py", "tiny", "0.7", "0"],
        ["sample.py", "tiny", "--sweep", "0.5,0.7"],
        ["cherry.py", "tiny", "0.7", "0"],
        ["cherry.py", "--redo", "picks.json"],
        [EXPLORE, "tiny", "0.7", "0"],
        ["-m", "interpolate", "tiny", "seed:1", "seed:2"],
        ["-m", "interpolate", "tiny", "--walk", "2"],
    ],
)
def test_context_temperature_of_a_model_without_a_context_is_refused(tools, command, typed, files, arguments):
    typed("1", "", "")
    command("cherry.py", "tiny", "0.7", "0", "--winners", "1", "--seed", "1", "--out", "picks.png")
    before = files.all(tools)
    command(*arguments, "--context-temperature", "0.7").assert_refused("no context")
    assert files.all(tools) == before


def test_context_temperature_of_pictures_is_refused(dvp, command):
    command("-m", "interpolate", "dvp", "a.png", "b.png", "--context-temperature", "1").assert_refused("--context-temp")
    command("sample.py", "dvp", "0.7", "--context-temperature", "1,2").assert_refused("1,2")


# --------------------------------------------------------------------------------------------------- exploration


def test_explore_draws_the_pseudo_inputs_of_the_context(dvp, command, files):
    code, out, _ = command(EXPLORE, "dvp", "0.7", "0", "--seed", "3", "--context-temperature", "0.9")
    assert code == 0
    rows = [line for line in out.splitlines() if line[:2] in ("1:", "2:", "3:", "4:")]
    assert ["context" in row for row in rows] == [True, False, False, False]
    sampler = Sampler(dvp, [0.9, 0.7, 0.7], iterations=0)
    noise = sampler.noise([3])
    first, second = cells_of(files.only(), side=160)[:2]
    assert_shows([first, second], torch.cat([sampler.decode(noise), sampler.pseudo_inputs(noise[0])]), 160)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--jams", "2"],
        ["--jams", "2", "--difference"],
        ["--group", "1"],
        ["--group", "1", "--image", "a.png"],
        ["--group", "2"],
        ["--image", "a.png", "--difference"],
        ["--animate", "--seconds", "0.2"],
        ["--group", "1", "--animate", "--seconds", "0.2", "--image", "a.png"],
    ],
)
def test_every_exploration_of_a_model_with_a_context(dvp, command, files, options):
    assert command(EXPLORE, "dvp", "0.7", "0", "--seed", "3", *options, "--context-temperature", "0.9").code == 0
    metadata = read_metadata(files.only())
    assert json.loads(metadata["temperature"]) == [0.9, 0.7, 0.7]
    if "--group" in options:
        assert metadata["group"] == options[1]


# ------------------------------------------------------------------------- pictures: interpolation, reconstruction


@pytest.mark.parametrize("options", [["--steps", "3"], ["--coarse-from", "A"]])
def test_pictures_between_two_have_their_contexts_below(dvp, command, files, options):
    assert command("-m", "interpolate", "dvp", "a.png", "b.png", *options).code == 0
    above, below = cells_of(files.only()), cells_of(files.only(), row=1)
    assert (below[0] == 255).all()
    assert (below[-1] == 255).all()
    images = read("a.png", "b.png")
    assert_shows([above[0], above[-1]], images)
    assert_shows([below[1], below[-2]], pseudo_inputs(dvp, images))


def test_interpolation_between_samples_in_several_rows(dvp, command, files):
    arguments = ("--steps", "14", "--temperature", "0.7", "--context-temperature", "0.9")
    assert command("-m", "interpolate", "dvp", "seed:1", "seed:2", *arguments).code == 0
    assert json.loads(files.texts(files.only())["temperature"]) == [0.9, 0.7, 0.7]
    sampler = Sampler(dvp, [0.9, 0.7, 0.7], iterations=0)
    ends = [sampler.noise([seed]) for seed in (1, 2)]
    assert_shows(cells_of(files.only())[:1], sampler.decode(ends[0]))
    assert_shows(cells_of(files.only(), row=1)[:1], sampler.pseudo_inputs(ends[0][0]))
    last = [cells_of(files.only(), row=row) for row in (6, 7)]  # 14 cells in rows of 4
    assert_shows([last[0][1], last[1][1]], torch.cat([sampler.decode(ends[1]), sampler.pseudo_inputs(ends[1][0])]))
    assert all((cell == 255).all() for row in last for cell in row[2:])


@pytest.mark.parametrize("options", [["a.png", "b.png", "--animate"], ["--walk", "2", "--context-temperature", "0.9"]])
def test_animations_of_a_model_with_a_context(dvp, command, files, options):
    assert command("-m", "interpolate", "dvp", *options, "--seconds", "0.2").code == 0
    with Image.open(files.only()) as film:
        assert film.n_frames == 4


def test_reconstruct_shows_the_context_and_counts_the_groups_below(dvp, command, files):
    code, out, _ = command("-m", "reconstruct", "dvp", "a.png", "b.png", "--keep-groups", "0,3")
    assert code == 0
    errors = [line.split()[1:] for line in out.splitlines() if line.startswith(("a.png ", "b.png "))]
    assert [len(row) for row in errors] == [3, 3]  # the context, and twice a number of groups
    images = read("a.png", "b.png")
    contexts = pseudo_inputs(dvp, images)
    measured = [(context - image).abs().mean().item() for context, image in zip(contexts, images, strict=True)]
    assert [float(row[0]) for row in errors] == pytest.approx(measured, abs=1e-4)
    cells = cells_of(files.only())
    assert_shows(cells[:2], torch.cat([images[:1], contexts[:1]]))
    command("-m", "reconstruct", "dvp", "a.png", "--keep-groups", "4").assert_refused("4.* 3")


def test_reconstruct_groups_below_the_context_have_a_temperature(dvp, command, files):
    for temperature in ("0.9", "0.5,0.9", "1,0.5,0.9"):
        arguments = ("--keep-groups", "0", "--temperature", temperature, "--seed", "3", "--out", f"{temperature}.png")
        assert command("-m", "reconstruct", "dvp", "a.png", *arguments).code == 0
    np.testing.assert_array_equal(files.pixels("0.5,0.9.png"), files.pixels("1,0.5,0.9.png"))
    assert (files.pixels("0.9.png") != files.pixels("0.5,0.9.png")).any()


def test_summary_names_the_context(dvp, command):
    code, out, _ = command("-m", "summary", "dvp")
    assert code == 0
    levels = [line for line in out.splitlines() if line[:2] in ("1:", "2:", "3:")]
    assert ["context" in line for line in levels] == [True, False, False]
    assert sum(line.startswith("context") for line in out.splitlines()) == 1
