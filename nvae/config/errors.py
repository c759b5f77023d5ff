"""Config errors as data, and the function that renders them as sentences."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import ValidationError

from nvae.config.fields import Located, allowed_for, choices, join, locate, schema_of, words_of
from nvae.schema import DATASETS, ModelConfig
from nvae.system.errors import InvalidValueError, UserError
from nvae.system.files import plain_name
from nvae.system.texts import printable

ErrorKind = Literal[
    "unknown_config",  # got: the name; allowed: the names of all configs
    "unreadable_file",  # got: why
    "invalid_yaml",  # got: the problem
    "duplicate_key",  # got: the line of the first entry
    "unknown_key",  # got: the value; allowed: the keys of the section
    "missing_key",
    "invalid_value",
    "invalid_override",  # got: the text
]
MAX_SHOWN = 80  # characters of a value
MAX_SHOWN_TEXT = 400  # characters of a key, a file name or a problem


class Place(NamedTuple):
    """The place where a key was written: a file, or the text of an override.

    text: what was written, where it is not quoted and a key for any text takes it as it is.
    """

    file: str
    line: int | None = None
    text: str | None = None


class ConfigError(UserError):
    """A config that cannot be read or does not describe a model.

    kind: what is wrong, see ErrorKind. key: the dotted key. file, line: where it was written. got: the value, as read.
    allowed: the allowed values, as a noun phrase. suggestion: the nearest allowed word. others: number of other
    problems. A field that does not apply is None.
    """

    def __init__(
        self,
        kind: ErrorKind,
        *,
        key: str | None = None,
        place: Place | None = None,
        got: Any = None,
        allowed: str | None = None,
        suggestion: str | None = None,
        others: int = 0,
    ) -> None:
        self.kind, self.key, self.got, self.allowed = kind, key, got, allowed
        self.file: str | None = place.file if place else None
        self.line: int | None = place.line if place else None
        self.suggestion, self.others = suggestion, others
        where = _shortened(self.file) + (f", line {self.line}: " if self.line else ": ") if self.file else ""
        more = f" ({others} more after this one)" if others else ""
        super().__init__(f"{where}{_sentence(self)}{more}")


def _sentence(error: ConfigError) -> str:
    """Return what is wrong and what to do. Text from a file is escaped."""
    key, got = _shortened(error.key or ""), error.got
    suggestion = f"Did you mean {error.suggestion}?" if error.suggestion else ""
    match error.kind:
        case "unknown_config":
            return f"unknown config {show(got)}. {suggestion or f'Use one of: {error.allowed}.'}"
        case "unreadable_file":
            return f"the file cannot be read: {_shortened(str(got))}."
        case "invalid_yaml":
            return f"invalid YAML: {_shortened(str(got))}."
        case "duplicate_key":
            return f"duplicate key {key}, first set on line {got}. Remove one of the two."
        case "unknown_key":
            return f"unknown key {key}. {suggestion or f'Use one of: {error.allowed}.'}"
        case "missing_key":
            return f"missing required key {key}. Add the key."
        case "invalid_override" | "invalid_value":
            return f"{key}{': ' if key else ''}got {show(got)}, expected {error.allowed}. {suggestion}".rstrip()


def show(value: Any) -> str:
    """Return a value as one short line without control characters."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        return "a section"
    if isinstance(value, list | tuple | set):
        return "a list"
    return _shortened(repr(value), MAX_SHOWN)


def _shortened(text: str, most: int = MAX_SHOWN_TEXT) -> str:
    text = printable(text)
    return text if len(text) <= most else f"{text[:most]}..."


def nearest(word: Any, words: Iterable[str]) -> str | None:
    """Return the most similar of the words, spelled as `plain_name` spells names; None if no word is similar."""
    by_name = {plain_name(each): each for each in words}
    similar = isinstance(word, str) and len(word) <= MAX_SHOWN  # comparing takes the product of the lengths
    matches = difflib.get_close_matches(plain_name(word), by_name, n=1, cutoff=0.65) if similar else []
    return by_name[matches[0]] if matches else None


# ---------------------------------------------------------------------------------------- from pydantic's errors


def config_error(error: ValidationError, model: type[ModelConfig], places: Mapping[str, Place]) -> ConfigError:
    """Return the first of a config's problems as ConfigError; unknown keys come before all others.

    An unknown key similar to a missing key is probably a typing error, so the missing key is not counted.
    """
    every = map(_of_the_list, error.errors(include_url=False))
    problems = list({(problem["loc"], problem["type"]): problem for problem in every}.values())
    schema = schema_of(model)
    located = [locate(schema, problem["loc"]) for problem in problems]
    missing = [where.key for problem, where in zip(problems, located, strict=True) if problem["type"] == "missing"]
    unknown = [problem["type"] in ("extra_forbidden", "invalid_key") for problem in problems]
    first = unknown.index(True) if any(unknown) else 0
    fields = _fields_of(problems[first], located[first], missing)
    explained = fields["kind"] == "unknown_key" and join(located[first].parent, fields["suggestion"]) in missing
    others = len({where.key for where in located}) - 1 - explained  # a key has a problem for each of its types
    return ConfigError(**fields, place=place_of(fields["key"], places), others=others)


def _of_the_list(problem: Any) -> dict[str, Any]:
    """Return a problem; for a number that a list lacks, that of the list, which is too short."""
    *parents, last = problem["loc"] or ("",)
    is_number = problem["type"] == "missing" and isinstance(last, int)
    return problem | {"type": "too_short", "loc": tuple(parents)} if is_number else problem


def _fields_of(problem: Mapping[str, Any], where: Located, missing: list[str]) -> dict[str, Any]:
    key, kind, got = where.key, problem["type"], problem["input"]
    if kind == "missing":
        return {"kind": "missing_key", "key": key}
    if kind in ("extra_forbidden", "invalid_key"):
        keys, parent, name = list(where.section["properties"]), where.parent, where.name
        suggestion = nearest(name, [k for k in keys if join(parent, k) in missing]) or nearest(name, keys)
        if parent == "dataset" and any(name in dataset.model_fields for dataset in DATASETS.values()):
            suggestion = None  # no typing error, but a key of another data set
        return {"kind": "unknown_key", "key": key, "got": got, "allowed": ", ".join(keys), "suggestion": suggestion}
    allowed = allowed_for(key, where.schema) or problem["msg"]
    fields = {"kind": "invalid_value", "key": key, "got": got, "allowed": allowed}
    if kind == "value_error" and isinstance(cause := problem["ctx"]["error"], InvalidValueError):
        return fields | {"key": join(key, cause.name), "got": cause.got, "allowed": cause.expected}
    if kind == "union_tag_invalid":  # the name of a data set
        name = got["name"]
        suggestion = nearest(name, DATASETS)
        allowed = "the name of a data set" if suggestion else choices(DATASETS)
        return fields | {"key": f"{key}.name", "got": name, "allowed": allowed, "suggestion": suggestion}
    return fields | {"suggestion": nearest(got, words_of(where.schema))}


def place_of(key: str, places: Mapping[str, Place]) -> Place:
    """Return the place of a dotted key, or else of the section that holds the key, or else of the file, places[""]."""
    while key not in places:
        key = key.rpartition(".")[0]
    return places[key]
