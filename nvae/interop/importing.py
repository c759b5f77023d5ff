"""Other projects' checkpoints as our models, without running anything that is in them."""

from __future__ import annotations

import argparse
import pickle
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch

from nvae.config import Config
from nvae.interop import mgp123, nvlabs
from nvae.interop.places import ImportingError, fill
from nvae.model.build import build_model
from nvae.model.hierarchy import HierarchicalVAE

WANTED = "import reads checkpoints of the original NVAE (checkpoint.pt) and of the seed project (*.checkpoint)"


class Imported(NamedTuple):
    """A model in eval mode, where it comes from, and what a person should know about it."""

    model: HierarchicalVAE
    origin: str
    notices: list[str]


def import_checkpoint(path: str | Path, config: Config | None = None) -> Imported:
    """The model in a checkpoint of the original NVAE or of the seed project.

    config: what the model is, where the file does not say it, or says it wrong.
    Every weight must find its place and every place its weight. Only tensors, plain values and the one class in which
    the original keeps its settings are ever unpickled. Raises UserError.
    """
    source, content = str(path), _read(Path(path))
    state = content.get("state_dict")
    if not isinstance(state, dict) or not state:
        raise ImportingError(f"{source} holds no 'state_dict' of weights; {WANTED}.")
    if "decoder_constant" in state or "initial_transform.weight_v" in state:
        origin, notices = "the seed project (mgp123)", []
        if config is None:
            config, notices = mgp123.config_of(state, str(content.get("model_arch", "")), source)
        model = build_model(config)
        fill(model, state, mgp123.names_in(model), source)
        return Imported(model.eval().requires_grad_(False), origin, notices)
    if not any(name.startswith("enc_sampler.") for name in state):
        raise ImportingError(f"{source} holds the weights of another kind of network; {WANTED}.")
    if config is None:
        config = nvlabs.config_of(_settings(content, source), source)
    model = build_model(config)
    fill(model, nvlabs.weights_of(state, config), nvlabs.names_in(model), source)
    return Imported(model.eval().requires_grad_(False), "the original NVAE (nvlabs)", [])


def _settings(content: dict[str, Any], source: str) -> dict[str, Any]:
    settings = content.get("args")
    if isinstance(settings, argparse.Namespace):
        return vars(settings)
    if isinstance(settings, dict):
        return settings
    raise ImportingError(f"{source} holds no settings ('args'); give its architecture with --config.")


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ImportingError(f"there is no file '{path}'.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found is None:
            raise ImportingError(f"{path} is damaged or is not a checkpoint; {WANTED}.") from error
        raise ImportingError(
            f"{path} holds an object of {found[1]}, which could run code; only tensors, plain values and the "
            "original's settings are read, and nothing was loaded."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, AttributeError, TypeError, IndexError) as error:
        raise ImportingError(f"{path} is damaged or is not a checkpoint ({error}); {WANTED}.") from error
    if not isinstance(content, dict):
        raise ImportingError(f"{path} holds no checkpoint; {WANTED}.")
    return content
