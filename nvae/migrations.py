"""Translate files that earlier versions wrote: renamed config keys and values, renamed weights.

A renamed key stays readable for ever, in a YAML file as in a checkpoint. `checkpoint.VERSION` counts the changes.
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
RENAMED_VALUES = {("pixel_range", "centred"): "centered"}
RENAMED_MODULES = {"gate": "se", "spread": "depthwise"}  # parts of the name of a weight


def migrate_config(data: Any) -> Any:
    """A config's dictionary with today's keys and values; whatever is no dictionary is returned as it is."""
    if not isinstance(data, dict):
        return data
    migrated = {}
    for key, value in data.items():
        key = RENAMED_KEYS.get(key, key) if RENAMED_KEYS.get(key) not in data else key
        hashable = isinstance(value, str)
        migrated[key] = RENAMED_VALUES.get((key, value), value) if hashable else value
    return migrated


def migrate_weights(weights: Mapping[Any, Any]) -> dict[Any, Any]:
    """A state dictionary of version 1 with today's names."""

    def renamed(name: str) -> str:
        return ".".join(RENAMED_MODULES.get(part, part) for part in name.split("."))

    return {renamed(name) if isinstance(name, str) else name: tensor for name, tensor in weights.items()}


def migrate_content(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a file of version 1 as today's: names of weights, metadata apart, one state of regularizers."""
    content = dict(content)
    content["weights"] = migrate_weights(content["weights"])
    kl = content.pop("kl_per_group", None)
    content["metadata"] = {} if kl is None else {"kl_per_group": kl}
    training = content.get("training")
    if isinstance(training, dict):
        content["training"] = _migrate_training(training)
    return content


def _migrate_training(training: dict[str, Any]) -> dict[str, Any]:
    migrated = {key: value for key, value in training.items() if key not in ("spectral", "position", "averages")}
    spectral, position = training.get("spectral"), training.get("position")
    if isinstance(spectral, Mapping):
        migrated["regularizers"] = {f"spectral.{name}": tensor for name, tensor in spectral.items()}
    if isinstance(position, dict):
        migrated["progress"] = position | {"skipped_steps": 0, "consecutive_skips": 0}
    # Of other metrics than today's; the next line of metrics is the mean of the steps after the file.
    migrated["running_mean"] = {"images": 0, "means": {}, "maxima": {}}
    return migrated
