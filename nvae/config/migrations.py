"""Translate files that earlier versions wrote: renamed config keys and values, renamed weights.

A renamed key stays readable in all later versions, in YAML files and in checkpoints, for every family.
`checkpoint.VERSION` counts the changes. The default of a new key is the behavior of before the key existed, so that a
resolved config without the key keeps its meaning; a default that changes gets a line in `EARLIER_DEFAULTS`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

RENAMED_KEYS = {
    "weight_normalisation": "weight_normalization",
    "spectral_normalisation": "spectral_normalization",
    "normalise_cells": "normalize_cells",
    "halving_skip": "downsample_skip",
    "doubling_skip_bias": "upsample_skip_bias",
    "postprocess_doubling": "postprocess_upsample",
    "temperature_on_floor": "temperature_scales_min_sigma",
}
# The keys of version 1's data sets. Its section `dataset` had all of these keys, whatever the name; only such a section
# does. A key may belong to more data sets today, with another meaning.
OLD_DATASETS = {
    "folder": {"path", "validation_fraction"},
    "mnist": {"path"},
    "fashion_mnist": {"path"},
    "cifar10": {"path"},
    "toy_faces": {"training_images", "validation_images"},
}
OLD_DATASET_KEYS = set().union(*OLD_DATASETS.values())
# Defaults that have changed, and the earlier values: those of a resolved config without the key.
EARLIER_DEFAULTS = {"likelihood_tails": "original"}
RENAMED_MODULES = {"gate": "se", "spread": "depthwise"}  # parts of the name of a weight


def migrate_keys(data: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary by keys of a config with their present names.

    An old key beside its new name stays, so that validation reports an unknown key.
    """
    return {key if RENAMED_KEYS.get(key) in data else RENAMED_KEYS.get(key, key): value for key, value in data.items()}


def migrate_config(data: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a config's dictionary with the present keys and values; keys of other data sets are removed."""
    migrated = migrate_keys(data)
    if migrated.get("pixel_range") == "centred":
        migrated["pixel_range"] = "centered"
    dataset = migrated.get("dataset")
    if isinstance(dataset, dict) and dataset.keys() >= OLD_DATASET_KEYS:
        others = OLD_DATASET_KEYS - OLD_DATASETS.get(str(dataset.get("name", "folder")), OLD_DATASET_KEYS)
        migrated["dataset"] = {key: value for key, value in dataset.items() if key not in others}
    return migrated


def migrate_weights(weights: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a state dictionary of version 1 with the present names."""
    return {_with_parts(name, RENAMED_MODULES) if isinstance(name, str) else name: t for name, t in weights.items()}


def version1_weight_name(name: str) -> str:
    """Return the name of a weight in version 1. Digests are over these names, so that old digests stay valid."""
    return _with_parts(name, {new: old for old, new in RENAMED_MODULES.items()})


def _with_parts(name: str, renamed: Mapping[str, str]) -> str:
    """Rename the parts of a dotted name."""
    return ".".join(renamed.get(part, part) for part in name.split("."))


def migrate_content(content: dict[str, Any]) -> dict[str, Any]:
    """Return the content of a file in the present format: weight names, metadata, state of regularizers."""
    content = {"metadata": {}} | content
    if content["version"] > 1:
        return content
    kl = content.pop("kl_per_group", None)
    content |= {"weights": migrate_weights(content["weights"]), "metadata": {} if kl is None else {"kl_per_group": kl}}
    if "training" in content:
        content["training"] = _migrate_training(content["training"])
    return content


def _migrate_training(training: dict[str, Any]) -> dict[str, Any]:
    migrated = {key: value for key, value in training.items() if key not in ("spectral", "position", "averages")}
    spectral, position = training.get("spectral"), training.get("position")
    if isinstance(spectral, Mapping):
        migrated["regularizers"] = {f"spectral.{name}": tensor for name, tensor in spectral.items()}
    if isinstance(position, dict):
        migrated["progress"] = position | {"skipped_steps": 0}
    # The file has other metrics, so the next line of metrics is the mean of the steps after the file.
    migrated["running_mean"] = {"images": 0, "means": {}, "maxima": {}}
    return migrated
