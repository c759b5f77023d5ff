"""Read YAML safely: plain values only, the line of every key, and every problem as ConfigError."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nvae.config.errors import ConfigError, Place

MAX_CHARACTERS = 100_000  # of a file; the largest real config has about 5,000
MAX_NUMBER = 100  # characters of a number
MAX_MERGED = 200  # entries of a section that merges others (`<<`)


class _Loader(yaml.SafeLoader):
    """A safe YAML loader that also reads 1e-2 as a number (YAML 1.2); PyYAML reads a text."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Construct a value; turn all errors of PyYAML's constructors into ConstructorError with the line."""
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and isinstance(node, yaml.ScalarNode) and len(node.value) > MAX_NUMBER:
            raise _problem("a number is too long", node)
        try:
            return super().construct_object(node, deep)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            raise _problem(f"a value is not of the type {node.tag.rpartition(':')[2]!r}", node) from None

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Merge sections (`<<`), which may repeat each other exponentially."""
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED:
            raise _problem("a section has too many keys", node)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _problem(text: str, node: yaml.Node) -> yaml.constructor.ConstructorError:
    return yaml.constructor.ConstructorError(problem=text, problem_mark=node.start_mark)


def read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[str, Place]]:
    """Return the dictionary of a YAML text, and the place of every dotted key and, as `""`, of the text.

    Raises ConfigError.
    """
    if len(text) > MAX_CHARACTERS:
        raise ConfigError("invalid_yaml", place=Place(source), got=f"more than {MAX_CHARACTERS:,} characters")
    places: dict[str, Place] = {}
    visited: set[int] = set()  # sections: aliases may repeat them

    def add_places(node: yaml.Node | None, prefix: str = "") -> None:
        if not isinstance(node, yaml.MappingNode) or id(node) in visited:
            return
        visited.add(id(node))
        for key_node, value_node in node.value:
            key, place = f"{prefix}{key_node.value}", Place(source, key_node.start_mark.line + 1)
            if key in places:
                raise ConfigError("duplicate_key", key=key, place=place, got=places[key].line)
            places[key] = place
            add_places(value_node, f"{key}.")

    problem, line = "a section contains itself, or sections are nested too deeply", None
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        add_places(node)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.reader.ReaderError as error:
        problem, line = error.reason, text.count("\n", 0, error.position) + 1
    except yaml.MarkedYAMLError as error:
        problem, line = str(error.problem), error.problem_mark.line + 1 if error.problem_mark else None
    except RecursionError:
        pass
    else:
        if not isinstance(data, dict):
            raise ConfigError("invalid_value", place=Place(source), got=data, allowed="a file of 'key: value' lines")
        return data, places | {"": Place(source)}
    raise ConfigError("invalid_yaml", place=Place(source, line), got=problem)


def read_value(text: str) -> Any:
    """Return the value of a YAML text, such as the value of an override. Raises ValueError."""
    try:
        return yaml.load(text, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, RecursionError):
        raise ValueError(text) from None
