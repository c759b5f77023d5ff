"""The value `auto`: keys that take their values from the facts about the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvae.config.errors import ConfigError, Place, place_of
from nvae.schema import AUTO, NAMED_DATASETS, NamedDataset

# What `auto` stands for with data sets that have no facts: faces drawn at any size, and images of the user.
TOY_FACES = NamedDataset("cartoon faces", 3, 32, 0, 0, 0, "", "")
OWN_IMAGES = NamedDataset("images of a folder or file", 3, 64, 0, 0, 0, "", "")


def resolve_auto(data: dict[str, Any], places: Mapping[str, Place]) -> dict[str, Any]:
    """Return a config's dictionary with values in place of `auto`, in the keys of `schema.AUTO_KEYS`.

    The likelihood is bernoulli where the images are binarized, by `auto` or by the user, and else logistic_mixture.
    An unknown data set gets values too: validation reports its name. Raises ConfigError where a likelihood that the
    user has chosen does not suit the data set's binarization.
    """
    dataset = data.get("dataset")
    section = dataset if isinstance(dataset, dict) else {}
    name, method = section.get("name", "folder"), data.get("sampling_method", AUTO)
    facts = facts_of(name)
    binarize = facts.binarize if section.get("binarize") == AUTO else section.get("binarize", False)
    if section.get("binarize") == AUTO and binarize and method not in (AUTO, "bernoulli"):
        place = place_of("dataset.binarize", places)
        allowed = f"False with sampling_method {method}, because {AUTO} is True for {name}"
        raise ConfigError("invalid_value", key="dataset.binarize", place=place, got=AUTO, allowed=allowed)
    values = {
        "input_dimension": facts.size,
        "image_channels": facts.channels,
        "pixel_bits": facts.pixel_bits,
        "sampling_method": "bernoulli" if binarize is True else "logistic_mixture",
        "dataset.binarize": binarize,
        "dataset.horizontal_flip": facts.horizontal_flip,
    }

    def resolved(part: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        return {key: values.get(f"{prefix}{key}", AUTO) if value == AUTO else value for key, value in part.items()}

    return resolved(data) | ({"dataset": resolved(section, "dataset.")} if section else {})


def facts_of(name: Any) -> NamedDataset:
    """Return the facts that `auto` stands for with a data set of this name."""
    if name == "toy_faces":
        return TOY_FACES
    return NAMED_DATASETS.get(name, OWN_IMAGES) if isinstance(name, str) else OWN_IMAGES
