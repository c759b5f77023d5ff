"""Describe a run as a text for the terminal."""

from __future__ import annotations

import shlex
from typing import Any

from nvae.system.files import root_folder
from nvae.system.texts import printable
from nvae.training.report.facts import continuation, facts_of, state_text
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
    lines += _kl_bars(record) + _events(record.events)
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


def _kl_bars(record: RunRecord) -> list[str]:
    """Return the KL of every latent group with a bar, top first."""
    kls = record.kl_per_group
    if not kls:
        return []
    names = [name if ":" in name else f"{name}:" for name in record.groups]
    width, largest = max(map(len, names)), max(*kls, 1e-9)
    numbers = [f"{kl:.2f}" for kl in kls]
    digits = max(map(len, numbers))
    bars = ["#" * round(BAR * max(kl, 0) / largest) for kl in kls]
    rows = zip(names, numbers, bars, strict=True)
    return [
        "",
        "KL per latent group, top first, in nats",
        *(f"  {name:<{width}}  {number:>{digits}}  {bar}".rstrip() for name, number, bar in rows),
    ]


def _events(events: list[dict[str, Any]]) -> list[str]:
    if not events:
        return []
    earlier = len(events) - MAX_EVENTS
    lines = ["", "events"] + ([f"  {earlier} earlier events"] if earlier > 0 else [])
    return lines + [
        f"  step {event['step']:,}, epoch {event['epoch']:.4g}: {event['kind']}: {event['text']}"
        for event in events[-MAX_EVENTS:]
    ]
