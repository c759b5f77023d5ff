import random

import pytest

from nvae.tools.picking.game import Picking


@pytest.fixture
def picking():
    """Nine samples at once, the first with seed 100, of which four are to be picked."""
    return Picking(batch_size=9, winners=4, first_seed=100)


@pytest.fixture
def ordering():
    """The same, with the seeds 100, 101, 102, 103 picked."""
    picking = Picking(batch_size=9, winners=4, first_seed=100)
    assert picking.answer("1234") == ""
    assert picking.stage == "ordering"
    return picking


def state(picking):
    return picking.batch, list(picking.picks), list(picking.placed), picking.stage


# ------------------------------------------------------------------------------------------------------ picking


def test_numbers_pick_one_at_a_time_in_their_order(picking):
    for answer in ("5", " 2 ", "9"):
        assert picking.answer(answer) == ""
    assert picking.picks == [104, 101, 108]
    assert picking.stage == "picking"


@pytest.mark.parametrize("line", ["5 2 9", "5,2,9", "529", "5, 2 ,9", "52 9", " 5  2 9 "])
def test_several_numbers_in_a_line_pick_them_all(picking, line):
    assert picking.answer(line) == ""
    assert picking.picks == [104, 101, 108]


def test_a_zero_goes_on(picking):
    assert picking.answer("0") == ""
    assert picking.batch == 1
    assert picking.answer("1") == ""
    assert picking.picks == [109]


@pytest.mark.parametrize("line", ["3 0", "3,0"])
def test_a_zero_at_the_end_picks_first_and_then_goes_on(picking, line):
    assert picking.answer(line) == ""
    assert (picking.batch, picking.picks) == (1, [102])


def test_a_zero_after_the_last_pick_does_not_leave_the_ordering(picking):
    assert picking.answer("1 2 3 4 0") == ""
    assert (picking.stage, picking.batch) == ("ordering", 0)


def test_the_batches_follow_the_first_seed_and_never_repeat_one(picking):
    seen = []
    for _ in range(5):
        seen += picking.seeds
        picking.go_on()
    assert seen == list(range(100, 145))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("abc", "'abc' is not understood: 1-9 pick, 0 goes on, u undoes, q leaves"),
        ("1 x", "'1 x' is not understood: 1-9 pick"),
        ("-3", "'-3' is not understood: 1-9 pick"),
        ("3.5", "'3.5' is not understood: 1-9 pick"),
        ("²", "'²' is not understood: 1-9 pick"),
        ("٣", "'٣' is not understood: 1-9 pick"),
        ("３", "'３' is not understood: 1-9 pick"),
        ("①", "'①' is not understood: 1-9 pick"),
        (",", "',' is not understood: 1-9 pick"),
        ("", "1-9 pick, 0 goes on"),
        ("  ", "1-9 pick, 0 goes on"),
        ("0 3", "0 goes on to the next batch: it comes last"),
        ("00", "'00' is not understood: 1-9 pick"),
        ("0 0", "0 goes on to the next batch: it comes last"),
        ("5 0 6", "0 goes on to the next batch: it comes last"),
        ("2", "2 is picked already"),
        ("3 2", "2 is picked already"),
        ("3 3", "3 is picked already, or there twice"),
        ("3 4 5 6", "only 3 more"),
        ("3 4 5 6 0", "only 3 more"),
        ("10", "'10' is not understood: 1-9 pick"),
        ("4 10", "'4 10' is not understood: 1-9 pick"),
        ("305", "'305' is not understood: 1-9 pick"),
    ],
)
def test_a_wrong_answer_changes_nothing_and_says_what_is_allowed(picking, line, message):
    picking.answer("2")
    before = state(picking)
    assert message in picking.answer(line)
    assert state(picking) == before
    picking.undo()
    assert picking.picks == []  # nor was there more to undo than the 2


def test_a_number_beyond_a_small_batch_is_refused():
    picking = Picking(batch_size=5, winners=3, first_seed=0)
    assert picking.answer("1 6") == "there is no 6: 1-5 pick, 0 goes on, u undoes, q leaves and keeps what is picked"
    assert picking.picks == []


def test_more_than_nine_cells_need_numbers_apart():
    picking = Picking(batch_size=12, winners=6, first_seed=0)
    assert picking.answer("12") == ""
    assert picking.picks == [11]
    assert picking.answer("1 2,10 0") == ""
    assert (picking.picks, picking.batch) == ([11, 0, 1, 9], 1)
    for wrong in ("13", "123", "0 1", "1 1", "x", "²", "٣", "9" * 5000):
        assert picking.answer(wrong) != ""
        assert (picking.picks, picking.batch) == ([11, 0, 1, 9], 1)


def test_the_view_shows_the_batch_with_its_picks_marked(picking):
    picking.answer("3 0")
    picking.answer("7 2")
    view = picking.view()
    assert view.seeds == list(range(109, 118))
    assert view.captions == list("123456789")
    assert view.marked == {6, 1}
    assert view.columns == 3
    assert view.title == "batch 2, seeds 109 to 117; picked 3 of 4"


def test_the_last_pick_begins_the_ordering(picking):
    picking.answer("9 0")
    picking.answer("1 2 3")
    assert picking.stage == "ordering"
    view = picking.view()
    assert view.seeds == [108, 109, 110, 111]
    assert view.captions == ["1", "2", "3", "4"]
    assert view.marked == set()


def test_one_winner_needs_no_ordering():
    picking = Picking(batch_size=9, winners=1, first_seed=0)
    picking.answer("7")
    assert (picking.stage, picking.picks) == ("done", [6])


def test_batches_of_one():
    picking = Picking(batch_size=1, winners=2, first_seed=4)
    assert "there is no 2" in picking.answer("2")
    picking.answer("1 0")
    picking.answer("0")
    picking.answer("1")
    assert (picking.stage, picking.picks) == ("ordering", [4, 6])


@pytest.mark.parametrize("word", ["q", "Q", "quit", " q "])
def test_quitting_keeps_the_picks(picking, word):
    picking.answer("4 2 0")
    assert picking.answer(word) == ""
    assert (picking.stage, picking.picks) == ("done", [103, 101])


# --------------------------------------------------------------------------------------------------------- undo


@pytest.mark.parametrize("word", ["u", "U", "undo"])
def test_undo_takes_picks_back_one_by_one(picking, word):
    picking.answer("5 2")
    assert picking.answer(word) == ""
    assert picking.picks == [104]
    assert picking.answer(word) == ""
    assert picking.picks == []
    assert picking.answer(word) == "there is nothing to undo."
    assert state(picking) == (0, [], [], "picking")


def test_undo_goes_back_to_the_batch_before(picking):
    picking.answer("3 0")
    picking.answer("0")
    picking.answer("1")
    picking.undo()
    assert (picking.batch, picking.picks) == (2, [102])
    picking.undo()
    picking.undo()
    assert (picking.batch, picking.picks) == (0, [102])
    assert picking.view().marked == {2}
    picking.undo()
    assert state(picking) == (0, [], [], "picking")


def test_undo_of_a_click_that_took_back_puts_the_pick_in_its_old_place(picking):
    picking.answer("5 2 9")
    picking.pick(4)
    assert picking.picks == [101, 108]
    picking.undo()
    assert picking.picks == [104, 101, 108]


def test_undo_leads_out_of_the_ordering(ordering):
    ordering.answer("u")
    assert state(ordering) == (0, [100, 101, 102], [], "picking")
    ordering.answer("9")
    assert ordering.picks == [100, 101, 102, 108]


def test_undo_while_ordering_takes_the_last_place_first(ordering):
    ordering.place(2)
    ordering.place(0)
    ordering.undo()
    assert (ordering.placed, ordering.stage) == ([2], "ordering")
    ordering.undo()
    assert (ordering.placed, ordering.stage) == ([], "ordering")
    ordering.undo()
    assert (ordering.picks, ordering.stage) == ([100, 101, 102], "picking")


@pytest.mark.parametrize("seed", range(20))
def test_undoing_everything_leads_through_all_states_back_to_the_first(seed):
    dice = random.Random(seed)
    picking = Picking(batch_size=dice.choice([1, 4, 9, 12]), winners=dice.choice([2, 3, 30]), first_seed=7)
    states = [state(picking)]
    for _ in range(40):
        if picking.stage == "ordering":
            break
        if dice.random() < 0.25:
            picking.go_on()
        else:
            picking.pick(dice.randrange(picking.batch_size))
        assert len(set(picking.picks)) == len(picking.picks) <= picking.winners
        states.append(state(picking))
    for expected in reversed(states[:-1]):
        assert picking.undo() == ""
        assert state(picking) == expected
    assert picking.undo() != ""


# ----------------------------------------------------------------------------------------------------- ordering


@pytest.mark.parametrize(
    ("line", "order"),
    [
        ("4 2 1 3", [103, 101, 100, 102]),
        ("4213", [103, 101, 100, 102]),
        ("3", [102, 100, 101, 103]),
        ("4, 2", [103, 101, 100, 102]),
        ("", [100, 101, 102, 103]),
        ("q", [100, 101, 102, 103]),
    ],
)
def test_those_named_come_first_and_the_others_follow(ordering, line, order):
    assert ordering.answer(line) == ""
    assert (ordering.stage, ordering.picks) == ("done", order)


@pytest.mark.parametrize("line", ["5", "0", "1 2 2", "1 2 3 4 1", "11", "x", "-1", "²", "٣", "4 3 2 1 0"])
def test_a_wrong_order_changes_nothing_and_says_what_is_allowed(ordering, line):
    before = state(ordering)
    assert "their numbers, the first one first, or Enter for this order; u goes back" in ordering.answer(line)
    assert state(ordering) == before


def test_places_are_given_and_taken_back(ordering):
    ordering.place(2)
    ordering.place(0)
    assert ordering.view().captions == ["1, now 2", "2", "3, now 1", "4"]
    assert ordering.view().marked == {0, 2}
    ordering.place(2)
    assert ordering.view().captions == ["1, now 1", "2", "3", "4"]


def test_the_last_place_ends_the_ordering(ordering):
    for pick in (3, 2, 1):
        ordering.place(pick)
        assert ordering.stage == "ordering"
    ordering.place(0)
    assert (ordering.stage, ordering.picks) == ("done", [103, 102, 101, 100])


@pytest.mark.parametrize("line", ["", "q"])
def test_leaving_with_some_places_given_keeps_these_first(ordering, line):
    ordering.place(2)
    ordering.answer(line)
    assert (ordering.stage, ordering.picks) == ("done", [102, 100, 101, 103])


def test_more_than_nine_picks_are_ordered_by_numbers_apart():
    picking = Picking(batch_size=12, winners=11, first_seed=0)
    picking.answer("1 2 3 4 5 6 7 8 9 10 11")
    assert picking.stage == "ordering"
    assert "12 is not one of 1 to 11" in picking.answer("12")
    picking.answer("11 1")
    assert picking.picks == [10, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("line", ["u", "1", "0", "", "q"])
def test_after_the_end_nothing_changes(picking, line):
    picking.answer("5 2")
    picking.answer("q")
    picking.answer(line)
    assert (picking.stage, picking.picks) == ("done", [104, 101])
