"""Texts for people: control characters of files and names, and counts."""

from __future__ import annotations

import pytest

from nvae.system.errors import InvalidValueError, UserError
from nvae.system.texts import counted, one_line, printable

HOSTILE = "\x1b]0;owned\x07a\rb\x1b[2Jc\u202ed\x9b31me\udcff"


def test_printable_escapes_what_a_terminal_acts_on_and_nothing_else():
    assert printable(HOSTILE) == r"\x1b]0;owned\x07a\rb\x1b[2Jc\u202ed\x9b31me\udcff"
    assert printable("Ä ± 猫 photos #1") == "Ä ± 猫 photos #1"
    assert printable("می\u200cخواهم 👩\u200d🎨") == "می\u200cخواهم 👩\u200d🎨"
    assert printable("a\n\tb\r", keep="\n\t") == "a\n\tb\\r"


@pytest.mark.parametrize("make", [UserError, lambda text: InvalidValueError("key", text, "another", text)])
def test_error_is_one_printable_line_whatever_is_in_it(make):
    text = str(make(f"first\n  second{HOSTILE}\nthird"))
    assert text.isprintable()
    assert "first second" in text


def test_one_line_joins_lines():
    assert one_line("a\n  b\r\nc\u2028d") == "a b c d"


@pytest.mark.parametrize(("number", "text"), [(0, "0 pictures"), (1, "1 picture"), (2000, "2,000 pictures")])
def test_counted_has_a_singular_and_a_plural(number, text):
    assert counted(number, "picture") == text
