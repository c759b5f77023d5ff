"""The fields of the schema as text: for error messages, `nvae config` and docs/config.md.

Pydantic describes a section as a JSON schema. `schema_of` replaces the references in it, so that each key's description
stands at its place.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

from nvae.schema import AUTO, AUTO_KEYS, Section

Schema = dict[str, Any]
SECTION = "a section of 'key: value' lines"
TYPES = {
    "boolean": "True or False",
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "null": "null",
}
BOUNDS = {
    "minimum": " from",
    "exclusiveMinimum": " above",
    "maximum": " to",
    "exclusiveMaximum": " to below",
    "multipleOf": ", a multiple of",
}


class Located(NamedTuple):
    """A place in a config: the names of the section and of the key, and their schemas ({} for an unknown key)."""

    parent: str
    name: str
    section: Schema
    schema: Schema

    @property
    def key(self) -> str:
        """The dotted key."""
        return join(self.parent, self.name)


@cache
def schema_of(section: type[Section]) -> Schema:
    """Return the JSON schema of a section, with all sections in it; not to be changed."""
    schema = section.model_json_schema()
    definitions = schema.pop("$defs", {})

    def expanded(part: Any) -> Any:
        if isinstance(part, list):
            return [expanded(item) for item in part]
        if not isinstance(part, dict):
            return part
        if "$ref" in part:
            part = definitions[part["$ref"].rpartition("/")[2]] | {k: v for k, v in part.items() if k != "$ref"}
        return {key: expanded(value) for key, value in part.items()}

    return expanded(schema)


def locate(model: Schema, loc: Sequence[str | int]) -> Located:
    """Follow the location that pydantic gives for a problem in a config of the schema `model`."""
    keys: list[str] = []
    section = schema = model
    for part in loc:
        if "oneOf" in schema:  # pydantic names the chosen member of a union, which is no key
            schema = section = next((s for s in schema["oneOf"] if part in words_of(s["properties"]["name"])), {})
            continue
        if "anyOf" in schema:
            if not isinstance(part, int):  # as above: the whole value is wrong
                break
            schema = next(s for s in schema["anyOf"] if "items" in s or "prefixItems" in s)
        keys.append(str(part))
        if "properties" in schema:
            section, schema = schema, schema["properties"].get(part, {})
        elif "prefixItems" in schema and isinstance(part, int):
            schema = schema["prefixItems"][part]
        else:
            schema = schema.get("items", {})
    return Located(".".join(keys[:-1]), keys[-1] if keys else "", section, schema)


def join(section: str, key: str | None) -> str:
    """Return a dotted key; either part may be missing."""
    return ".".join(part for part in (section, key) if part)


def words_of(schema: Schema) -> list[str]:
    """Return the texts that the schema of a key lists as allowed."""
    listed = [schema["const"]] if "const" in schema else schema.get("enum", [])
    texts = [word for word in listed if isinstance(word, str)]
    return texts + [word for part in schema.get("anyOf", []) for word in words_of(part)]


def takes_any_text(schema: Schema) -> bool:
    """Return whether a key of this schema may be any text, not one of a list."""
    is_text = schema.get("type") == "string" and not words_of(schema)
    return is_text or any(map(takes_any_text, schema.get("anyOf", [])))


def takes_null(schema: Schema) -> bool:
    """Return whether a key of this schema may be null."""
    return schema.get("type") == "null" or any(map(takes_null, schema.get("anyOf", [])))


def choices(values: Iterable[Any]) -> str:
    """Return values as a list in words: 'a', 'b' or 'c'."""
    *rest, last = [repr(value) for value in values]
    return f"{', '.join(rest)} or {last}" if rest else last


def allowed_for(key: str, schema: Schema) -> str:
    """Return the allowed values of a key with this schema, `auto` included."""
    allowed = allowed_values(schema)
    return f"{allowed}, or {AUTO}" if key in AUTO_KEYS else allowed


def allowed_values(schema: Schema) -> str:
    """Return the allowed values of a schema, such as 'a whole number from 1 to 8'; '' for an unknown type."""
    match schema:
        case {"allowed": str(phrase)}:  # a section with a short form
            return phrase
        case {"properties": _} | {"oneOf": _}:
            return SECTION
        case {"const": value}:
            return choices([value])
        case {"enum": values}:
            return choices(values)
        case {"anyOf": parts}:
            return ", or ".join(map(allowed_values, parts))
        case {"prefixItems": parts}:
            return f"a list of {len(parts)}: {', '.join(map(allowed_values, parts))}"
        case {"items": part}:
            return f"a list, each {allowed_values(part)}"
    bounds = [f"{words} {_number(schema[bound])}" for bound, words in BOUNDS.items() if bound in schema]
    return "".join([TYPES.get(schema.get("type", ""), ""), *bounds])


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
