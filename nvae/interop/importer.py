"""Other projects' checkpoints as our models, without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import re
import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nvae.interop import mgp123, nvlabs
from nvae.interop.key_mapping import InteropError, check_state_dict, load_with_key_map
from nvae.models.hierarchy import HierarchicalVAE
from nvae.models.nvae.config import NVAEConfig, groups_per_scale

WANTED = "import reads checkpoints of the original NVAE (checkpoint.pt) and of the seed project (*.checkpoint)"


# What unpickling makes of files that are cut off, or are something else.
_DAMAGE = (RuntimeError, EOFError, ValueError, LookupError, OSError, AttributeError, TypeError, struct.error)


class Imported(NamedTuple):
    """A model in eval mode, where it comes from, and what a person should know about it."""

    model: HierarchicalVAE
    origin: str
    notices: list[str]


def import_checkpoint(path: str | Path, config: NVAEConfig | None = None) -> Imported:
    """The model in a checkpoint of the original NVAE or of the seed project.

    config: what the model is, where the file does not say it, or says it wrong.
    Every weight must find its place and every place its weight. Only tensors, plain values and the one class in which
    the original keeps its settings are ever unpickled. Raises UserError.
    """
    source, content = str(path), _read(Path(path))
    state = check_state_dict(content.get("state_dict"), source)
    if any(name.startswith("mixer.encoder_sampler.") for name in state):
        origin, notices = "the seed project (mgp123)", []
        if config is None:
            config, notices = mgp123.config_of(state, str(content.get("model_arch", "")), source)
        return Imported(load_with_key_map(config, state, mgp123.key_map, source), origin, notices)
    held = len({name.split(".")[1] for name in state if name.startswith("enc_sampler.")})
    if held == 0:
        raise InteropError(f"{source} holds the weights of another kind of network; {WANTED}.")
    notices = []
    if config is None:
        config, notices = nvlabs.config_of(_settings(content, source), source)
    groups = groups_per_scale(config)
    if sum(groups) != held:
        raise InteropError(
            f"{source} holds {held} latent groups, but its settings, or --config, describe {sum(groups)}: "
            f"{', '.join(map(str, groups))}, finest scale first."
        )
    model = load_with_key_map(config, nvlabs.weights_of(state, config), nvlabs.key_map, source)
    return Imported(model, "the original NVAE (nvlabs)", notices)


def _settings(content: dict[str, Any], source: str) -> dict[str, Any]:
    settings = content.get("args")
    if isinstance(settings, argparse.Namespace):
        return vars(settings)
    if isinstance(settings, dict):
        return settings
    raise InteropError(f"{source} holds no settings ('args'); give its architecture with --config.")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise InteropError(f"there is no file '{path}'.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise InteropError(f"{path} is damaged or is not a checkpoint; {WANTED}.") from error
        raise InteropError(
            f"{path} holds an object of {found[1]}, which could run code; only tensors, plain values and the "
            "original's settings are read, and nothing was loaded."
        ) from error
    except _DAMAGE as error:
        raise InteropError(f"{path} is damaged or is not a checkpoint ({error}); {WANTED}.") from error
    if not isinstance(content, dict):
        raise InteropError(f"{path} holds no checkpoint; {WANTED}.")
    return content
