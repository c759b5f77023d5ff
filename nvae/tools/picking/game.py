"""The rules of cherry-picking: pick from batches of samples, then put the picks in order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nvae.tools.grids import near_square

MAX_DIGIT_CELLS = 9  # up to this many cells every digit is a number by itself

Stage = Literal["picking", "ordering", "done"]


@dataclass(frozen=True)
class View:
    """The cells, their captions and marks, and the texts to show now."""

    seeds: list[int]
    captions: list[str]
    marked: set[int]
    title: str
    hint: str

    @property
    def columns(self) -> int:
        return near_square(len(self.seeds))


@dataclass
class Picking:
    """The state of a game. Cells are counted from 0 here and from 1 in answers and texts.

    While picking, a cell is picked by its number and unpicked by the same number. Once all winners are picked, going on
    leads to ordering. While ordering, cells get the first places in the order they are named; the others follow in the
    order they were picked, once the user confirms with Enter. Every action can be undone.
    """

    batch_size: int
    winners: int
    first_seed: int
    batch: int = 0
    picks: list[int] = field(default_factory=list)  # seeds
    placed: list[int] = field(default_factory=list)  # while ordering: indices into `picks`, the first place first
    stage: Stage = "picking"
    _history: list[tuple[int, list[int], list[int], Stage]] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The seeds of the current batch."""
        first = self.first_seed + self.batch * self.batch_size
        return list(range(first, first + self.batch_size))

    @property
    def full(self) -> bool:
        """Whether all winners are picked."""
        return len(self.picks) == self.winners

    def view(self) -> View:
        """Return the batch with its picks marked, or while ordering the picks with their places."""
        if self.stage == "picking":
            seeds = self.seeds
            marked = {cell for cell, seed in enumerate(seeds) if seed in self.picks}
            title = (
                f"batch {self.batch + 1}, seeds {seeds[0]} to {seeds[-1]}: picked {len(self.picks)} of {self.winners}"
            )
            step = "Enter or 0: next batch"
            if self.full:
                step = "Enter or 0: finish" if self.winners == 1 else "Enter or 0: put the picks in order"
            hint = f"1-{self.batch_size}: pick, again: unpick; {step}; u: undo; q: save and quit"
            return View(seeds, [str(cell + 1) for cell in range(len(seeds))], marked, title, hint)
        places = {pick: place for place, pick in enumerate(self.placed)}
        captions = [f"{n + 1}: place {places[n] + 1}" if n in places else str(n + 1) for n in range(len(self.picks))]
        title = f"your picks: {len(self.placed)} of {len(self.picks)} have a place"
        hint = "numbers: best first, again: take back; Enter: accept, the others follow as picked; "
        hint += "u: undo; q: save and quit"
        return View(list(self.picks), captions, set(places), title, hint)

    def answer(self, text: str) -> str:
        """Carry out an answer of the user; return a message for the user, or "". A wrong answer changes nothing."""
        text = text.strip().lower()
        if self.stage == "done":
            return ""
        if text in ("q", "quit"):
            return self.finish()
        if text in ("u", "undo"):
            return self.undo()
        if not text:
            return self.finish() if self.stage == "ordering" else self.go_on()
        cells = self.batch_size if self.stage == "picking" else len(self.picks)
        try:
            numbers = _numbers(text, cells)
        except ValueError:
            return f"'{text}' is not understood. {self.view().hint}"
        positive = [number for number in numbers if number]
        if wrong := [n for i, n in enumerate(positive) if n > cells or n in positive[:i]]:
            return f"{wrong[0]} is given twice, or is not one of 1 to {cells}. {self.view().hint}"
        if 0 in numbers[:-1] or (0 in numbers and self.stage == "ordering"):
            return f"0 ends the picks of a batch: got '{text}'. {self.view().hint}"
        return self._place_all(positive) if self.stage == "ordering" else self._pick_all(positive, numbers[-1] == 0)

    def _pick_all(self, numbers: list[int], go_on: bool) -> str:
        seeds = [self.seeds[number - 1] for number in numbers]
        count = len(set(self.picks) ^ set(seeds))
        if count > self.winners:
            return (
                f"{len(self.picks)} of {self.winners} are picked: got {len(numbers)} more. Unpick some, or press Enter."
            )
        for seed in sorted(seeds, key=lambda seed: seed not in self.picks):  # unpick first
            self._toggle(self.picks, seed)
        return self.go_on() if go_on else ""

    def _place_all(self, numbers: list[int]) -> str:
        for number in numbers:
            self._toggle(self.placed, number - 1)
        missing = len(self.picks) - len(self.placed)
        if not missing:
            return self.finish()
        return f"{missing} without a place follow as picked: press Enter to accept, or name more."

    def _toggle(self, chosen: list[int], item: int) -> None:
        self._remember()
        if item in chosen:
            chosen.remove(item)
        else:
            chosen.append(item)

    def go_on(self) -> str:
        """Show the next batch, or begin the ordering once all winners are picked."""
        if self.full and self.winners == 1:
            return self.finish()
        self._remember()
        if self.full:
            self.stage = "ordering"
        else:
            self.batch += 1
        return ""

    def undo(self) -> str:
        """Take back the last action; return a message if there is none."""
        if not self._history:
            return "there is nothing to undo."
        self.batch, self.picks, self.placed, self.stage = self._history.pop()
        return ""

    def finish(self) -> str:
        """End the game: the picks with a place come first, the others follow in the order they were picked."""
        rest = [pick for pick in range(len(self.picks)) if pick not in self.placed]
        self.picks = [self.picks[pick] for pick in self.placed + rest]
        self.placed = []
        self.stage = "done"
        return ""

    def _remember(self) -> None:
        self._history.append((self.batch, list(self.picks), list(self.placed), self.stage))


def _numbers(text: str, cells: int) -> list[int]:
    """Parse '1 5,9', and for up to nine cells '159'. Raises ValueError."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(text)
    if cells <= MAX_DIGIT_CELLS:
        if any("0" in part and part != "0" for part in parts):  # 10 is a mistake, not 1 and 0
            raise ValueError(text)
        parts = [digit for part in parts for digit in part]
    return [int(part) for part in parts]
