import json
import shutil

import numpy as np
import pytest
from PIL import Image

from nvae.data.pictures.conversion import fit

pytestmark = pytest.mark.usefixtures("tools")


def test_reconstruct_shows_more_and_more_groups(command, files, all_differ):
    code, out, _ = command("-m", "reconstruct", "tiny", "wide.png", "right.png", "--keep-groups", "0,1,4")
    assert code == 0
    table = [line.split() for line in out.splitlines() if line.startswith(("wide.png ", "right.png "))][-2:]
    assert [row[0] for row in table] == ["wide.png", "right.png"]
    assert all(0 < float(error) < 1 for row in table for error in row[1:])
    assert files.names() == ["reconstruction_tiny_groups0-1-4.png"]
    assert json.loads(files.texts(files.only())["keep_groups"]) == [0, 1, 4]
    cells = [files.pixels(files.only())[4:132, left : left + 128] for left in range(4, 4 * 132, 132)]
    assert all_differ(cells)
    with Image.open("wide.png") as wide:
        fitted = Image.fromarray(fit(wide, 8, 3).transpose(1, 2, 0))
    np.testing.assert_allclose(cells[0], np.asarray(fitted.resize((128, 128), Image.Resampling.BICUBIC)), atol=1)


def test_reconstruct_keeps_the_groups_down_to_each_level(command, files):
    for groups in ("levels", "2,4"):
        assert (
            command("-m", "reconstruct", "tiny", "right.png", "--keep-groups", groups, "--out", f"{groups}.png").code
            == 0
        )
    levels, numbers = (files.pixels(f"{groups}.png") for groups in ("levels", "2,4"))
    assert json.loads(files.texts("levels.png")["keep_groups"]) == [2, 4]
    assert (levels[4:132] == numbers[4:132]).all()  # the captions differ


def test_reconstruct_wraps_many_pictures_and_counts_the_resized_ones(command, files):
    names = [f"picture_{n}.png" for n in range(40)]
    for name in names:
        shutil.copy("wide.png", name)
    _, out, _ = command("-m", "reconstruct", "tiny", *names)
    assert len([line for line in out.splitlines() if "40 images" in line]) == 2  # cropped, resized
    height, width, _ = files.pixels(files.only()).shape
    assert 0.5 < width / height < 2


def test_reconstruct_free_groups_have_a_temperature(command, files, all_differ):
    for temperature in ("0", "1", "0.5,2"):
        arguments = ("--keep-groups", "1", "--temperature", temperature, "--seed", "3", "--out", f"{temperature}.png")
        assert command("-m", "reconstruct", "tiny", "right.png", *arguments).code == 0
    assert all_differ([files.pixels(f"{temperature}.png") for temperature in ("0", "1", "0.5,2")])


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "FILE"),
        (["right.png", "--keep-groups", "0,5"], "--keep-groups: got 5.*4"),
        (["right.png", "--keep-groups", "0,-1"], "'-1'"),
        (["right.png", "--keep-groups", "level"], "'level'"),
        (["right.png", "--temperature", "0.7"], "--keep-groups"),
        (["right.png", "--keep-groups", "1", "--temperature", "0.1,0.2,0.3"], "2x2, 4x4"),
        (["right.png", "cut.png"], "cut.png"),
        (["right.png", "empty.png"], "empty.png"),
        (["right.png", "saved_weights"], "saved_weights"),
        (["x" * 300], "xxx"),
    ],
)
def test_reconstruct_mistakes_are_one_line_and_write_nothing(command, tools, files, arguments, pattern):
    (tools / "cut.png").write_bytes((tools / "wide.png").read_bytes()[:100])
    (tools / "empty.png").write_bytes(b"")
    before = files.all(tools)
    command("-m", "reconstruct", "tiny", *arguments).assert_refused(pattern)
    assert files.all(tools) == before
