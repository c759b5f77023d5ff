"""Picking from batches of samples, and putting the picks in order: what was done, what may be done, what is shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from nvae.tools.grids import near_square

DIGITS = 9  # up to so many cells every digit is a number by itself


@dataclass(frozen=True)
class View:
    """What a person should see now."""

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
    """Someone picks from batches of samples, then puts the picks in order. Cells are counted from 1 for people."""

    batch_size: int
    winners: int
    first_seed: int
    batch: int = 0
    picks: list[int] = field(default_factory=list)  # seeds
    placed: list[int] = field(default_factory=list)  # while ordering: which picks come first
    stage: Literal["picking", "ordering", "done"] = "picking"
    _before: list[tuple[int, list[int]]] = field(default_factory=list)  # batch and picks before every action

    @property
    def seeds(self) -> list[int]:
        """Of the batch that is shown."""
        first = self.first_seed + self.batch * self.batch_size
        return list(range(first, first + self.batch_size))

    def view(self) -> View:
        """The batch with its picks marked; at the end the picks with their places."""
        if self.stage == "picking":
            seeds = self.seeds
            marked = {cell for cell, seed in enumerate(seeds) if seed in self.picks}
            return View(
                seeds,
                [str(cell + 1) for cell in range(len(seeds))],
                marked,
                f"batch {self.batch + 1}, seeds {seeds[0]} to {seeds[-1]}; picked {len(self.picks)} of {self.winners}",
                f"1-{self.batch_size} pick, 0 goes on, u undoes, q leaves and keeps what is picked",
            )
        places = {pick: place for place, pick in enumerate(self.placed)}
        captions = [f"{n + 1}, now {places[n] + 1}" if n in places else str(n + 1) for n in range(len(self.picks))]
        return View(
            list(self.picks),
            captions,
            set(places),
            "these are your picks; in which order?",
            "their numbers, the first one first, or Enter for this order; u goes back",
        )

    def answer(self, text: str) -> str:
        """Take what a person typed; returns what to tell them, if anything. A wrong answer changes nothing."""
        text = text.strip().lower()
        if self.stage == "done":
            return ""
        if text in ("q", "quit"):
            return self.quit()
        if text in ("u", "undo"):
            return self.undo()
        if not text:
            return self.finish() if self.stage == "ordering" else self.view().hint
        cells = self.batch_size if self.stage == "picking" else len(self.picks)
        try:
            numbers = _numbers(text, cells)
        except ValueError:
            return f"'{text}' is not understood: {self.view().hint}"
        return self._order(numbers) if self.stage == "ordering" else self._pick_all(numbers)

    def _pick_all(self, numbers: list[int]) -> str:
        seeds = self.seeds
        picked = [number for number in numbers if number != 0]
        if 0 in numbers[:-1]:
            return "0 goes on to the next batch: it comes last."
        if wrong := [number for number in picked if number > self.batch_size]:
            return f"there is no {wrong[0]}: {self.view().hint}"
        if again := [n for i, n in enumerate(picked) if n in picked[:i] or seeds[n - 1] in self.picks]:
            return f"{again[0]} is picked already, or there twice; u undoes."
        if len(picked) > (free := self.winners - len(self.picks)):
            return f"only {free} more to pick."
        for number in picked:
            self.pick(number - 1)
        if numbers[-1] == 0 and self.stage == "picking":
            self.go_on()
        return ""

    def _order(self, numbers: list[int]) -> str:
        if wrong := [n for i, n in enumerate(numbers) if not 1 <= n <= len(self.picks) or n in numbers[:i]]:
            return f"{wrong[0]} is not one of 1 to {len(self.picks)}, or is there twice: {self.view().hint}"
        self.placed = [number - 1 for number in numbers]
        return self.finish()

    def pick(self, cell: int) -> None:
        """Pick a cell of the batch that is shown, or take it back; with the last pick, ordering begins."""
        seed = self.seeds[cell]
        self._before.append((self.batch, list(self.picks)))
        if seed in self.picks:
            self.picks.remove(seed)
        else:
            self.picks.append(seed)
        if len(self.picks) == self.winners:
            self.stage = "ordering" if self.winners > 1 else "done"

    def place(self, pick: int) -> None:
        """While ordering: this pick comes next, or, if it has a place, loses it."""
        if pick in self.placed:
            self.placed.remove(pick)
        else:
            self.placed.append(pick)
        if len(self.placed) == len(self.picks):
            self.finish()

    def go_on(self) -> None:
        """To the next batch."""
        self._before.append((self.batch, list(self.picks)))
        self.batch += 1

    def undo(self) -> str:
        """What was done last, be it a pick, a place or going on."""
        if self.stage == "ordering" and self.placed:
            self.placed.pop()
        elif self._before:
            self.batch, self.picks = self._before.pop()
            self.stage = "picking"
        else:
            return "there is nothing to undo."
        return ""

    def quit(self) -> str:
        """Leave; what is picked stays."""
        self.finish()
        return ""

    def finish(self) -> str:
        """Those placed come first, the others follow in the order of their picking."""
        rest = [pick for pick in range(len(self.picks)) if pick not in self.placed]
        self.picks = [self.picks[pick] for pick in self.placed + rest]
        self.placed = []
        self.stage = "done"
        return ""


def _numbers(text: str, cells: int) -> list[int]:
    """'1 5,9', and for up to nine cells '159'. Raises ValueError."""
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isascii() and part.isdecimal() for part in parts):
        raise ValueError(text)
    if cells <= DIGITS:
        if any("0" in part and part != "0" for part in parts):  # 10 is a mistake, not 1 and 0
            raise ValueError(text)
        parts = [digit for part in parts for digit in part]
    return [int(part) for part in parts]
