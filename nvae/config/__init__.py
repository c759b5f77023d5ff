"""Find, read, override and validate the YAML file of a model.

One YAML file defines a model completely: architecture, data and training schedule. `family` selects the class that
validates the file. Every mistake is a `ConfigError` with file, line and key, raised before a model is built.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from nvae.config.auto import resolve_auto
from nvae.config.errors import ConfigError, Place, config_error, nearest, place_of
from nvae.config.fields import SECTION, choices, locate, schema_of, takes_any_text, takes_null
from nvae.config.migrations import EARLIER_DEFAULTS, RENAMED_KEYS, migrate_config, migrate_keys
from nvae.config.yaml_file import read_value, read_yaml
from nvae.models.families import FAMILIES, config_class
from nvae.schema import SELECTING_KEYS, ModelConfig
from nvae.system.errors import InvalidValueError

CONFIG_FOLDER = "model_configs"
# The first key of a config that holds every key: a key that is missing there is newer than the file.
RESOLVED = "resolved"

# ---------------------------------------------------------------------------------------------------- finding


def available_configs() -> list[str]:
    """Return the names of the configs in `model_configs/` of the working directory and of the program."""
    return sorted({file.stem for folder in _config_folders() for file in folder.glob("*.yaml")})


def is_yaml(path: str | Path) -> bool:
    """Return whether a file name ends with .yaml or .yml."""
    return Path(path).suffix.lower() in (".yaml", ".yml")


def config_path(name: str | Path) -> Path:
    """Return the YAML file of a config given by name or by path. Raises ConfigError with the nearest name."""
    as_path = Path(name)
    for file in ([as_path] if is_yaml(as_path) else []) + [folder / f"{name}.yaml" for folder in _config_folders()]:
        if os.path.isfile(file):
            return file
    names = available_configs()
    suggestion = nearest(as_path.stem, names)
    raise ConfigError("unknown_config", got=str(name), allowed=", ".join(names), suggestion=suggestion)


def _config_folders() -> list[Path]:
    """Return the working directory's folder and the program's: in an installed package, or beside its source."""
    package = Path(__file__).resolve().parent.parent
    program = package / CONFIG_FOLDER if (package / CONFIG_FOLDER).is_dir() else package.parent / CONFIG_FOLDER
    here = Path(CONFIG_FOLDER)
    return [program] if here.resolve() == program else [here, program]


# ---------------------------------------------------------------------------------------------------- loading


def load_config(name: str | Path, overrides: Sequence[str] = ()) -> ModelConfig:
    """Read and validate a config.

    name: the name of a file in `model_configs/` or the path of a YAML file.
    overrides: `key=value` texts, the key dotted (`training_parameters.epochs=3`), the value YAML. A key for any text,
    such as dataset.path, takes the value as it is, without quotes; null means null where the key may be null.
    Raises ConfigError.
    """
    path = config_path(name)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("unreadable_file", place=Place(str(path)), got=error) from error
    return parse_config(text, overrides, source=str(path))


def parse_config(text: str, overrides: Sequence[str] = (), source: str = "the config") -> ModelConfig:
    """Validate the text of a YAML file; `source` names the text in messages. Raises ConfigError."""
    data, places = map(migrate_keys, read_yaml(text, source))
    parsed = [_parse_override(override) for override in overrides]
    for key, value, place in sorted(parsed, key=lambda override: override[0] not in SELECTING_KEYS):
        kept = {k: p for k, p in places.items() if not f"{k}.".startswith(f"{key}.")}
        places = {key.partition(".")[0]: place} | kept | {key: place}  # of the section too, where the file has none
        _override(data, key, value, places)
    return _validated(data, places)


def config_from_dict(data: Mapping[str, Any], source: str, resolved: bool = False) -> ModelConfig:
    """Return the config of a plain dictionary; `source` names the dictionary in messages. Raises ConfigError.

    resolved: the dictionary is the whole config of an existing model, as in a checkpoint. Keys that are newer than the
    dictionary then take their defaults, the behavior of before the key, and not those of a style.
    """
    return _validated(dict(data) | ({RESOLVED: True} if resolved else {}), {"": Place(source)})


def config_to_yaml(config: ModelConfig) -> str:
    """Return the resolved config as YAML, with every key and the mark `resolved`; the text loads as the same config."""
    return yaml.safe_dump({RESOLVED: True} | config.model_dump(), sort_keys=False)


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested dictionaries to dotted keys: {'dataset': {'name': 'folder'}} to {'dataset.name': 'folder'}."""
    result: dict[str, Any] = {}
    for key, value in data.items():
        result |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return result


# ------------------------------------------------------------------------------------------------- validation


def _validated(data: dict[str, Any], places: Mapping[str, Place]) -> ModelConfig:
    data = resolve_auto(migrate_config(data))
    if resolved := data.get(RESOLVED) is True:
        data = EARLIER_DEFAULTS | data
        del data[RESOLVED]
    model = _class_of(data, places)
    _restore_texts(data, model, places)
    try:
        return model.model_validate(data, context={"resolved": resolved})
    except ValidationError as error:
        raise config_error(error, model, places) from None


def _restore_texts(data: dict[str, Any], model: type[ModelConfig], places: Mapping[str, Place]) -> None:
    """Give every key for any text the text that was written, where YAML reads something else in it."""
    for key, place in places.items():
        *parents, name = key.split(".")
        section: Any = data
        for parent in parents:
            section = section.get(parent) if isinstance(section, dict) else None
        if place.text is None or not isinstance(section, dict) or section.get(name, place.text) == place.text:
            continue
        member = [section.get("name", "folder")] if parents == ["dataset"] else []
        schema = locate(schema_of(model), [*parents, *member, name]).schema
        if takes_any_text(schema):
            section[name] = None if place.text == "null" and takes_null(schema) else place.text


def _class_of(data: Mapping[str, Any], places: Mapping[str, Place]) -> type[ModelConfig]:
    try:
        return config_class(data)
    except InvalidValueError as error:
        raise ConfigError(
            "invalid_value",
            key=error.name,
            place=place_of(error.name, places),
            got=error.got,
            allowed=choices(FAMILIES),
            suggestion=nearest(error.got, FAMILIES),
        ) from None


def _parse_override(override: str) -> tuple[str, Any, Place]:
    """Return the key, the value, and the place for messages."""
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        allowed = "key=value, such as training_parameters.epochs=3"
        raise ConfigError("invalid_override", got=override, allowed=allowed)
    place, key = Place(f"override {override}", text=text), RENAMED_KEYS.get(key.strip(), key.strip())
    try:
        return key, read_value(text), place
    except ValueError:
        return key, text, place


def _override(data: dict[str, Any], key: str, value: Any, places: Mapping[str, Place]) -> None:
    """Set a dotted key in the dictionary of a file."""
    if key != "family":
        _class_of(data, places).prepare_override(data, key, value)
    *parents, last = key.split(".")
    section = data
    for depth, parent in enumerate(parents, 1):
        below = section.get(parent)
        if below is not None and not isinstance(below, dict):
            path = ".".join(parents[:depth])
            raise ConfigError("invalid_value", place=places[key], key=path, got=below, allowed=SECTION)
        section[parent] = dict(below or {})  # a copy: aliases may share the section
        section = section[parent]
    section[last] = value
