import random

import pytest

from nvae.tools.picking.game import Picking


@pytest.fixture
def picking():
    """A game with batches of nine samples from seed 100 on, and four winners."""
    return Picking(batch_size=9, winners=4, first_seed=100)


@pytest.fixture
def ordering(picking):
    """The same game after the seeds 100, 101, 102 and 103 were picked."""
    picking.answer("1234")
    picking.answer("")
    assert picking.stage == "ordering"
    return picking


def state(picking):
    return picking.batch, list(picking.picks), list(picking.placed), picking.stage


@pytest.mark.parametrize("line", ["5 2 9", "5,2,9", "529", "5, 2 ,9", "52 9", " 5  2 9 "])
def test_picking_takes_several_numbers_in_a_line(picking, line):
    assert picking.answer(line) == ""
    assert picking.picks == [104, 101, 108]


@pytest.mark.parametrize("line", ["0", ""])
def test_picking_goes_on_to_the_next_seeds(picking, line):
    seen = list(picking.seeds)
    for _ in range(4):
        assert picking.answer(line) == ""
        seen += picking.seeds
    assert seen == list(range(100, 145))


@pytest.mark.parametrize("line", ["3 0", "3,0"])
def test_picking_with_a_zero_at_the_end_goes_on_after_the_picks(picking, line):
    picking.answer(line)
    assert (picking.batch, picking.picks) == (1, [102])


def test_picking_a_picked_number_unpicks_it(picking):
    picking.answer("5 2 9")
    assert picking.answer("2") == ""
    assert picking.picks == [104, 108]
    picking.answer("5")
    assert picking.picks == [108]
    picking.undo()
    assert picking.picks == [104, 108]


def test_picking_full_game_waits_for_confirmation(picking):
    picking.answer("1 2 3 4")
    assert picking.stage == "picking"
    for extra in ("5", "5 6"):
        assert picking.answer(extra) != ""
    assert state(picking) == (0, [100, 101, 102, 103], [], "picking")
    assert picking.answer("5 1") == ""  # unpicks 1 before picking 5
    assert picking.picks == [101, 102, 103, 104]
    picking.answer("0")
    assert picking.stage == "ordering"


@pytest.mark.parametrize(
    "line", ["abc", "1 x", "-3", "3.5", "²", "٣", "３", ",", "0 3", "00", "0 0", "5 0 6", "3 3", "3 4 5 6", "10", "305"]
)
def test_picking_wrong_answers_change_nothing(picking, line):
    picking.answer("2")
    before = state(picking)
    assert picking.answer(line) != ""
    assert state(picking) == before
    picking.undo()
    assert picking.picks == []  # only the pick of 2 was undone


def test_picking_more_than_nine_cells_needs_numbers_apart():
    picking = Picking(batch_size=12, winners=6, first_seed=0)
    picking.answer("12")
    assert picking.answer("1 2,10 0") == ""
    assert (picking.picks, picking.batch) == ([11, 0, 1, 9], 1)
    for wrong in ("13", "123", "0 1", "1 1", "x", "²", "9" * 5000):
        assert picking.answer(wrong) != ""
        assert (picking.picks, picking.batch) == ([11, 0, 1, 9], 1)
    assert Picking(batch_size=5, winners=3, first_seed=0).answer("1 6") != ""


def test_view_marks_the_picks_of_the_batch(picking):
    picking.answer("3 0")
    picking.answer("7 2")
    view = picking.view()
    assert view.seeds == list(range(109, 118))
    assert view.captions == list("123456789")
    assert (view.marked, view.columns) == ({6, 1}, 3)
    assert "109 to 117" in view.title
    assert "3 of 4" in view.title


@pytest.mark.parametrize("batch", [1, 9])
def test_one_winner_needs_no_order(batch):
    picking = Picking(batch_size=batch, winners=1, first_seed=4)
    picking.answer("0")
    picking.answer("1")
    picking.answer("")
    assert (picking.stage, picking.picks) == ("done", [4 + batch])


@pytest.mark.parametrize("word", ["q", "Q", "quit", " q "])
def test_quit_keeps_the_picks(picking, word):
    picking.answer("4 2 0")
    assert picking.answer(word) == ""
    assert (picking.stage, picking.picks) == ("done", [103, 101])
    for line in ("u", "1", "0", "", "q"):
        picking.answer(line)
        assert (picking.stage, picking.picks) == ("done", [103, 101])


@pytest.mark.parametrize("word", ["u", "U", "undo"])
def test_undo_takes_back_one_pick_at_a_time(picking, word):
    picking.answer("5 2 0")
    for expected in ((0, [104, 101]), (0, [104]), (0, [])):
        assert picking.answer(word) == ""
        assert (picking.batch, picking.picks) == expected
    assert picking.answer(word) != ""


@pytest.mark.parametrize("seed", range(20))
def test_undo_leads_through_all_states_back_to_the_first(seed):
    dice = random.Random(seed)
    picking = Picking(batch_size=dice.choice([1, 4, 9, 12]), winners=dice.choice([2, 3, 30]), first_seed=7)
    states = [state(picking)]
    for _ in range(60):
        if picking.stage == "ordering" and len(picking.placed) < len(picking.picks) - 1:
            picking.answer(str(1 + dice.randrange(len(picking.picks))))
        elif picking.stage == "ordering" or dice.random() < 0.25:
            if picking.stage == "ordering":
                break
            picking.go_on()
        elif picking.answer(str(1 + dice.randrange(picking.batch_size))):
            continue
        if picking.stage == "done":
            break
        assert len(set(picking.picks)) == len(picking.picks) <= picking.winners
        states.append(state(picking))
    if picking.stage != "done":
        for expected in reversed(states[:-1]):
            assert picking.undo() == ""
            assert state(picking) == expected
        assert picking.undo() != ""


@pytest.mark.parametrize(
    ("lines", "order"),
    [
        (["4 2 1 3"], [103, 101, 100, 102]),
        (["4213"], [103, 101, 100, 102]),
        (["42", "31"], [103, 101, 102, 100]),
        (["3", ""], [102, 100, 101, 103]),
        (["43", "4", ""], [102, 100, 101, 103]),  # the second 4 takes its place away
        (["4 2", "q"], [103, 101, 100, 102]),
        ([""], [100, 101, 102, 103]),
        (["4 2 1", "3 1", ""], [103, 101, 102, 100]),
    ],
)
def test_ordering_named_picks_come_first_and_others_follow(ordering, lines, order):
    for line in lines:
        assert ordering.stage == "ordering"
        ordering.answer(line)
    assert (ordering.stage, ordering.picks) == ("done", order)


def test_ordering_incomplete_answer_asks_for_confirmation(ordering):
    assert "2" in ordering.answer("4 2")
    assert state(ordering) == (0, [100, 101, 102, 103], [3, 1], "ordering")
    view = ordering.view()
    assert view.marked == {3, 1}
    assert [caption.split(":")[0] for caption in view.captions] == list("1234")
    assert "1" in view.captions[3].split(":")[1]
    assert "2 of 4" in view.title


@pytest.mark.parametrize("line", ["5", "0", "1 2 2", "1 2 3 4 1", "11", "x", "-1", "²", "4 3 2 1 0"])
def test_ordering_wrong_answers_change_nothing(ordering, line):
    before = state(ordering)
    assert ordering.answer(line) != ""
    assert state(ordering) == before


def test_ordering_last_place_ends_the_game(ordering):
    for number in "432":
        ordering.answer(number)
        assert ordering.stage == "ordering"
    ordering.answer("1")
    assert (ordering.stage, ordering.picks) == ("done", [103, 102, 101, 100])


def test_ordering_undo_takes_places_back_and_then_leads_out(ordering):
    ordering.answer("3 1")
    ordering.undo()
    assert (ordering.placed, ordering.stage) == ([2], "ordering")
    ordering.undo()
    ordering.undo()
    assert state(ordering) == (0, [100, 101, 102, 103], [], "picking")
    ordering.answer("1 9")
    assert ordering.picks == [101, 102, 103, 108]
