"""Texts for people: what a file or a name may hold is shown without effect on a terminal, and counts have a plural."""

from __future__ import annotations

import unicodedata

JOINERS = "\u200c\u200d"  # without width, part of many words and emoji


def printable(text: str, keep: str = "") -> str:
    """Return a text with an escape for every character that a terminal could act on. keep: characters that stay."""
    keep += JOINERS

    def is_harmless(c: str) -> bool:
        return c.isprintable() or unicodedata.category(c) == "Zs" or c in keep  # Zs: spaces, in names of pictures too

    return "".join(c if is_harmless(c) else c.encode("unicode_escape").decode() for c in text)


def one_line(text: str) -> str:
    """Return a text of one or several lines as one printable line."""
    return printable(" ".join(line.strip() for line in text.splitlines()))


def counted(number: int, noun: str) -> str:
    """Return a number and its noun in the singular or the plural: 1 picture, 2,000 pictures."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
