"""Report which pictures of a data set were left out, and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from pydantic import BaseModel

from nvae.system.texts import counted, printable

FaultKind = Literal["broken", "unreadable", "empty", "duplicate", "too small", "too large", "not an image", "no part"]
EXPLANATIONS: dict[str, str] = {
    "broken": "cannot be decoded",
    "unreadable": "cannot be opened",
    "empty": "0 bytes",
    "duplicate": "the same bytes as another file, which is used",
    "too small": "smaller than dataset.min_image_size",
    "too large": "more pixels than dataset.max_image_pixels, or too many bytes",
    "not an image": "none of PNG, JPEG, WebP, BMP, GIF, TIFF, PPM, AVIF and JPEG 2000; convert other pictures",
    "no part": "outside of the subfolders for training, validation and test",
}
MAX_NAMED = 3  # files of each kind that a warning names; the report names all
# Files that often lie beside pictures. The report names them, but they are worth no warning.
OTHER_FILES = (
    *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".ini", ".log"),
    *("thumbs.db", ".ds_store", "license", "readme"),
)


class PictureError(ValueError):
    """A picture file that cannot be used: the kind of the fault, and the reason where the kind does not say all.

    is_temporary: the fault may be one of the machine, such as a network that is down, and not one of the file.
    """

    def __init__(self, kind: FaultKind, reason: str = "", is_temporary: bool = False) -> None:
        super().__init__(reason)
        self.kind, self.reason, self.is_temporary = kind, reason, is_temporary


def is_other_file(name: str) -> bool:
    """Return whether a name is that of a file which often lies beside pictures, such as labels.csv."""
    return name.lower().endswith(OTHER_FILES)


class PictureReport(BaseModel):
    """What happened to the pictures of a data set."""

    source: str  # the folder or archive
    read: int = 0  # number of pictures that became images
    left_out: dict[FaultKind, list[str]] = {}  # of each kind of fault: names, with reasons
    notes: tuple[str, ...] = ()  # sentences on pictures that were changed in an unusual way

    @classmethod
    def of(
        cls, source: str, read: int, faults: Mapping[str, PictureError], notes: tuple[str, ...] = ()
    ) -> PictureReport:
        """Return the report of a number of images and the faults of all other pictures, by name."""
        left_out: dict[FaultKind, list[str]] = {kind: [] for kind in get_args(FaultKind)}
        for name, fault in faults.items():
            left_out[fault.kind].append(printable(name) + (f" ({printable(fault.reason)})" if fault.reason else ""))
        named = {kind: lines for kind, lines in left_out.items() if lines}
        return cls(source=printable(source), read=read, left_out=named, notes=notes)

    def text(self) -> str:
        """Return the whole report: the counts, the notes, and the names; empty if there is nothing to report."""
        if not self.left_out and not self.notes:
            return ""
        counts = [f"{len(lines):>9,}  {kind} ({EXPLANATIONS[kind]})" for kind, lines in self.left_out.items()]
        sections = ["\n".join([f"{self.source}: {counted(self.read, 'picture')} used", *counts]), *self.notes]
        sections += ["\n".join([f"{kind}:", *(f"  {line}" for line in lines)]) for kind, lines in self.left_out.items()]
        return "\n\n".join(sections) + "\n"

    def warnings(self) -> tuple[str, ...]:
        """Return at most a few sentences for the user."""
        worth = {k: [line for line in lines if not is_other_file(line)] for k, lines in self.left_out.items()}
        total = self.read + sum(map(len, worth.values()))
        parts = [f"{len(lines):,} {kind} ({_first(lines)})" for kind, lines in worth.items() if lines]
        if not parts:
            return self.notes
        return (*self.notes, f"{total - self.read:,} of {counted(total, 'picture')} left out: {'; '.join(parts)}")


def _first(lines: list[str]) -> str:
    more = f", and {len(lines) - MAX_NAMED:,} more" if len(lines) > MAX_NAMED else ""
    return ", ".join(lines[:MAX_NAMED]) + more
