"""Two ways to pick: at a prompt with a picture in a file, and in a window. Both show a `Picking` and drive it."""

from __future__ import annotations

import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from nvae.errors import UserError
from nvae.tools.display import Inline, inline
from nvae.tools.grids import Layout, save_picture
from nvae.tools.picking.game import DIGITS, Picking, View

Draw = Callable[[View], tuple[Image.Image, Layout]]
Keep = Callable[[], str]  # called after every change; returns what to tell the person, if anything

POLL_SECONDS = 0.05


# ---------------------------------------------------------------------------------------------- at the prompt


def pick_at_prompt(
    picking: Picking, draw: Draw, keep: Keep, path: Path, protocol: Inline | Literal["none"] = "none"
) -> None:
    """Each view goes into the PNG at `path` (and into the terminal, by a protocol); answers are read from the input.

    The end of the input is taken as q.
    """
    shown = None
    while picking.stage != "done":
        view = picking.view()
        if view != shown:
            picture, _ = draw(view)
            try:
                where = save_picture(picture, path, {"seeds": view.seeds})
            except UserError as error:  # worth no pick
                where = f"({error})"
            if protocol != "none":
                sys.stdout.flush()
                sys.stdout.buffer.write(inline(picture, protocol) + b"\n")
            print(f"\n{view.title}: {where}")
            shown = view
        try:
            message = picking.answer(input(f"{view.hint}: "))
        except EOFError:
            print("\nend of input: leaving with what is picked.")
            message = picking.quit()
        except UnicodeDecodeError:
            message = f"what came is no text: {view.hint}"
        if found := keep() or message:
            print(found)


# ------------------------------------------------------------------------------------------------ in a window


class PickingWindow:
    """A matplotlib window: click a cell or type its number; the hint below says the other keys.

    What is typed into the terminal is understood as well. Closing the window is q. Events only change the picking; what
    follows from that is sampled and drawn between them, where an interruption is not swallowed by the toolkit.
    """

    def __init__(self, picking: Picking, draw: Draw, keep: Keep, title: str) -> None:
        from matplotlib import pyplot

        self.picking, self.draw, self.keep = picking, draw, keep
        self.typed = ""
        self.message = ""
        self.shown: View | None = None
        self.said = ""
        self.layout: Layout | None = None
        with pyplot.rc_context({"toolbar": "None"}):
            self.figure = pyplot.figure(title, figsize=(6.4, 7.2))
        manager = self.figure.canvas.manager
        if getattr(manager, "key_press_handler_id", None) is not None:
            self.figure.canvas.mpl_disconnect(manager.key_press_handler_id)  # q, s and others have a meaning there
        self.axes = self.figure.add_axes((0.02, 0.1, 0.96, 0.84))
        self.line = self.figure.text(0.5, 0.05, "", ha="center", va="center", fontsize=9)
        self.open = True
        for event, handle in (
            ("key_press_event", self.on_key),
            ("button_press_event", self.on_click),
            ("close_event", self.on_close),
        ):
            self.figure.canvas.mpl_connect(event, handle)

    def update(self) -> None:
        """Show the picking as it is."""
        view = self.picking.view()
        if view != self.shown:
            picture, self.layout = self.draw(view)
            self.axes.clear()
            self.axes.axis("off")
            self.axes.imshow(np.asarray(picture))
            self.axes.set_title(view.title, fontsize=11)
            self.shown = view
        elif self._line() == self.said:
            return
        self.said = self._line()
        self.line.set_text(self.said)
        self.figure.canvas.draw_idle()

    def _line(self) -> str:
        return f"{self.typed}   {self.message or self.picking.view().hint + '; or click'}".strip()

    def outdated(self) -> bool:
        """Whether other cells are to be drawn than those a person sees, at whom no key or click can be meant."""
        return self.shown is None or self.picking.stage == "done" or self.picking.view().seeds != self.shown.seeds

    def on_key(self, event: Any) -> None:
        """Digits act at once where one digit says it all, otherwise with Enter; the space bar parts numbers then."""
        key = (event.key or "").lower()
        if self.outdated() and key != "q":
            return
        cells = len(self.picking.view().seeds)
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key in (" ", "space") and self.typed:
            self.typed += " "
        elif key in ("enter", " ", "space"):
            typed, self.typed = self.typed, ""
            ordering = self.picking.stage == "ordering"
            self.take(typed or ("" if ordering else "0"))  # Enter alone goes on, or keeps the order
        elif key == "right" and self.picking.stage == "picking":
            self.take("0")
        elif key in ("u", "q"):
            self.typed = ""
            self.take(key)
        elif key not in tuple("0123456789"):
            return
        elif cells > DIGITS:
            self.typed += key
        elif self.picking.stage == "ordering" and key != "0":
            self.point_at(int(key) - 1)
        else:
            self.take(key)

    def on_click(self, event: Any) -> None:
        """A click picks, and takes back; while ordering it gives the next place."""
        if not self.outdated() and event.inaxes is self.axes and event.button == 1 and not event.dblclick:
            cell = self.layout.cell_at(event.xdata, event.ydata, len(self.shown.seeds))
            if cell is not None:
                self.point_at(cell)

    def point_at(self, cell: int) -> None:
        """What a click on a cell does."""
        if self.picking.stage == "picking":
            self.picking.pick(cell)
        elif cell < len(self.picking.picks):
            self.picking.place(cell)
        self.message = self.keep()

    def take(self, answer: str) -> None:
        """An answer as at the prompt."""
        message = self.picking.answer(answer)
        self.message = self.keep() or message

    def on_close(self, event: Any) -> None:
        """The window was closed."""
        self.open = False

    def run(self) -> None:
        """Until all is picked and ordered, or the window is closed."""
        from matplotlib import pyplot

        answers = answers_from_the_terminal()
        self.update()
        self.figure.show()
        while self.open and self.picking.stage != "done":
            self.figure.canvas.start_event_loop(POLL_SECONDS)
            while answers is not None and self.picking.stage != "done" and not answers.empty():
                self.take(answers.get())
                if self.message:
                    print(self.message)
            if self.open and self.picking.stage != "done":
                self.update()
        if self.picking.stage != "done":
            self.picking.quit()
            self.keep()
        pyplot.close(self.figure)


def answers_from_the_terminal() -> queue.SimpleQueue[str] | None:
    """Lines as they are typed, read beside everything else; None where the input is no terminal."""
    if sys.stdin is None or not sys.stdin.isatty():
        return None
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    file = sys.stdin.fileno()
    with suppress(OSError):  # a terminal without job control
        if hasattr(os, "tcgetpgrp") and os.tcgetpgrp(file) != os.getpgrp():
            return None  # the shell stops a program that reads in the background

    def read() -> None:  # not from sys.stdin, whose lock must be free when the program ends
        with suppress(OSError):  # the terminal may go
            while text := os.read(file, 4096):
                for line in text.decode(errors="replace").splitlines():
                    answers.put(line)

    threading.Thread(target=read, daemon=True).start()
    return answers
