"""The reference of all keys, made of the schema: for `nvae config` and docs/config.md."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from nvae.config import flat
from nvae.config.fields import Schema, allowed_for, schema_of
from nvae.models.families import FAMILIES, config_class
from nvae.schema import DATASETS, DatasetConfig, ModelConfig, TrainingParameters

INTRODUCTION = """\
One YAML file defines a model completely. A file holds `key: value` lines; the keys of the data set are indented below
`dataset:`, those of the training schedule below `training_parameters:`. Keys without a default are required.
An override sets one key, with a dotted name: `training_parameters.epochs=3`.

Numbers are those of YAML 1.2, and also `1_000`: `1e2` is 100, `064` is 64, `0x10` is 16. Booleans are True and False,
or yes and no, on and off. A key for any text (`dataset.path`, `dataset.background`) takes an override's value as it
is, with `#`, quotes and spaces: `dataset.background=#ffffff`; only `null` is no text where the key may be null. In a
file, a space and `#` begin a comment, unless the text is in quotes: `background: "#ffffff"`.

The config that a run saves holds every key and the line `resolved: True`. Defaults of later versions do not apply to
such a file: a key that is newer than the file takes the behavior of before the key existed.

Names that differ from other programs: `sampling_method` is the likelihood; `use_tensor_checkpoints` is activation
checkpointing; `warmup_epochs` is the KL warm-up (the key `warmup_epochs` of the original NVAE is
`learning_rate_warmup_epochs` here)."""
WIDTH = 100


class Row(NamedTuple):
    """One key: its dotted name, allowed values, default ('' for a required key) and description."""

    key: str
    allowed: str
    default: str
    description: str


class Table(NamedTuple):
    """The keys of one section."""

    title: str
    rows: list[Row]


def reference(families: Sequence[str] = tuple(FAMILIES)) -> list[Table]:
    """Return the tables of all keys: of every family, of each given family, of each data set, of the training schedule.

    A family's table holds its own keys, and keys whose default the family or one of its presets changes.
    """
    general = Table("Every family", [row for row in _rows(schema_of(ModelConfig)) if row.key != "family"])
    schedule = Table("Training schedule", _rows(schema_of(TrainingParameters), "training_parameters."))
    own, own_schedules = [], []
    for name in families:
        model = config_class({"family": name})
        presets = {preset: flat(values) for sets in model.PRESETS.values() for preset, values in sets.items()}
        schema = schema_of(model)
        own.append(_differing(f"Family {name}", _rows(schema, "", presets), general))
        rows = _rows(schema["properties"]["training_parameters"], "training_parameters.", presets)
        own_schedules.append(_differing(f"Training schedule of family {name}", rows, schedule))
    shared = Table("Every data set", _rows(schema_of(DatasetConfig), "dataset."))
    datasets = []
    for dataset in dict.fromkeys(DATASETS.values()):
        names = ", ".join(name for name in DATASETS if DATASETS[name] is dataset)
        datasets.append(_differing(f"Data set {names}", _rows(schema_of(dataset), "dataset."), shared))
    return [general, *own, shared, *datasets, schedule, *(table for table in own_schedules if table.rows)]


def dataset_keys(name: str) -> Table:
    """Return the table of all keys of one data set."""
    return Table(f"Data set {name}", _rows(schema_of(DATASETS[name]), "dataset."))


def as_markdown(tables: Sequence[Table]) -> str:
    """The page docs/config.md."""
    lines = ["# The keys of a config", "", "Made by `make docs`.", "", INTRODUCTION, ""]
    for title, rows in tables:
        lines += [f"## {title}", "", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |"]
        for key, allowed, default, description in rows:
            lines.append(f"| `{key}` | {default or 'required'} | {allowed} | {description} |")
        lines.append("")
    return "\n".join(lines)


def as_text(tables: Sequence[Table]) -> str:
    """The same tables for a terminal."""
    lines = [INTRODUCTION.replace("`", ""), ""]
    for title, rows in tables:
        lines += [title, "-" * len(title), ""]
        for key, allowed, default, description in rows:
            lines.append(f"{key}  (default: {default})" if default else f"{key}  (required)")
            for text in (description, f"Allowed: {allowed}."):
                lines += textwrap.wrap(text, WIDTH, initial_indent="    ", subsequent_indent="    ")
            lines.append("")
    return "\n".join(lines).rstrip()


def _differing(title: str, rows: list[Row], general: Table) -> Table:
    return Table(title, [row for row in rows if row not in general.rows])


def _rows(schema: Schema, prefix: str = "", presets: Mapping[str, Mapping[str, Any]] | None = None) -> list[Row]:
    """Return the keys of a section, without `dataset` and `training_parameters`, which have their own tables."""
    rows = []
    for name, field in schema["properties"].items():
        if name in ("dataset", "training_parameters"):
            continue
        key = prefix + name
        default = "" if name in schema.get("required", []) else _text(field["default"])
        special = [f"{preset}: {_text(values[key])}" for preset, values in (presets or {}).items() if key in values]
        default += f" ({', '.join(special)})" if special else ""
        rows.append(Row(key, allowed_for(key, field), default, field["description"]))
    return rows


def _text(value: Any) -> str:
    """Return a default as written in a YAML file."""
    if value is None:
        return "null"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value) or "''"
