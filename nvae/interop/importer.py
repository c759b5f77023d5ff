"""Import checkpoints of other projects without running any code that a file may contain."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from nvae.interop import mgp123, nvlabs
from nvae.interop.key_mapping import InteropError, KeyMap, check_state_dict, load_with_key_map
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.config import NVAEConfig, groups_per_scale
from nvae.system.errors import Remedy
from nvae.system.torch_files import check_records


class Project(Protocol):
    """A module for the checkpoints of one project. A new project is one such module and one entry in PROJECTS."""

    NAME: str

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the weights have the names of this project."""

    def latent_groups(self, state: Mapping[str, Tensor]) -> int:
        """Count the latent groups whose weights are there."""

    def config_of(
        self, content: Mapping[str, Any], state: Mapping[str, Tensor], source: str
    ) -> tuple[NVAEConfig, list[str]]:
        """Return the config of a checkpoint, and warnings about assumptions and losses. Raises UserError."""

    def weights_of(self, state: Mapping[str, Tensor], config: NVAEConfig) -> Mapping[str, Tensor]:
        """Return the weights that our network has, in our shapes, under the project's names."""

    def key_map(self, model: HierarchicalVAE) -> KeyMap:
        """Return the project's name of every tensor of our network."""


PROJECTS: tuple[Project, ...] = (nvlabs, mgp123)

_EXPECTED = "expected a checkpoint of " + " or of ".join(project.NAME for project in PROJECTS)
# What torch.load raises for damaged files and for files of another format. RecursionError is a RuntimeError.
_READ_ERRORS = (
    *(RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError, AssertionError),
    *(OverflowError, MemoryError, struct.error, zlib.error, zipfile.BadZipFile),
)


class Imported(NamedTuple):
    """A model in eval mode, the name of the project it comes from, and warnings for the user."""

    model: HierarchicalVAE
    origin: str
    warnings: list[str]


def import_checkpoint(path: str | Path, config: NVAEConfig | None = None) -> Imported:
    """Import a checkpoint of the original NVAE or of the seed project.

    config: the architecture, if the file does not describe it or describes it wrongly.
    Every tensor of the file must match one of the model, and the other way round. Only tensors, plain values and the
    class that holds the original's settings are unpickled. Raises UserError.
    """
    source, content = str(path), _read(Path(path))
    state = check_state_dict(content.get("state_dict"), source)
    project = next((project for project in PROJECTS if project.matches(state)), None)
    if project is None:
        raise InteropError(f"{source}: got the weights of an unknown network, {_EXPECTED}.")
    warnings: list[str] = []
    if config is None:
        config, warnings = project.config_of(content, state, source)
    if not isinstance(config, NVAEConfig):
        raise InteropError(f"{source} is an NVAE: got a config of family {config.family}.", Remedy.MODEL_CONFIG)
    groups, held = groups_per_scale(config), project.latent_groups(state)
    if sum(groups) != held:  # before a network of any size is built
        raise InteropError(
            f"{source} does not fit its config: got weights of {held} latent groups, expected {sum(groups)} "
            f"({', '.join(map(str, groups))}, finest scale first).",
            Remedy.MODEL_CONFIG,
        )
    model = load_with_key_map(config, project.weights_of(state, config), project.key_map, source)
    return Imported(model, project.NAME, warnings)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InteropError(f"{path} is not a file.")
    try:
        if is_zip := zipfile.is_zipfile(path):  # else the format before PyTorch 1.6
            with zipfile.ZipFile(path) as archive:
                check_records(archive)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe is None:
            raise InteropError(f"{path} is damaged or no checkpoint; {_EXPECTED}.") from error
        raise InteropError(
            f"{path} contains an object of {unsafe[1][:200]!r}, which could run code. Nothing was loaded; expected "
            "only tensors, plain values and argparse.Namespace."
        ) from error
    except _READ_ERRORS as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InteropError(f"{path} is damaged or no checkpoint ({reason}); {_EXPECTED}.") from error
    if not isinstance(content, dict):
        raise InteropError(f"{path}: got {type(content).__name__}, {_EXPECTED}.")
    return content
