"""What all commands that draw pictures have in common."""

import json
import shlex

import numpy as np
import pytest
from PIL import Image, ImageSequence

from nvae.data.pictures.metadata import read_metadata

ENDS = ["seed:1", "seed:2", "--iterations", "0"]


def frames_of(path):
    """Return all frames of a picture or a film."""
    with Image.open(path) as picture:
        return np.stack([np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(picture)])


@pytest.mark.usefixtures("tools")
@pytest.mark.parametrize(
    "arguments",
    [
        ["sample.py", "tiny", "0.7", "0", "--rows", "1", "--columns", "2"],
        ["sample.py", "tiny", "0.7", "0", "--seed=3", "--count", "2"],
        ["latent_space_exploration.py", "tiny", "0.7", "0"],
        ["latent_space_exploration.py", "tiny", "0.7", "0", "--animate", "--seconds", "0.2"],
        ["-m", "interpolate", "tiny", *ENDS, "--steps", "2"],
        ["-m", "interpolate", "tiny", *ENDS, "--coarse-from", "A"],
        ["-m", "interpolate", "tiny", *ENDS, "--animate", "gif", "--seconds", "0.2"],
        ["-m", "interpolate", "tiny", "--walk", "2", "--iterations", "0", "--seconds", "0.2"],
        ["-m", "interpolate", "tiny", "a picture.png", "right.png", "--steps", "2"],
        ["-m", "reconstruct", "tiny", "a picture.png", "--keep-groups", "1", "--temperature", "0.7"],
        ["-m", "reconstruct", "tiny", "a picture.png"],
    ],
)
def test_result_holds_and_prints_the_command_that_makes_it_again(command, tools, files, arguments):
    (tools / "a picture.png").write_bytes((tools / "wide.png").read_bytes())
    code, out, _ = command(*arguments)
    assert code == 0
    names = files.names()
    held = {read_metadata(tools / "images" / name)["command"] for name in names}
    assert held == {out.splitlines()[-1].removeprefix("to reproduce: ")}
    words = shlex.split(held.pop())
    again = ["-m", *words[3:]] if words[1] == "-m" else [arguments[0], *words[2:]]
    assert command(*again, "--no-window", "--out", "again").code == 0
    assert files.names("again") == names
    for name in names:
        assert np.array_equal(frames_of(f"again/{name}"), frames_of(f"images/{name}"))
    assert command("-m", "summary", f"images/{names[0]}").out.startswith("command ")


@pytest.mark.usefixtures("tools")
def test_result_of_the_same_settings_is_replaced_although_the_command_differs(command, files):
    for other in ([], ["--no-window"]):
        command("sample.py", "tiny", "0.7", "0", "--seed", "3", *other)
    assert "--no-window" in files.texts(files.only())["command"]


@pytest.mark.usefixtures("tools")
def test_summary_of_picks_says_how_to_draw_them_again(command, typed, files):
    typed("4 2", "", "1 2")
    command("cherry.py", "tiny", "0.6", "0", "--seed", "50", "--winners", "2", "--out", "my picks.png")
    name, line = command("-m", "summary", "my picks.png").out.splitlines()[0].split(maxsplit=1)
    assert name == "command"
    assert command("-m", *shlex.split(line)[3:], "--out", "again.png").code == 0
    assert json.loads(files.texts("again.png")["cells"]) == json.loads(files.texts("my picks.png")["cells"])
