import errno
import io
import json
import os
import shutil
import signal
import sys

import numpy as np
import pytest
from PIL import Image

from nvae.checkpoint import load_model, weights_digest
from nvae.tools.grids import grid
from nvae.tools.picking import selection

pytestmark = pytest.mark.usefixtures("tools")
NAME = "cherry_tiny_temperature0.7"
RESULT = f"images/{NAME}.json"
PICK = ("cherry.py", "tiny", "0.7", "0", "--seed", "50")


@pytest.fixture
def picked(command, typed):
    """A result of cherry.py, of three samples; returns a function that draws the result again."""
    typed("9 1 4", "", "")
    assert command("cherry.py", "tiny", "0.7", "2", "--seed", "50", "--winners", "3").code == 0

    def redo(*changes, file=RESULT):
        return command("cherry.py", "--redo", file, *changes)

    return redo


def answers(monkeypatch, *lines):
    """Have input() return lines, and raise those that are exceptions."""
    waiting = iter(lines)

    def read(prompt):
        line = next(waiting)
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


@pytest.mark.slow
def test_cherry_saves_picks_in_their_order(command, typed, files):
    typed("3", "x", "8 0", "u", "u", "0", "1 2", "2", "nonsense", "5 6", "0", "3 1", "")
    code, out, _ = command("cherry.py", "tiny", "0.7,0.9", "2", "--seed", "50", "--winners", "4")
    assert code == 0
    assert files.names() == [f"{NAME}-0.9.json", f"{NAME}-0.9.png"]
    # 3, (8 undone), then of the second batch 1, (2 unpicked), 5 and 6, of which the third and the first come first
    assert files.seeds(f"images/{NAME}-0.9.json") == [63, 52, 59, 64]
    cell = json.loads((files.texts(f"images/{NAME}-0.9.png"))["cells"])[0]
    assert (cell["model"], cell["temperature"], cell["iterations"]) == ("saved_weights/tiny.checkpoint", [0.7, 0.9], 2)
    assert cell["weights"] == weights_digest(load_model("saved_weights/tiny.checkpoint"))
    with Image.open(f"images/{NAME}-0.9.png") as picture:
        assert picture.size == (2 * 164 + 4, 2 * 164 + 4)


def test_cherry_draws_what_sample_draws(command, typed, files):
    typed("4", "q")
    command("cherry.py", "tiny", "0.7", "2", "--seed", "50")
    command("sample.py", "tiny", "0.7", "2", "--seed", "53", "--rows", "1", "--columns", "1", "--out", "alone.png")
    np.testing.assert_allclose(files.pixels(f"images/{NAME}.png"), files.pixels("alone.png"), atol=1)


@pytest.mark.parametrize("lines", [("0", "q"), ("3", "u")])
def test_cherry_without_picks_leaves_no_files(command, typed, files, lines):
    typed(*lines)
    assert command(*PICK).code == 0
    assert files.names() == []


def test_cherry_end_of_input_keeps_the_picks(command, typed, files):
    typed("3 4")
    assert command(*PICK).code == 0
    assert files.seeds(RESULT) == [52, 53]


def test_cherry_error_in_the_middle_names_the_picks(command, typed, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "chafa", None)  # as if it were not installed
    typed("q")
    command(*PICK, "--inline", "sixel").assert_refused("'terminal'")
    assert files.names() == []


@pytest.mark.slow
def test_cherry_never_replaces_a_result(command, typed, tools, files):
    (tools / "images").mkdir()
    (tools / "images" / f"{NAME}_2.png").write_text("mine")
    for _ in range(2):
        typed("3", "q")
        command(*PICK)
    assert files.names() == [f"{NAME}{end}" for end in (".json", ".png", "_2.png", "_3.json", "_3.png")]
    assert (tools / "images" / f"{NAME}_2.png").read_text() == "mine"
    command(*PICK, "--out", f"images/{NAME}.png").assert_refused(NAME)


def test_cherry_record_is_written_after_every_answer(command, monkeypatch, tools):
    seen, lines = [], iter(["3", "0", "1 2", "u", "q"])

    def read(prompt):
        record = (tools / RESULT).read_text()
        seen.append([cell["seed"] for cell in json.loads(record)["cells"]] if record else None)
        return next(lines)

    monkeypatch.setattr("builtins.input", read)
    command(*PICK)
    assert seen == [None, [52], [52], [52, 59, 60], [52, 59]]


def test_cherry_ctrl_c_keeps_and_draws_the_picks(command, monkeypatch, files):
    answers(monkeypatch, "3 5", KeyboardInterrupt())
    code, _, error = command(*PICK)
    assert code == 130
    assert "Traceback" not in error
    assert files.seeds(RESULT) == [52, 54]
    assert files.names() == [f"{NAME}.json", f"{NAME}.png"]


def test_cherry_lost_terminal_keeps_and_draws_the_picks(command, monkeypatch, files):
    """The input ends before the signal comes, and nothing can be printed any more."""

    class Terminal(io.StringIO):
        lost = False

        def write(self, text):
            if self.lost:
                raise OSError(errno.EIO, "Input/output error")
            return super().write(text)

    lines = iter(["3 5"])

    def read(prompt):
        for line in lines:
            return line
        Terminal.lost = True
        raise EOFError

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdout", Terminal())
    assert command(*PICK).code == 0
    assert files.seeds(RESULT) == [52, 54]
    assert files.names() == [f"{NAME}.json", f"{NAME}.png"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP")
def test_cherry_second_hangup_does_not_stop_the_drawing(command, monkeypatch, files):
    """A shell in a closing terminal passes the hang-up on, and the system sends its own."""
    lines = iter(["3 5"])

    def hang_up():
        os.kill(os.getpid(), signal.SIGHUP)

    def read(prompt):
        line = next(lines, None)
        return hang_up() if line is None else line

    def drawing(*arguments, **options):
        hang_up()
        return grid(*arguments, **options)

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(selection, "grid", drawing)
    outer = []
    before = signal.signal(signal.SIGHUP, lambda *_: outer.append("hang-up"))
    try:
        command(*PICK)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert files.names() == [f"{NAME}.json", f"{NAME}.png"]
    assert outer == []


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["json", "png"])
def test_redo_is_the_same_to_the_byte(picked, tools, files, ending):
    before = files.all(tools / "images")
    assert picked(file=f"images/{NAME}.{ending}").code == 0
    after = files.all(tools / "images")
    assert before.items() < after.items()  # nothing was replaced
    for suffix in (".json", ".png"):
        assert after[f"{NAME}_redo{suffix}"] == before[f"{NAME}{suffix}"]
    picked()
    assert f"{NAME}_redo_2.png" in files.names()


@pytest.mark.slow
def test_redo_with_a_change_is_another_picture_that_says_so(picked, tools, files, all_differ):
    before, pictures = files.all(tools / "images"), [files.pixels(f"images/{NAME}.png")]
    for changes, key, value in (
        (("--temperature", "0.2"), "temperature", [0.2]),
        (("--temperature", "1.5,0.2"), "temperature", [1.5, 0.2]),
        (("--iterations", "0"), "iterations", 0),
        (("--pixels", "sample"), "pixels", "sample"),
        (("--scale-noise", "0.5,2"), "scale_noise", [0.5, 2.0]),
        (("other",), "model", "saved_weights/final_result_other.model"),
    ):
        there = set(files.names())
        assert picked(*changes).code == 0
        name = max(set(files.names()) - there).removesuffix(".png")
        record = json.loads((tools / "images" / f"{name}.json").read_text())
        assert record.get(key, record["cells"][0].get(key)) == value
        assert files.seeds(f"images/{name}.json") == [58, 50, 53]
        assert json.loads(files.texts(f"images/{name}.png")["cells"]) == record["cells"]
        pictures.append(files.pixels(f"images/{name}.png"))
    assert all_differ(pictures)
    assert before.items() < files.all(tools / "images").items()


@pytest.mark.slow
def test_redo_with_changed_weights_warns(picked):
    assert "tiny.checkpoint" not in picked().out
    shutil.copy("saved_weights/final_result_other.model", "saved_weights/tiny.checkpoint")
    assert "tiny.checkpoint" in picked().out


@pytest.mark.parametrize(
    ("arguments", "pattern"),
    [
        ([], "--redo"),
        (["tiny"], "TEMPERATURE"),
        (["tiny", "0.1,0.2,0.3", "0"], "2x2, 4x4"),
        (["tiny", "0.7", "0", "--scale-noise", "1,2,3"], "2x2, 4x4"),
        (["tiny", "0.7", "--winners", "0"], "'0'"),
        (["tiny", "0.7", "--temperature", "1"], "--redo"),
        (["--redo", "a.json", "tiny", "0.7"], "--redo"),
        (["--redo", "a.json", "--seed", "3"], "--seed"),
        (["--redo", "gone.json"], "gone.json"),
        (["--redo", "wide.png"], "wide.png"),
        (["--redo", "saved_weights"], "saved_weights"),
        (["--redo", "picks.json"], "gone.model"),
        (["tiny", "0.7", "0", "--out", "wide.png/below"], "wide.png"),
    ],
)
def test_cherry_mistakes_are_one_line_and_write_nothing(command, tools, files, arguments, pattern):
    cell = {"model": "gone.model", "weights": "0", "seed": 1, "temperature": [0.7], "iterations": 2, "statistics": None}
    (tools / "picks.json").write_text(json.dumps({"cells": [cell]}))
    before = files.all(tools)
    command("cherry.py", *arguments).assert_refused(pattern)
    assert files.all(tools) == before


@pytest.fixture
def terminal(root, tools):
    """A function that starts cherry.py on a pseudo-terminal, without a display."""
    pexpect = pytest.importorskip("pexpect")
    started = []
    displays = ("DISPLAY", "WAYLAND_DISPLAY", "SSH_CONNECTION")
    environment = {key: value for key, value in os.environ.items() if key not in displays}

    def start(*arguments):
        plain = [str(root / PICK[0]), *PICK[1:], "--device", "cpu", "--inline", "none"]
        child = pexpect.spawn(sys.executable, [*plain, *arguments], env=environment, encoding="utf-8", timeout=120)
        started.append(child)
        return child

    yield start
    for child in started:
        child.close(force=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_cherry_plays_in_a_terminal(terminal, files):
    child = terminal("--winners", "3")
    child.expect_exact("picked 0 of 3")
    for line, answer in (
        ("4", "picked 1 of 3"),
        ("nonsense", "nonsense"),
        ("0", "batch 2, seeds 59 to 67"),
        ("1 9", "picked 3 of 3"),
        ("", "0 of 3"),
        ("3 1", "2 of 3"),
        ("", f"images/{NAME}.png"),
    ):
        child.sendline(line)
        child.expect_exact(answer)
    child.expect(child.delimiter)  # the end
    child.wait()
    assert child.exitstatus == 0
    assert files.seeds(RESULT) == [67, 53, 59]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_cherry_closed_terminal_leaves_picks_and_picture(terminal, files):
    child = terminal()
    child.expect_exact("picked 0 of 9")
    child.sendline("3 5")
    child.expect_exact("picked 2 of 9")
    child.expect_exact("> ")
    child.ptyproc.fileobj.close()  # the terminal's end
    child.ptyproc.wait()
    assert files.seeds(RESULT) == [52, 54]
    assert files.names() == [f"{NAME}.json", f"{NAME}.png"]
