"""The value `auto`: keys that take their values from the facts about the data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nvae.schema import AUTO, NAMED_DATASETS, NamedDataset

# What `auto` stands for with data sets that have no facts: faces drawn at any size, and images of the user.
TOY_FACES = NamedDataset("cartoon faces", 3, 32)
OWN_IMAGES = NamedDataset("images of a folder or file", 3, 64)


def resolve_auto(data: dict[str, Any]) -> dict[str, Any]:
    """Return a config's dictionary with values in place of `auto`, in the keys of `schema.AUTO_KEYS`.

    The likelihood is bernoulli where the images are binarized, by `auto` or by the user, and else logistic_mixture.
    An unknown data set gets values too: validation reports its name.
    """
    dataset = data.get("dataset")
    section = dataset if isinstance(dataset, dict) else {}
    facts = facts_of(section.get("name", "folder"))
    binarize = facts.binarize if section.get("binarize") == AUTO else section.get("binarize", False)
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
    return TOY_FACES if name == "toy_faces" else NAMED_DATASETS.get(str(name), OWN_IMAGES)
