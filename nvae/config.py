"""Find, read, override and validate the YAML file of a model.

One YAML file says everything about a model: architecture, data and training schedule. `family` selects the class that
validates it. Whatever is wrong with a file is said in one sentence, with file, line and key, before anything is built
(`ConfigError`).
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from nvae.errors import UserError
from nvae.models.families import config_class
from nvae.models.nvae.config import TOWER_KEYS, NVAEConfig, _same_towers
from nvae.schema import WARMUPS, ModelConfig

CONFIG_FOLDER = "model_configs"


class ConfigError(UserError):
    """A config that cannot be read or does not describe a model."""


# ---------------------------------------------------------------------------------------------------- reading


def available_configs() -> list[str]:
    """Names of the YAML files in `model_configs/`, of the working directory and of the project."""
    return sorted({file.stem for folder in _config_folders() for file in folder.glob("*.yaml")})


def config_path(name: str | Path) -> Path:
    """The YAML file of a config given by name or by path. Raises ConfigError with the nearest names."""
    as_path = Path(name)
    if as_path.suffix in (".yaml", ".yml") and as_path.is_file():
        return as_path
    for folder in _config_folders():
        if (file := folder / f"{name}.yaml").is_file():
            return file
    names = available_configs()
    nearest = difflib.get_close_matches(as_path.stem, names, n=3, cutoff=0.5) or names
    raise ConfigError(
        f"there is no config '{name}': neither a YAML file nor a name in {CONFIG_FOLDER}/; "
        f"did you mean {' or '.join(nearest) if nearest else 'to run this in the folder that holds ' + CONFIG_FOLDER}?"
    )


def load_config(name: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> ModelConfig:
    """Read and validate a config.

    name: the name of a file in `model_configs/` or the path of a YAML file.
    overrides: `key=value` texts, the key dotted (`training_parameters.epochs=3`), the value YAML.
    Raises ConfigError.
    """
    path = config_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read as a text file: {error}.") from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: list[str] | tuple[str, ...] = (), source: str = "the config") -> ModelConfig:
    """Validate the text of a YAML file; `source` names it in messages. Raises ConfigError."""
    data, lines = _read_yaml(text, source)
    places = {key: f"{source}, line {line}" for key, line in lines.items()}
    for override in overrides:
        key, value = _parse_override(override)
        _set(data, key, value, override)
        places = {k: place for k, place in places.items() if not k.startswith(f"{key}.")}
        places[key] = f"--set {override}"
        for parent in _parents(key):
            places.setdefault(parent, f"--set {override}")
    try:
        return config_class(data).model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, places, source)) from None


def config_from_dict(data: dict[str, Any], source: str) -> ModelConfig:
    """A config from the plain dictionary that a checkpoint carries. Raises ConfigError."""
    try:
        return config_class(data).model_validate(data)
    except ValidationError as error:
        raise ConfigError(_explain(error, {}, source)) from None


def config_to_yaml(config: ModelConfig) -> str:
    """The resolved config as YAML, every default spelled out; it loads as the same config."""
    return yaml.safe_dump(config.model_dump(), sort_keys=False)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionary to dotted keys: {'dataset': {'name': 'folder'}} becomes {'dataset.name': 'folder'}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


# ---------------------------------------------------------------------------------------------------- details


def _config_folders() -> list[Path]:
    here, project = Path(CONFIG_FOLDER), Path(__file__).resolve().parent.parent / CONFIG_FOLDER
    return [here] if here.resolve() == project else [here, project]


class _Loader(yaml.SafeLoader):
    """Safe YAML that also reads 1e-2 as a number (YAML 1.2), which PyYAML takes for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
)


def _read_yaml(text: str, source: str) -> tuple[dict[str, Any], dict[str, int]]:
    """The file's dictionary, and the line of every key."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        lines = _key_lines(node, source)
        data = loader.construct_document(node) if node is not None else {}
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{source}, line {mark.line + 1}" if mark else source
        problem = getattr(error, "problem", None) or "it has a character that YAML does not allow"
        raise ConfigError(f"{place}: this is not valid YAML ({problem}); compare it with model_configs/.") from None
    except RecursionError:
        raise ConfigError(f"{source}: a section of this file contains itself, or is nested too deeply.") from None
    except ValueError as error:  # a date or a number that only looks like one
        raise ConfigError(f"{source}: one of the values of this file cannot be read ({error}).") from None
    if not isinstance(data, dict):
        raise ConfigError(f"{source}: a config is a list of 'key: value' lines, but this file holds {_show(data)}.")
    return data, lines


def _key_lines(node: yaml.Node | None, source: str, prefix: str = "") -> dict[str, int]:
    lines: dict[str, int] = {}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            key, line = f"{prefix}{key_node.value}", key_node.start_mark.line + 1
            if key in lines:
                raise ConfigError(f"{source}, line {line}: {key} stands here a second time; keep one of the two.")
            lines[key] = line
            lines |= _key_lines(value_node, source, f"{key}.")
    return lines


def _parse_override(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override}: write it as key=value, such as training_parameters.epochs=3.")
    try:
        return key.strip(), yaml.load(value, _Loader)  # noqa: S506 (a SafeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        raise ConfigError(f"--set {override}: the value after '=' is not valid YAML.") from None


def _set(data: dict[str, Any], key: str, value: Any, override: str) -> None:
    *parents, last = key.split(".")
    section = data
    for depth, parent in enumerate(parents):
        below = section[parent] = {} if section.get(parent) is None else section[parent]
        if parent in TOWER_KEYS:
            below = section[parent] = _same_towers(below)
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a single value.")
        section = below
    section[last] = value
    if last in WARMUPS:  # the newest way counts
        for other in set(WARMUPS) - {last}:
            section.pop(other, None)


def _parents(key: str) -> list[str]:
    """Of `a.b.c`: `a.b` and `a`."""
    parts = key.split(".")
    return [".".join(parts[:depth]) for depth in range(len(parts) - 1, 0, -1)]


_ALLOWED = {
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "True or False",
    "string_type": "a text",
    "finite_number": "a finite number",
    "greater_than": "more than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
    "literal_error": "{expected}",
    "model_type": "a list of 'key: value' lines",
    "model_attributes_type": "a list of 'key: value' lines",
    "dict_type": "a list of 'key: value' lines",
}


def _explain(error: ValidationError, places: dict[str, str], source: str) -> str:
    """One sentence for the first problem: where, which key, what was found, what is allowed."""
    problems = error.errors()
    problem = problems[0]
    key = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "value_error":  # from Config._possible: key|found|allowed
        key, found, allowed = str(problem["ctx"]["error"]).split("|")
        sentence = f"{key} {found}; allowed: {allowed}"
    elif problem["type"] == "extra_forbidden":
        *section, last = (str(part) for part in problem["loc"])
        known = _known_keys(section)
        nearest = difflib.get_close_matches(last, known, n=1, cutoff=0.6)
        hint = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(known)}"
        sentence = f"{key} is not a key of a config; {hint}"
    elif problem["type"] == "missing":
        sentence = f"the key {key} is missing; every config must say it"
    else:
        template = _ALLOWED.get(problem["type"])
        allowed = template.format(**problem.get("ctx", {})) if template else problem["msg"]
        if key in TOWER_KEYS:
            allowed = f"a whole number, or {allowed}"
        sentence = f"{key} is {_show(problem['input'])}; allowed: {allowed}"
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    return f"{_place(key, places, source)}: {sentence}{more}" + ("" if sentence.endswith("?") else ".")


def _place(key: str, places: dict[str, str], source: str) -> str:
    while key and key not in places:
        key = key.rpartition(".")[0]
    return places.get(key, source)


def _known_keys(section: Sequence[str]) -> list[str]:
    model: type[BaseModel] = NVAEConfig
    for part in section:
        annotation = model.model_fields[part].annotation
        model = next(t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel))
    return list(model.model_fields)


def _show(value: Any) -> str:
    if value is None:
        return "empty"
    if isinstance(value, str):
        return f"the text '{value}'"
    if isinstance(value, dict | list):
        return f"a {'section' if isinstance(value, dict) else 'list'}"
    return str(value)
