"""Describe a run as a text for the terminal."""

from __future__ import annotations

import shlex
from typing import Any

from nvae.summary import table
from nvae.system.files import root_folder
from nvae.system.texts import printable
from nvae.training.report.facts import continuation, facts_of, kl_bars, state_text
from nvae.training.report.record import RunRecord

BAR = 40  # characters of the longest bar
MAX_EVENTS = 20


def run_text(record: RunRecord) -> str:
    """Return what a run did and how to continue, in lines; without any training only what is missing."""
    if record.is_empty:
        return "\n".join(printable(f"note: {problem}") for problem in record.problems)
    rows = [("run", f"{record.name}: {state_text(record)}")]
    if record.holder:
        rows.append(("now", f"trained by {record.holder}"))
    rows += [(fact.name, f"{fact.value}{f' ({fact.remark})' if fact.remark else ''}") for fact in facts_of(record)]
    if (record.folder / "report.html").exists():
        rows.append(("page", str(record.folder / "report.html")))
    width = max(len(name) for name, _ in rows)
    lines = [f"{name:<{width}}  {text}" for name, text in rows]
    for kind, kls in kl_bars(record).items():
        lines += _bars(f"KL per {kind}, top first, in nats", kls)
    lines += _events(record.events)
    lines += [f"note: {problem}" for problem in record.problems]
    is_root_folder = record.root == root_folder()
    if command := continuation(record, in_root=not is_root_folder):
        root, line = shlex.quote(str(record.root)), command.line
        if not record.root.samefile("."):
            line = f"{line} --root {root}" if is_root_folder else f"cd {root} && {line}"
        lines += ["", f"to {command.purpose}:", f"  {line}"]
    else:
        lines += ["", "to continue, run the command that started the run"]
    return "\n".join(map(printable, lines))


def _bars(title: str, values: dict[str, float]) -> list[str]:
    """Return a title, and every value with its name and a bar."""
    if not values:
        return []
    largest = max(*values.values(), 1e-9)
    rows = [
        (name if ":" in name else f"{name}:", f"{value:.2f}", "#" * round(BAR * max(value, 0) / largest))
        for name, value in values.items()
    ]
    return ["", title, *(f"  {line}" for line in table(rows, left=(0, 2)))]


def _events(events: list[dict[str, Any]]) -> list[str]:
    if not events:
        return []
    earlier = len(events) - MAX_EVENTS
    lines = ["", "events"] + ([f"  {earlier} earlier events"] if earlier > 0 else [])
    return lines + [
        f"  step {event['step']:,}, epoch {event['epoch']:.4g}: {event['kind']}: {event['text']}"
        for event in events[-MAX_EVENTS:]
    ]
