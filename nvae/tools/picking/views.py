"""Two front ends for a `Picking`: a prompt with a picture in a file, and a window."""

from __future__ import annotations

import os
import queue
import sys
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nvae.data.pictures.metadata import save_picture
from nvae.schema.choices import Inline
from nvae.system.errors import UserError
from nvae.tools.display import inline
from nvae.tools.grids import Layout
from nvae.tools.picking.game import MAX_DIGIT_CELLS, Picking, View

Draw = Callable[[View], tuple[Image.Image, Layout]]
Save = Callable[[], str]  # called after every change; returns a message for the user, or ""

POLL_SECONDS = 0.05
WINDOW_KEYS = "click: as its number; Space, Right: as Enter"


# ---------------------------------------------------------------------------------------------- at the prompt


def pick_at_prompt(picking: Picking, draw: Draw, save: Save, path: Path, protocol: Inline = "none") -> None:
    """Save each view as PNG at `path`, show it in the terminal by a protocol, and read answers from standard input.

    The end of the input counts as q.
    """
    shown = None
    while picking.stage != "done":
        view = picking.view()
        if view != shown:
            picture, _ = draw(view)
            where = str(path)
            try:
                save_picture(picture, path, {"seeds": view.seeds})
            except UserError as error:  # a preview must not end the game
                where = f"({error})"
            if protocol != "none":
                sys.stdout.flush()
                sys.stdout.buffer.write(f"{inline(picture, protocol)}\n".encode())  # text is escaped
            print(f"\n{view.title}: {where}")
            shown = view
        try:
            message = picking.answer(input(f"{view.hint}\n> "))
        except EOFError:
            print("\nend of the input: the picks are saved.")
            message = picking.finish()
        except UnicodeDecodeError:
            message = f"the input is not valid text. {view.hint}"
        if message := save() or message:
            print(message)


# ------------------------------------------------------------------------------------------------ in a window


class PickingWindow:
    """A matplotlib window: click a cell or press its number; the line below lists the other keys.

    Lines typed into the terminal are answers too. Closing the window counts as q. Event handlers only change the game;
    sampling and drawing happen between events, where the toolkit does not swallow an interruption.
    """

    def __init__(self, picking: Picking, draw: Draw, save: Save, title: str) -> None:
        from matplotlib import pyplot

        self.picking, self.draw, self.save = picking, draw, save
        self.typed = ""
        self.message = ""
        self.shown = View([], [], set(), "", "")
        self.shown_texts: tuple[object, ...] = ()
        self.layout = Layout(1, 1, 0, 0)
        with pyplot.rc_context({"toolbar": "None"}):
            self.figure = pyplot.figure(title, figsize=(6.4, 7.2))
        manager: Any = self.figure.canvas.manager
        if getattr(manager, "key_press_handler_id", None) is not None:
            self.figure.canvas.mpl_disconnect(manager.key_press_handler_id)  # matplotlib's own keys, such as q and s
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.title = self.figure.text(0.5, 1, "", ha="center", va="top", fontsize=10)
        self.line = self.figure.text(0.5, 0, "", ha="center", va="bottom", fontsize=9)
        self.open = True
        self.figure.canvas.mpl_connect("key_press_event", self.on_key)
        self.figure.canvas.mpl_connect("button_press_event", self.on_click)
        self.figure.canvas.mpl_connect("close_event", self.on_close)

    def update(self) -> None:
        """Show the game as it is now: the picture if the view has changed, the texts if they or the window have."""
        view = self.picking.view()
        new = view != self.shown
        if new:
            picture, self.layout = self.draw(view)
            self.axes.clear()
            self.axes.axis("off")
            self.axes.imshow(np.asarray(picture))
            self.shown = view
        texts = (view.title, self._line(view), *self.figure.bbox.size)
        if new or texts != self.shown_texts:
            self._arrange(view.title, self._line(view))
            self.shown_texts = texts
            self.figure.canvas.draw_idle()

    def _line(self, view: View) -> str:
        return f"{self.typed}   {self.message or f'{view.hint}; {WINDOW_KEYS}'}".strip()

    def _arrange(self, title: str, line: str) -> None:
        """Wrap the texts to the window's width, and give the picture the height that they leave."""
        width, height = self.figure.bbox.size
        heights = []
        for artist, text in ((self.title, title), (self.line, line)):
            size = float(artist.get_fontsize()) * self.figure.dpi / 72  # of a line, in pixels
            lines = textwrap.wrap(text, max(10, int(width / (0.58 * size)))) or [""]
            artist.set_text("\n".join(lines))
            heights.append((1.3 * size * len(lines) + 6) / height)
        top, bottom = heights
        self.title.set_y(1 - 3 / height)
        self.line.set_y(3 / height)
        self.axes.set_position((0.01, bottom, 0.98, max(1 - top - bottom, 0.05)))

    def outdated(self) -> bool:
        """Tell whether the cells have changed since they were drawn: keys and clicks then mean cells that are gone."""
        return self.picking.stage == "done" or self.picking.view().seeds != self.shown.seeds

    def on_key(self, event: Any) -> None:
        """Take a key. Digits act at once if every number is one digit, otherwise with Enter; Space then separates."""
        key = (event.key or "").lower()
        if self.outdated() and key != "q":
            return
        if key == "backspace":
            self.typed = self.typed[:-1]
        elif key in (" ", "space") and self.typed:
            self.typed += " "
        elif key in ("enter", " ", "space", "right"):
            typed, self.typed = self.typed, ""
            self.answer(typed)
        elif key in ("u", "q"):
            self.typed = ""
            self.answer(key)
        elif key not in tuple("0123456789"):
            return
        elif len(self.shown.seeds) > MAX_DIGIT_CELLS:
            self.typed += key
        else:
            self.answer(key)

    def on_click(self, event: Any) -> None:
        """Take a click on a cell as its number."""
        if not self.outdated() and event.inaxes is self.axes and event.button == 1 and not event.dblclick:
            cell = self.layout.cell_at(event.xdata, event.ydata, len(self.shown.seeds))
            if cell is not None:
                self.answer(str(cell + 1))

    def answer(self, text: str) -> None:
        """Take an answer as at the prompt."""
        message = self.picking.answer(text)
        self.message = self.save() or message

    def on_close(self, event: Any) -> None:
        """Note that the window was closed."""
        self.open = False

    def run(self) -> None:
        """Play until the game has ended, or the window is closed."""
        from matplotlib import pyplot

        answers = answers_from_the_terminal()
        self.update()
        self.figure.show()
        while self.open and self.picking.stage != "done":
            self.update()
            self.figure.canvas.start_event_loop(POLL_SECONDS)
            while not answers.empty():
                self.answer(answers.get())
                if self.message:
                    print(self.message)
        if self.picking.stage != "done":
            self.picking.finish()
            self.save()
        pyplot.close(self.figure)


def answers_from_the_terminal() -> queue.SimpleQueue[str]:
    """Read lines from the terminal in a thread, into a queue, which stays empty if standard input is no terminal."""
    answers: queue.SimpleQueue[str] = queue.SimpleQueue()
    if sys.stdin is None or not sys.stdin.isatty():
        return answers
    file = sys.stdin.fileno()
    with suppress(OSError):  # a terminal without job control
        if hasattr(os, "tcgetpgrp") and os.tcgetpgrp(file) != os.getpgrp():
            return answers  # the shell stops a program that reads in the background

    def read() -> None:  # not from sys.stdin, whose lock must be free when the program ends
        with suppress(OSError):  # the terminal may be closed
            while text := os.read(file, 4096):
                for line in text.decode(errors="replace").splitlines():
                    answers.put(line)

    threading.Thread(target=read, daemon=True).start()
    return answers
