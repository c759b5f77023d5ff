import io
import os
import queue
import sys
import threading

import numpy as np
import pytest
import torch
from matplotlib import pyplot
from matplotlib.backend_bases import CloseEvent, KeyEvent, MouseEvent
from PIL import Image

from nvae.tools.grids import MARK, grid, layout
from nvae.tools.picking import views
from nvae.tools.picking.game import Picking
from nvae.tools.picking.views import PickingWindow, answers_from_the_terminal, pick_at_prompt


def draw(view):
    """Small gray images."""
    shape = {"columns": view.columns, "captions": view.captions, "cell": 64}
    return grid(torch.full((len(view.seeds), 3, 8, 8), 0.5), marked=view.marked, **shape), layout(8, **shape)


class Record:
    """Records what is saved at every call."""

    def __init__(self, picking):
        self.picking, self.saved, self.answer = picking, [], ""

    def save(self):
        self.saved.append(list(self.picking.picks))
        return self.answer


# ------------------------------------------------------------------------------------------------ at the prompt


@pytest.fixture
def play(tmp_path, monkeypatch, capsys):
    """A function that plays a game with typed lines; returns the game, its record, and the printed text."""

    def play(*lines, batch=9, winners=3, answer="", draw=draw):
        picking = Picking(batch, winners, first_seed=100)
        record = Record(picking)
        record.answer = answer
        typed = iter(lines)

        def read(prompt):
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        pick_at_prompt(picking, draw, record.save, tmp_path / "batch.png")
        assert list(typed) == []  # no input is read after the end
        return picking, record, capsys.readouterr().out

    return play


def test_prompt_plays_a_whole_game_and_saves_after_every_answer(play):
    lines = ("2", "9 0", "u", "0", "nonsense", "u", "0", "5", "", "3 1", "")
    picking, record, _ = play(*lines)
    assert (picking.stage, picking.picks) == ("done", [113, 101, 108])
    assert record.saved[0] == [101]
    assert record.saved[-1] == [113, 101, 108]
    assert len(record.saved) == len(lines)


def test_prompt_draws_every_view_once(play):
    drawn = []

    def drawing(view):
        drawn.append((view.seeds[0], view.marked))
        return draw(view)

    play("2", "x", "3", "0", "1", "q", draw=drawing)
    assert drawn == [(100, set()), (100, {1}), (100, {1, 2}), (109, set()), (109, {0})]


def test_prompt_file_holds_the_view(play, tmp_path):
    _, _, out = play("2", "9")
    assert str(tmp_path / "batch.png") in out
    expected, _ = draw(Picking(9, 3, 100, picks=[101, 108]).view())
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.text["seeds"] == str(list(range(100, 109)))
        assert picture.tobytes() == expected.tobytes()
    assert os.listdir(tmp_path) == ["batch.png"]


@pytest.mark.parametrize(("lines", "order"), [(["4 2"], [103, 101]), (["4 2 1", "", "3"], [100, 103, 101])])
def test_prompt_end_of_input_saves(play, lines, order):
    picking, record, _ = play(*lines)
    assert (picking.stage, picking.picks, record.saved[-1]) == ("done", order, order)


def test_prompt_tells_what_goes_wrong_with_saving(play):
    _, _, out = play("4", "q", answer="not saved")
    assert out.count("not saved") == 2


def test_prompt_takes_bytes_that_are_no_text_as_a_wrong_answer(tmp_path, monkeypatch):
    class Terminal(io.RawIOBase):
        """Return the typed text line by line."""

        lines = iter([b"2\n", b"\xff\n", b"3\n", b"q\n"])

        def readable(self):
            return True

        def readinto(self, buffer):
            line = next(self.lines)
            buffer[: len(line)] = line
            return len(line)

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BufferedReader(Terminal()), "utf-8"))
    picking = Picking(9, 3, first_seed=100)
    pick_at_prompt(picking, draw, lambda: "", tmp_path / "batch.png")
    assert (picking.stage, picking.picks) == ("done", [101, 102])


@pytest.mark.parametrize(("protocol", "start"), [("kitty", "\x1b_G"), ("iterm2", "\x1b]1337"), ("sixel", "\x1bP")])
def test_prompt_shows_pictures_in_the_terminal(tmp_path, monkeypatch, capsys, protocol, start):
    pytest.importorskip("chafa", exc_type=(ImportError, OSError))
    lines = iter(["2", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    pick_at_prompt(Picking(9, 3, 100), draw, lambda: "", tmp_path / "batch.png", protocol)
    out = capsys.readouterr().out
    first, second = out.index("0 of 3"), out.index("1 of 3")
    assert out.startswith(start)
    assert start in out[first:second]  # every view comes after its picture


# ---------------------------------------------------------------------------------------------- in a window


class Desk:
    """A window with a game, and methods that send keys and clicks to the window."""

    def __init__(self, batch=9, winners=3, **state):
        self.picking = Picking(batch, winners, 100, **state)
        self.record = Record(self.picking)
        self.window = PickingWindow(self.picking, draw, self.record.save, "a game")
        self.canvas = self.window.figure.canvas
        self.canvas.draw_idle = lambda: None  # for speed
        self.turn()

    def turn(self):
        """Update the window, as its loop does between events."""
        if self.window.open and self.picking.stage != "done":
            self.window.update()

    def press(self, *keys):
        """Press keys one by one."""
        for key in keys:
            self.press_at_once(key)
            self.turn()

    def press_at_once(self, *keys):
        """Press keys before the window is drawn again."""
        for key in keys:
            x, y = self.place_of(0)  # over the picture, as matplotlib's own keys want it
            self.canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", self.canvas, key, x, y))

    def place_of(self, cell):
        """Return the center of a cell in window coordinates."""
        self.window.axes.apply_aspect()
        left, top = self.window.layout.corner(cell)
        half = self.window.layout.side / 2
        return self.window.axes.transData.transform((left + half, top + half))

    def click(self, *cells, button=1):
        for cell in cells:
            self.click_at(*self.place_of(cell), button)
            self.turn()

    def click_at(self, x, y, button=1):
        event = MouseEvent("button_press_event", self.canvas, x, y, button)
        self.canvas.callbacks.process("button_press_event", event)

    def close(self):
        self.canvas.callbacks.process("close_event", CloseEvent("close_event", self.canvas))

    def marked(self):
        """Return the positions of pixels in the color of marks, (N, 2), x and y from the lower left corner."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[::-1, :, :3].astype(int)
        rows, columns = np.nonzero(np.abs(pixels - MARK).max(-1) < 25)
        return np.stack([columns, rows], axis=1)

    @property
    def hint(self):
        return self.window.line.get_text()

    @property
    def title(self):
        return self.window.title.get_text()


@pytest.fixture
def desk():
    """A function: a desk, which is cleared afterwards."""
    yield Desk
    pyplot.close("all")


def test_window_digits_and_clicks_pick_and_unpick(desk):
    desk = desk()
    desk.press("5", "2")
    desk.click(4, 0)
    desk.press("1", "8")
    assert desk.picking.picks == [101, 107]
    assert desk.record.saved == [[104], [104, 101], [101], [101, 100], [101], [101, 107]]
    assert "2 of 3" in desk.title


@pytest.mark.parametrize("cells", [1, 2, 12])
def test_window_every_cell_can_be_clicked(desk, cells):
    desk = desk(batch=cells, winners=20)
    desk.click(*range(cells))
    assert desk.picking.picks == list(range(100, 100 + cells))


def test_window_clicks_beside_the_cells_and_with_other_buttons_do_nothing(desk):
    desk = desk(batch=8)
    figure, axes, places = desk.window.figure, desk.window.axes, desk.window.layout
    desk.click(3, button=3)
    axes.apply_aspect()
    desk.click_at(1, 1)
    desk.click_at(figure.bbox.width - 1, figure.bbox.height - 1)
    left, top = places.corner(4)
    for x, y in (
        (left - 2, top + 30),  # between two cells
        (left + 30, top + places.side + 8),  # on a caption
        tuple(c + 30 for c in places.corner(8)),  # where a ninth would be
    ):
        desk.click_at(*axes.transData.transform((x, y)))
    assert desk.picking.picks == []
    desk.click_at(*axes.transData.transform((left + 2, top + 2)))
    assert desk.picking.picks == [104]


@pytest.mark.parametrize("key", ["0", "right", "enter", " "])
def test_window_keys_that_go_on(desk, key):
    desk = desk()
    desk.press("3", key)
    assert (desk.picking.batch, desk.picking.picks) == (1, [102])
    assert "109 to 117" in desk.title
    desk.press("u")
    assert (desk.picking.batch, desk.picking.picks) == (0, [102])
    assert "100 to 108" in desk.title


@pytest.mark.parametrize("key", ["0", "right", "enter", " "])
def test_window_full_game_waits_for_a_key_before_the_ordering(desk, key):
    desk = desk()
    desk.press("1", "2", "3", "4", "5")  # two keys too many
    assert (desk.picking.stage, desk.picking.picks) == ("picking", [100, 101, 102])
    desk.press(key)
    assert (desk.picking.stage, desk.picking.placed) == ("ordering", [])
    assert desk.window.shown.seeds == [100, 101, 102]


def test_window_shows_messages_until_the_next_key(desk):
    desk = desk()
    hint = desk.hint
    desk.record.answer = "not saved"
    desk.press("3")
    assert "not saved" in desk.hint
    desk.record.answer = ""
    desk.click(5)
    assert desk.hint == hint


@pytest.mark.parametrize("key", [None, "", "shift", "a", "é", "f5", "left", "ctrl+c", "²", "٠", "backspace", "l", "k"])
def test_window_keys_without_a_meaning_change_nothing(desk, key):
    desk = desk()
    desk.press("3", key)
    assert (desk.picking.picks, desk.picking.batch, desk.picking.stage) == ([102], 0, "picking")
    assert desk.window.axes.get_yscale() == desk.window.axes.get_xscale() == "linear"  # matplotlib's own keys are off


def test_window_more_than_nine_cells_collect_digits_until_enter(desk):
    desk = desk(batch=12, winners=5)
    desk.press("1", "2")
    assert desk.picking.picks == []
    assert desk.hint.startswith("12 ")
    desk.press("enter", "3", " ", "1", "0", "enter")
    assert desk.picking.picks == [111, 102, 109]
    desk.press("1", "9", "enter")  # there is no 19
    desk.press("1", "2", "backspace", "1", "enter")  # 11
    desk.press("5", "u")  # the 5 is forgotten, and 11 taken back
    assert desk.picking.picks == [111, 102, 109]
    desk.press("enter")
    assert desk.picking.batch == 1


def test_window_orders_by_clicks(desk):
    desk = desk()
    desk.press("1", "2", "3", "enter")
    desk.click(2, 0, 0, 1)
    assert desk.window.shown.marked == {2, 1}
    desk.click(0)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102, 101, 100])
    assert desk.record.saved[-1] == [102, 101, 100]


@pytest.mark.parametrize(
    ("keys", "order"),
    [
        (["3", "2", "7", "2", "1", "2"], [102, 100, 101]),
        (["2", "enter"], [101, 100, 102]),
        (["enter"], [100, 101, 102]),
        (["2", "u", "3", "q"], [102, 100, 101]),
    ],
)
def test_window_orders_by_keys(desk, keys, order):
    desk = desk()
    desk.press("1", "2", "3", "enter", *keys)
    assert (desk.picking.stage, desk.picking.picks) == ("done", order)


def test_window_orders_more_than_nine_by_typed_numbers(desk):
    desk = desk(batch=12, winners=10, picks=list(range(100, 109)))
    desk.press("1", "0", "enter", "enter", "1", "0", " ", "9", "enter")
    assert desk.picking.placed == [9, 8]
    desk.press("enter")
    assert (desk.picking.stage, desk.picking.picks[:3]) == ("done", [109, 108, 100])


def test_window_marks_are_where_the_picks_are(desk):
    desk = desk()
    assert len(desk.marked()) == 0
    desk.click(5)
    one = desk.marked()
    assert len(one) > 500
    np.testing.assert_allclose((one.min(0) + one.max(0)) / 2, desk.place_of(5), atol=3)
    desk.click(2)
    assert len(desk.marked()) > 1.5 * len(one)
    desk.click(5, 2)
    assert len(desk.marked()) == 0


@pytest.mark.parametrize("size", [(3, 3), (6.4, 7.2), (12, 4), (1, 1)])
def test_window_texts_stay_inside_and_apart_from_the_picture(desk, size):
    desk = desk()
    desk.window.figure.set_size_inches(*size)
    desk.turn()
    desk.canvas.draw()
    if size == (1, 1):
        return  # no space for the texts; nothing fails
    figure = desk.window.figure.bbox
    title, line = (text.get_window_extent() for text in (desk.window.title, desk.window.line))
    for extent in (title, line):
        assert figure.x0 <= extent.x0 and extent.x1 <= figure.x1
        assert figure.y0 <= extent.y0 and extent.y1 <= figure.y1
    axes = desk.window.axes.get_window_extent()
    assert line.y1 <= axes.y0 + 1 and axes.y1 <= title.y0 + 1
    assert axes.height > 0.4 * figure.height
    desk.click(4)
    assert desk.picking.picks == [104]


# ------------------------------------------------------------------------------------------------------ its loop


@pytest.fixture
def run(desk, monkeypatch):
    """A function that runs a window and performs one action in every turn of its loop; returns the desk."""

    def run(*turns, answers=None, **game):
        there = desk(**game)
        waiting = iter(turns)

        def turn(seconds):
            act = next(waiting, None)
            if act is None:
                pytest.fail("the loop waits, and nobody acts any more")
            act(there)

        monkeypatch.setattr(there.canvas, "start_event_loop", turn)
        monkeypatch.setattr(there.window.figure, "show", lambda: None)
        monkeypatch.setattr(views, "answers_from_the_terminal", lambda: answers or queue.SimpleQueue())
        there.window.run()
        assert list(waiting) == []  # the loop ended with the game, not before
        assert not pyplot.fignum_exists(there.window.figure.number)
        return there

    return run


def pressing(*keys):
    return lambda desk: desk.press(*keys)


def waiting(*lines):
    answers = queue.SimpleQueue()
    for line in lines:
        answers.put(f"{line}\n")
    return answers


@pytest.mark.parametrize(
    ("turns", "order"),
    [
        ([pressing("5"), pressing("1", "0"), lambda desk: desk.click(3), pressing("0", "3", "enter")], [112, 104, 100]),
        ([pressing("5", "1"), pressing("q")], [104, 100]),
        ([pressing("5", "1"), Desk.close], [104, 100]),
        ([pressing("5", "1", "2", "enter", "3"), Desk.close], [101, 104, 100]),
    ],
    ids=["the game", "q", "closing", "closing while ordering"],
)
def test_loop_ends_with_the_game_and_saves(run, turns, order):
    desk = run(*turns)
    assert (desk.picking.stage, desk.picking.picks, desk.record.saved[-1]) == ("done", order, order)


def test_loop_takes_answers_from_the_terminal(run):
    answers = waiting("5 1", "nonsense", "u", "0")
    seen = []

    def look(desk):
        seen.append((desk.picking.batch, list(desk.picking.picks)))
        desk.press("3")
        for line in ("4", "", "3 1", ""):
            answers.put(f"{line}\n")

    desk = run(lambda desk: None, look, answers=answers)
    assert seen == [(1, [104])]
    assert (desk.picking.stage, desk.picking.picks) == ("done", [112, 104, 111])
    assert run(pressing("2"), answers=waiting("q", "5", "u")).picking.picks == [101]  # nothing counts after the end


def test_window_ignores_input_for_cells_that_are_gone(desk):
    """Input that arrives before the next view is drawn is ignored, except q."""
    desk = desk()
    desk.press_at_once("0", "3", "0")
    desk.click_at(*desk.place_of(4))
    assert (desk.picking.batch, desk.picking.picks) == (1, [])
    desk.turn()
    desk.press_at_once("1", "2", "3", "enter", "3", "enter")
    desk.click_at(*desk.place_of(2))
    assert (desk.picking.stage, desk.picking.placed) == ("ordering", [])
    desk.press_at_once("q", "u", "1")
    assert (desk.picking.stage, desk.picking.picks) == ("done", [109, 110, 111])


def test_answers_need_a_terminal(monkeypatch):
    for stdin in (None, io.StringIO("5\n")):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert answers_from_the_terminal().empty()


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_answers_are_lines_of_the_terminal(monkeypatch):
    import pty

    ours, theirs = pty.openpty()
    before = set(threading.enumerate())
    with open(theirs) as terminal:
        monkeypatch.setattr(sys, "stdin", terminal)
        answers = answers_from_the_terminal()
        (reader,) = set(threading.enumerate()) - before
        os.write(ours, "5 1\nä\n\n".encode())
        assert [answers.get(timeout=20).strip() for _ in range(3)] == ["5 1", "ä", ""]
        assert answers.empty()
        os.write(ours, b"\x04")  # the end of the input, which ends the reading and not the game
        reader.join(timeout=20)
        assert not reader.is_alive()
    os.close(ours)
