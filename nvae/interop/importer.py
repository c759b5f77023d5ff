"""Import checkpoints of other projects without running any code that a file may contain."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from nvae.interop import mgp123, nvlabs, vdvae
from nvae.interop.key_mapping import InteropError, KeyMap, load_with_key_map
from nvae.interop.objects import OBJECTS
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.system.errors import Remedy
from nvae.system.torch_files import check_values, explained_reading, unpickled


class Project(Protocol):
    """A module for the checkpoints of one project. A new project is one such module and one entry in PROJECTS."""

    NAME: str
    FAMILY: str  # of the networks

    def matches(self, state: Mapping[str, Tensor]) -> bool:
        """Return whether the weights have the names of this project."""

    def config_of(
        self, content: Mapping[str, Any], state: Mapping[str, Tensor], source: str
    ) -> tuple[ModelConfig, list[str]]:
        """Return the config of a checkpoint, and warnings about assumptions and losses. Raises UserError."""

    def weights_of(self, state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Return the weights that our network has, in our shapes, under the project's names."""

    def key_map(self, model: Any) -> KeyMap:
        """Return the project's name of every tensor of our network."""


PROJECTS: tuple[Project, ...] = (nvlabs, mgp123, vdvae)

# What all names begin with if the network was saved inside of DataParallel, torch.compile, or another module.
_WRAPPERS = re.compile(r"((module|_orig_mod|model)\.)*")
_EXPECTED = "expected a checkpoint of " + " or of ".join(project.NAME for project in PROJECTS)


class Imported(NamedTuple):
    """A model in eval mode, the name of the project it comes from, and warnings for the user."""

    model: HierarchicalVAE
    origin: str
    warnings: list[str]


def import_checkpoint(path: str | Path, config: ModelConfig | None = None) -> Imported:
    """Import a checkpoint of one of the PROJECTS.

    config: the architecture, if the file does not describe it or describes it wrongly.
    Every tensor of the file must match one of the model, and the other way round. Only tensors, plain values and the
    OBJECTS are unpickled. Raises UserError.
    """
    source, path = str(path), Path(path)
    with explained_reading(path, _EXPECTED):
        content = unpickled(path, _EXPECTED, others=OBJECTS, before_zip=True)
        state = content.get("state_dict", content)  # or a file of the weights alone; stays in the mapped file
        check_values(state, path.stat().st_size)
    if not isinstance(state, dict) or not all(
        isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in state.items()
    ):
        raise InteropError(f"{source}: the weights are missing or are no dictionary of named tensors, {_EXPECTED}.")
    wrappers = _WRAPPERS.match(os.path.commonprefix([*state]))
    state = {name[wrappers.end() if wrappers else 0 :]: tensor for name, tensor in state.items()}
    project = next((project for project in PROJECTS if project.matches(state)), None)
    if project is None:
        raise InteropError(f"{source}: got the weights of an unknown network, {_EXPECTED}.")
    warnings: list[str] = []
    if config is None:
        config, warnings = project.config_of(content, state, source)
    if config.family != project.FAMILY:
        raise InteropError(
            f"{source} is of {project.NAME}: got a config of family {config.family}, expected {project.FAMILY}.",
            Remedy.MODEL_CONFIG,
        )
    config = config.with_default("likelihood_tails", "original")  # as in all PROJECTS
    model = load_with_key_map(config, project.weights_of(state), project.key_map, source)
    return Imported(model, project.NAME, warnings)
