"""Read YAML safely: plain values only, the line of every key, and every problem as ConfigError."""

from __future__ import annotations

import re
from typing import Any

import yaml

from nvae.config.errors import ConfigError, Place

MAX_CHARACTERS = 100_000  # of a file; the largest real config has about 5,000
MAX_NUMBER = 100  # characters of a number
MAX_EXACT = 2**53  # below, a float is exact
MAX_MERGED = 200  # entries of a section that merges others (`<<`)


class _Loader(yaml.SafeLoader):
    """A safe YAML loader whose plain words are null, booleans, the numbers of YAML 1.2, and else texts.

    PyYAML itself has YAML 1.1: 064 is octal, 1:30 is 90, 1e-2 is a text, and 2024-01-01 is a date. Booleans (yes, on)
    and 1_000 are as in YAML 1.1, which earlier files may have.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 (of the base class)
        first: [(tag, words) for tag, words in pairs if tag.rpartition(":")[2] in ("bool", "merge", "null")]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

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


_DIGITS = "[0-9]+(?:_[0-9]+)*"
_NUMBER = rf"(?:{_DIGITS}(?:\.(?:{_DIGITS})?)?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?"
_BASED = "0x[0-9a-fA-F]+|0o[0-7]+|0b[01]+"
_NOT_FINITE = r"\.(?:inf|Inf|INF|nan|NaN|NAN)"
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(rf"^[-+]?(?:{_NUMBER}|{_BASED}|{_NOT_FINITE})$"), list("-+.0123456789")
)


def _number(loader: _Loader, node: yaml.ScalarNode) -> int | float:
    """Return the number of a node, an int where the number is whole: `epochs: 1e2` is 100."""
    text = loader.construct_scalar(node)
    if re.fullmatch(rf"[-+]?(?:{_BASED})", text):
        return int(text, 0)
    if re.fullmatch(rf"[-+]?{_DIGITS}", text):
        return int(text)
    value = float(re.sub(rf"{_NOT_FINITE}$", lambda match: match[0][1:], text))
    return int(value) if value.is_integer() and abs(value) < MAX_EXACT else value


for _tag in ("int", "float"):
    _Loader.add_constructor(f"tag:yaml.org,2002:{_tag}", _number)


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
            key = f"{prefix}{key_node.value}"
            is_plain = isinstance(value_node, yaml.ScalarNode) and value_node.style is None
            text = value_node.value if is_plain and value_node.tag != "tag:yaml.org,2002:null" else None
            place = Place(source, key_node.start_mark.line + 1, text)
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
