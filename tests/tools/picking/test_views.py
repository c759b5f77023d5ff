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
from nvae.tools.picking import views as picking_views
from nvae.tools.picking.game import Picking
from nvae.tools.picking.views import PickingWindow, answers_from_the_terminal, pick_at_prompt


def draw(view):
    """Small gray images."""
    shape = {"columns": view.columns, "captions": view.captions, "cell": 64}
    return grid(torch.full((len(view.seeds), 3, 8, 8), 0.5), marked=view.marked, **shape), layout(8, **shape)


class Record:
    """What is kept, every time."""

    def __init__(self, picking):
        self.picking, self.kept, self.answer = picking, [], ""

    def keep(self):
        self.kept.append(list(self.picking.picks))
        return self.answer


# ------------------------------------------------------------------------------------------------ at the prompt


@pytest.fixture
def play(tmp_path, monkeypatch, capsys):
    """A function that plays a game with what someone types; returns the game, its record, and what was printed."""

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
        pick_at_prompt(picking, draw, record.keep, tmp_path / "batch.png")
        assert list(typed) == []  # nobody is asked after the end
        return picking, record, capsys.readouterr().out

    return play


def test_a_whole_game_at_the_prompt(play, tmp_path):
    picking, record, out = play("2", "9 0", "u", "0", "nonsense", "u", "0", "5", "3 1")
    assert (picking.stage, picking.picks) == ("done", [113, 101, 108])
    assert record.kept[0] == [101]
    assert record.kept[-1] == [113, 101, 108]
    assert len(record.kept) == 9  # after every answer
    assert out.count("'nonsense' is not understood") == 1
    assert "end of input" not in out


def test_every_view_is_drawn_once_and_said(play):
    drawn = []

    def drawing(view):
        drawn.append(view.title)
        return draw(view)

    _, _, out = play("2", "x", "2", "0", "1", "q", draw=drawing)
    assert drawn == [
        "batch 1, seeds 100 to 108; picked 0 of 3",
        "batch 1, seeds 100 to 108; picked 1 of 3",
        "batch 2, seeds 109 to 117; picked 1 of 3",
        "batch 2, seeds 109 to 117; picked 2 of 3",
    ]
    for title in drawn:
        assert f"{title}: " in out


def test_the_picture_in_the_file_is_that_of_the_view(play, tmp_path):
    picking, _, out = play("2", "9")
    assert str(tmp_path / "batch.png") in out
    expected, _ = draw(Picking(9, 3, 100, picks=[101, 108]).view())
    with Image.open(tmp_path / "batch.png") as picture:
        assert picture.text["seeds"] == str(list(range(100, 109)))
        assert picture.tobytes() == expected.tobytes()
    assert [path.name for path in tmp_path.iterdir()] == ["batch.png"]


def test_the_end_of_the_input_leaves_and_keeps(play):
    picking, record, out = play("4 2")
    assert (picking.stage, picking.picks, record.kept[-1]) == ("done", [103, 101], [103, 101])
    assert "end of input: leaving with what is picked" in out


def test_the_end_of_the_input_while_ordering_keeps_the_order(play):
    picking, _, _ = play("4 2 1", "7")
    assert (picking.stage, picking.picks) == ("done", [103, 101, 100])


def test_what_goes_wrong_with_keeping_is_said(play):
    _, _, out = play("4", "q", answer="the picks could not be saved")
    assert out.count("the picks could not be saved") == 2


def test_bytes_that_are_no_text_are_a_wrong_answer(tmp_path, monkeypatch, capsys):
    class Terminal(io.RawIOBase):
        """What is typed comes line by line."""

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
    assert "what came is no text: 1-9 pick" in capsys.readouterr().out


@pytest.mark.parametrize(("protocol", "start"), [("kitty", b"\x1b_G"), ("iterm2", b"\x1b]1337"), ("sixel", b"\x1bP")])
def test_a_terminal_that_shows_pictures_gets_them(tmp_path, monkeypatch, capsysbinary, protocol, start):
    pytest.importorskip("chafa")
    lines = iter(["2", "q"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    pick_at_prompt(Picking(9, 3, 100), draw, lambda: "", tmp_path / "batch.png", protocol)
    out = capsysbinary.readouterr().out
    first, second = out.index(b"picked 0 of 3"), out.index(b"picked 1 of 3")
    assert out.startswith(start)
    assert start in out[first:second]  # every view comes after its picture
    assert len(out[:first]) > 200


def test_without_a_protocol_there_is_only_text(play):
    _, _, out = play("2", "q")
    assert "\x1b" not in out


# ---------------------------------------------------------------------------------------------- in a window


class Desk:
    """A window with a game in it, and what a person's hands can do there."""

    def __init__(self, batch=9, winners=3, **state):
        self.picking = Picking(batch, winners, 100, **state)
        self.record = Record(self.picking)
        self.window = PickingWindow(self.picking, draw, self.record.keep, "a game")
        self.canvas = self.window.figure.canvas
        self.asked_to_draw = 0
        self.canvas.draw_idle = self.draw_idle
        self.turn()

    def draw_idle(self):
        self.asked_to_draw += 1  # and that is all, for speed

    def turn(self):
        """What the window's loop does between events."""
        if self.window.open and self.picking.stage != "done":
            self.window.update()

    def press(self, *keys):
        """Keys, one by one."""
        for key in keys:
            self.press_at_once(key)
            self.turn()

    def press_at_once(self, *keys):
        """Keys that come before the window has drawn anew."""
        for key in keys:
            x, y = self.place_of(0)  # over the picture, as matplotlib's own keys want it
            self.canvas.callbacks.process("key_press_event", KeyEvent("key_press_event", self.canvas, key, x, y))

    def place_of(self, cell):
        """Where the middle of a cell is in the window."""
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
        """(N, 2): where the window has the color of marks, as x and y from the lower left corner."""
        self.canvas.draw()
        pixels = np.asarray(self.canvas.buffer_rgba())[::-1, :, :3].astype(int)
        rows, columns = np.nonzero(np.abs(pixels - MARK).max(-1) < 25)
        return np.stack([columns, rows], axis=1)

    @property
    def hint(self):
        return self.window.line.get_text()

    @property
    def title(self):
        return self.window.axes.get_title()


@pytest.fixture
def desk():
    """A function: a desk, which is cleared afterwards."""
    yield Desk
    pyplot.close("all")


def test_digits_pick(desk):
    desk = desk()
    desk.press("5", "2")
    assert desk.picking.picks == [104, 101]
    assert desk.record.kept == [[104], [104, 101]]
    assert "picked 2 of 3" in desk.title


def test_clicks_pick_and_take_back(desk):
    desk = desk()
    desk.click(4, 1, 4)
    assert desk.picking.picks == [101]
    assert desk.record.kept == [[104], [104, 101], [101]]
    desk.press("u")
    assert desk.picking.picks == [104, 101]


@pytest.mark.parametrize("cells", [1, 2, 12])
def test_every_cell_can_be_clicked(desk, cells):
    desk = desk(batch=cells, winners=20)
    desk.click(*range(cells))
    assert desk.picking.picks == list(range(100, 100 + cells))


def test_clicks_beside_the_cells_do_nothing(desk):
    desk = desk(batch=8)
    figure, axes, places = desk.window.figure, desk.window.axes, desk.window.layout
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


@pytest.mark.parametrize("button", [2, 3])
def test_other_buttons_do_nothing(desk, button):
    desk = desk()
    desk.click(3, button=button)
    assert desk.picking.picks == []


@pytest.mark.parametrize("key", ["0", "right", "enter", " "])
def test_keys_that_go_on(desk, key):
    desk = desk()
    desk.press("3", key)
    assert (desk.picking.batch, desk.picking.picks) == (1, [102])
    assert "batch 2, seeds 109 to 117" in desk.title
    desk.press("u")
    assert (desk.picking.batch, desk.picking.picks) == (0, [102])
    assert "batch 1, seeds 100 to 108" in desk.title


def test_a_wrong_key_says_so_until_the_next(desk):
    desk = desk()
    assert "1-9 pick" in desk.hint
    desk.press("3", "3")
    assert "3 is picked already" in desk.hint
    assert desk.picking.picks == [102]
    desk.press("4")
    assert "1-9 pick" in desk.hint


def test_nothing_to_undo_is_said(desk):
    desk = desk()
    desk.press("u")
    assert "there is nothing to undo" in desk.hint


def test_what_goes_wrong_with_keeping_is_shown(desk):
    desk = desk()
    desk.record.answer = "the picks could not be saved"
    desk.press("3")
    assert "the picks could not be saved" in desk.hint
    desk.record.answer = ""
    desk.click(5)
    assert "1-9 pick" in desk.hint


@pytest.mark.parametrize("key", [None, "", "shift", "control", "a", "é", "f5", "left", "ctrl+c", "²", "backspace"])
def test_keys_without_a_meaning_change_nothing(desk, key):
    desk = desk()
    desk.press("3", key)
    assert (desk.picking.picks, desk.picking.batch, desk.picking.stage) == ([102], 0, "picking")


def test_matplotlibs_own_keys_are_off(desk):
    desk = desk()
    desk.press("l", "k", "g", "f")
    assert desk.window.axes.get_yscale() == desk.window.axes.get_xscale() == "linear"
    desk.press("3", "q")
    assert pyplot.fignum_exists(desk.window.figure.number)  # it is not matplotlib's q, which closes the window
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102])


def test_more_than_nine_cells_collect_digits_until_enter(desk):
    desk = desk(batch=12, winners=5)
    desk.press("1", "2")
    assert desk.picking.picks == []
    assert desk.hint.startswith("12 ")
    desk.press("enter")
    assert desk.picking.picks == [111]
    assert not desk.hint.startswith("12 ")
    desk.press("3", " ", "1", "0", "enter")
    assert desk.picking.picks == [111, 102, 109]
    desk.press("1", "9", "enter")
    assert "there is no 19" in desk.hint
    assert desk.picking.picks == [111, 102, 109]
    desk.press("enter")
    assert desk.picking.batch == 1


def test_backspace_takes_a_digit_back(desk):
    desk = desk(batch=12, winners=5)
    desk.press("1", "2", "backspace", "1", "enter")
    assert desk.picking.picks == [110]
    desk.press("backspace", "7", "backspace", "backspace")
    assert "7" not in desk.hint.split()[0]
    desk.press("enter")
    assert (desk.picking.picks, desk.picking.batch) == ([110], 1)


def test_undo_forgets_what_was_typed(desk):
    desk = desk(batch=12, winners=5)
    desk.press("3", "enter", "1", "u", "2", "enter")
    assert desk.picking.picks == [101]


def test_the_last_pick_shows_the_picks(desk):
    desk = desk()
    desk.click(8, 1)
    desk.press("0", "4")
    assert desk.picking.stage == "ordering"
    assert "these are your picks" in desk.title
    assert "Enter for this order" in desk.hint
    assert desk.window.shown.seeds == [108, 101, 112]


def test_ordering_by_clicks(desk):
    desk = desk()
    desk.press("1", "2", "3")
    desk.click(2, 0)
    assert desk.window.shown.captions == ["1, now 2", "2", "3, now 1"]
    desk.click(0, 1)
    assert desk.window.shown.captions == ["1", "2, now 2", "3, now 1"]
    desk.click(0)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102, 101, 100])
    assert desk.record.kept[-1] == [102, 101, 100]


def test_ordering_by_digits(desk):
    desk = desk()
    desk.press("1", "2", "3", "3", "2", "7", "2", "1", "2")
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102, 100, 101])


def test_ordering_by_some_digits_and_enter(desk):
    desk = desk()
    desk.press("1", "2", "3", "2", "enter")
    assert (desk.picking.stage, desk.picking.picks) == ("done", [101, 100, 102])


def test_enter_alone_keeps_the_order(desk):
    desk = desk()
    desk.press("3", "1", "2", "enter")
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102, 100, 101])


@pytest.mark.parametrize("key", ["0", "right", "4"])
def test_keys_without_a_meaning_in_the_ordering(desk, key):
    desk = desk()
    desk.press("3", "1", "2", key)
    assert (desk.picking.stage, desk.picking.picks, desk.picking.placed) == ("ordering", [102, 100, 101], [])


def test_undo_leads_out_of_the_ordering(desk):
    desk = desk()
    desk.press("3", "1", "2", "2", "u")
    assert (desk.picking.stage, desk.picking.placed) == ("ordering", [])
    desk.press("u")
    assert (desk.picking.stage, desk.picking.picks) == ("picking", [102, 100])
    assert "picked 2 of 3" in desk.title
    desk.click(8)
    assert desk.picking.picks == [102, 100, 108]


def test_more_than_nine_picks_are_clicked_into_order(desk):
    desk = desk(batch=12, winners=10, picks=list(range(100, 109)))
    desk.press("1", "0", "enter")
    assert desk.picking.stage == "ordering"
    desk.click(*range(9, -1, -1))
    assert (desk.picking.stage, desk.picking.picks) == ("done", list(range(109, 99, -1)))


def test_more_than_nine_picks_are_typed_into_order(desk):
    desk = desk(batch=12, winners=10, picks=list(range(100, 109)))
    desk.press("1", "0", "enter", "1", "0", " ", "9", "enter")
    assert (desk.picking.stage, desk.picking.picks[:3]) == ("done", [109, 108, 100])


@pytest.mark.parametrize("zero", ["٠", "０"])
def test_another_alphabets_zero_does_not_double_a_pick(desk, zero):
    desk = desk()
    desk.press("1", "2", "3", zero, "enter")
    assert sorted(desk.picking.picks) == [100, 101, 102]


def test_the_marks_are_seen_where_the_picks_are(desk):
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


def test_places_are_marked_too(desk):
    desk = desk()
    desk.press("1", "2", "3")
    assert len(desk.marked()) == 0
    desk.press("2")
    marked = desk.marked()
    np.testing.assert_allclose((marked.min(0) + marked.max(0)) / 2, desk.place_of(1), atol=3)


def test_every_change_is_drawn(desk):
    desk = desk()
    for change in (lambda: desk.press("3"), lambda: desk.click(4), lambda: desk.press("right")):
        before = desk.asked_to_draw
        change()
        assert desk.asked_to_draw > before


# ------------------------------------------------------------------------------------------------------ its loop


@pytest.fixture
def run(desk, monkeypatch):
    """A function that runs a window while hands act, some in every turn of its loop; returns the desk."""

    def run(*turns, answers=None, **game):
        there = desk(**game)
        waiting = iter(turns)

        def turn(seconds):
            assert seconds > 0
            act = next(waiting, None)
            if act is None:
                pytest.fail("the loop waits, and nobody acts any more")
            act(there)

        monkeypatch.setattr(there.canvas, "start_event_loop", turn)
        monkeypatch.setattr(there.window.figure, "show", lambda: None)
        monkeypatch.setattr(picking_views, "answers_from_the_terminal", lambda: answers)
        there.window.run()
        assert list(waiting) == []  # the loop ended with the game, not before
        assert not pyplot.fignum_exists(there.window.figure.number)
        return there

    return run


def pressing(*keys):
    return lambda desk: desk.press(*keys)


def test_the_loop_ends_with_the_game(run):
    desk = run(pressing("5"), lambda desk: None, pressing("1", "0"), lambda desk: desk.click(3), pressing("3", "enter"))
    assert (desk.picking.stage, desk.picking.picks) == ("done", [112, 104, 100])
    assert desk.record.kept[-1] == [112, 104, 100]


def test_q_ends_the_loop_and_keeps(run):
    desk = run(pressing("5", "1"), pressing("q"))
    assert (desk.picking.stage, desk.picking.picks, desk.record.kept[-1]) == ("done", [104, 100], [104, 100])


def test_closing_leaves_and_keeps(run):
    desk = run(pressing("5", "1"), Desk.close)
    assert (desk.picking.stage, desk.picking.picks, desk.record.kept[-1]) == ("done", [104, 100], [104, 100])


def test_closing_while_ordering_keeps_those_placed_first(run):
    desk = run(pressing("5", "1", "2", "3"), Desk.close)
    assert (desk.picking.stage, desk.picking.picks, desk.record.kept[-1]) == ("done", [101, 104, 100], [101, 104, 100])


def test_one_winner_ends_the_loop(run):
    desk = run(lambda desk: desk.click(6), winners=1)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [106])


def test_answers_typed_into_the_terminal_are_understood(run, capsys):
    answers = queue.SimpleQueue()
    for answer in ("5 1\n", "nonsense\n", "u\n", "0\n"):
        answers.put(answer)
    seen = []

    def look(desk):
        seen.append((desk.picking.batch, list(desk.picking.picks), desk.title))
        answers.put("3 4\n")
        answers.put("3 1\n")

    desk = run(lambda desk: None, look, answers=answers)
    assert seen == [(1, [104], "batch 2, seeds 109 to 117; picked 1 of 3")]
    assert (desk.picking.stage, desk.picking.picks) == ("done", [112, 104, 111])
    assert desk.record.kept[-1] == [112, 104, 111]
    assert capsys.readouterr().out.count("'nonsense' is not understood") == 1


def test_answers_and_hands_play_together(run):
    answers = queue.SimpleQueue()
    answers.put("5\n")
    desk = run(pressing("2"), lambda desk: desk.click(8), lambda desk: answers.put("\n"), answers=answers)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [101, 104, 108])


def test_answers_after_the_end_are_left(run):
    answers = queue.SimpleQueue()
    for answer in ("q\n", "5\n", "u\n"):
        answers.put(answer)
    desk = run(pressing("2"), answers=answers)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [101])


def test_keys_and_clicks_after_the_end_are_left(run):
    def all_at_once(desk):
        desk.press_at_once("2", "enter", "u", "u", "1", "enter")
        desk.click(0, 1, 2)

    desk = run(pressing("5", "1", "2"), all_at_once)
    assert (desk.picking.stage, desk.picking.picks) == ("done", [100, 104, 101])


def test_keys_and_clicks_that_were_meant_for_what_is_gone_are_left(desk):
    """They come while the next batch, or the picks, are not drawn yet."""
    desk = desk()
    desk.press_at_once("0", "3", "0")
    desk.click_at(*desk.place_of(4))
    assert (desk.picking.batch, desk.picking.picks) == (1, [])
    desk.turn()
    desk.press_at_once("1", "2", "3", "3", "enter")
    desk.click_at(*desk.place_of(2))
    assert (desk.picking.stage, desk.picking.placed) == ("ordering", [])
    desk.turn()
    desk.press("3", "enter")
    assert desk.picking.picks == [111, 109, 110]


def test_q_is_always_understood(desk):
    desk = desk()
    desk.press_at_once("3", "0", "q")
    assert (desk.picking.stage, desk.picking.picks) == ("done", [102])


def test_without_a_terminal_nothing_is_read(monkeypatch):
    for stdin in (None, io.StringIO("5\n")):
        monkeypatch.setattr(sys, "stdin", stdin)
        assert answers_from_the_terminal() is None


@pytest.mark.skipif(sys.platform == "win32", reason="there are no pseudo-terminals")
def test_lines_of_a_terminal_are_answers(monkeypatch):
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
