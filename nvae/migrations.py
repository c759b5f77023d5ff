"""Translate files that earlier versions wrote: renamed config keys and values, new keys, renamed weights.

A renamed key stays readable for ever, in a YAML file as in a checkpoint, for every family. `checkpoint.VERSION` counts
the changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvae.schema import DATASETS, dataset_class

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
# Keys that appeared after version 1, and what the program did before: the value for a resolved config without the key.
NEW_KEYS: dict[str, Any] = {
    "dataset.max_image_pixels": 64_000_000,  # there was no limit; with one, a run of a file without the key resumes
    "training_parameters.optimizer": "adamax",
    "training_parameters.optimizer_epsilon": 1e-3,
    "training_parameters.optimizer_betas": [0.9, 0.999],
    "training_parameters.gradient_skip_threshold": None,
}
# Once the section `dataset` had the keys of all data sets; these are together in no other file.
OLD_DATASET_KEYS = {"path", "validation_fraction", "training_images", "validation_images"}
RENAMED_MODULES = {"gate": "se", "spread": "depthwise"}  # parts of the name of a weight


def migrate_key(key: str) -> str:
    """Today's name of a key."""
    return RENAMED_KEYS.get(key, key)


def migrate_config(data: Mapping[Any, Any]) -> dict[Any, Any]:
    """A config's dictionary with today's keys and values, of a data set only its own keys.

    A renamed key beside its new name is left as it is: an unknown key.
    """
    migrated = {}
    for key, value in data.items():
        if migrate_key(key) not in data:
            key = migrate_key(key)
        migrated[key] = RENAMED_VALUES.get((key, value), value) if isinstance(value, str) else value
    dataset = migrated.get("dataset")
    if isinstance(dataset, dict) and dataset.keys() >= OLD_DATASET_KEYS and (own := dataset_class(dataset)):
        others = {key for section in DATASETS.values() for key in section.model_fields} - set(own.model_fields)
        migrated["dataset"] = {key: value for key, value in dataset.items() if key not in others}
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
    if isinstance(training, dict) and isinstance(training.get("spectral"), Mapping):
        rest = {key: value for key, value in training.items() if key != "spectral"}
        vectors = {f"spectral.{name}": tensor for name, tensor in training["spectral"].items()}
        # With the scope cells_and_heads, version 1 also regularized skips: its vectors do not fit and start anew.
        content["training"] = rest | ({"regularizers": vectors} if _spectral_scope(content) == "all" else {})
    return content


def _spectral_scope(content: Mapping[str, Any]) -> Any:
    config = content.get("config")
    schedule = config.get("training_parameters") if isinstance(config, Mapping) else None
    return schedule.get("spectral_scope") if isinstance(schedule, Mapping) else None
