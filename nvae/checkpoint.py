"""Save and load checkpoints and models: complete in one file, safe to load, written atomically.

Both kinds are dictionaries of tensors and plain values that `torch.load(weights_only=True)` reads, so a file cannot run
code. Both hold the whole resolved config. A `.checkpoint` also has `training`: everything that a run needs to continue.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae.config import ConfigError, config_from_dict
from nvae.config.migrations import migrate_content, version1_weight_name
from nvae.models.families import build_model, build_with_weights
from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.files import previous_path, root_folder
from nvae.system.torch_files import (
    EXPECTED,
    CheckpointError,
    DamagedFileError,
    exists,
    read_whole,
    tensor_bytes,
    write_whole,
)

FORMAT = "deep hierarchical VAE"
VERSION = 2
FOLDER = Path("saved_weights")
# The parts of a file and their types. `metadata` is of version 2, `training` of checkpoints, `run` of trained models.
PARTS = {"version": int, "config": dict, "weights": dict, "metadata": dict, "training": dict, "run": str}
OPTIONAL = ("metadata", "training", "run")


def checkpoint_path(name: str, folder: str | Path | None = None) -> Path:
    """Return the path of a run's checkpoint, in saved_weights/ of `folder`, by default `root_folder()`."""
    return Path(folder or root_folder()) / FOLDER / f"{name}.checkpoint"


def model_path(name: str, folder: str | Path | None = None) -> Path:
    """Return the path of a run's result, in saved_weights/ of `folder`, by default `root_folder()`."""
    return Path(folder or root_folder()) / FOLDER / f"final_result_{name}.model"


def name_of_file(path: str | Path) -> str:
    """Return the name of a checkpoint or model file without .checkpoint or .model."""
    return re.sub(r"\.(checkpoint|model)(?=\.|$)", "", Path(path).name)


def save(
    model: HierarchicalVAE,
    path: str | Path,
    training: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
    run: str | None = None,
) -> None:
    """Write a `.model`, or with `training` a `.checkpoint`, atomically. Raises CheckpointError.

    training: the state of the run. metadata: facts about the model that are not weights, plain values such as
    kl_per_group. run: the name of the run that writes the file. A replaced file is kept as `<path>.previous`.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.model_dump(),
        "weights": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        "metadata": metadata or {},
    }
    optional = {"training": training, "run": run}
    write_whole(content | {key: part for key, part in optional.items() if part is not None}, Path(path))


def weights_digest(model: HierarchicalVAE) -> str:
    """Return 32 hexadecimal digits that identify a model's weights and running statistics, on any device."""
    digest = hashlib.blake2b(digest_size=16)
    named = {version1_weight_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def load_model(path: str | Path, device: torch.device | str = "cpu") -> HierarchicalVAE:
    """Load a `.model` or `.checkpoint` file as a model in eval mode without gradients. Raises CheckpointError."""
    return load_model_and_metadata(path, device)[0]


def load_model_and_metadata(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Load a model as `load_model` does, and the file's metadata. Raises CheckpointError.

    Warns of a checkpoint without a training step.
    """
    content = with_best_weights(load(path, mapped=True))
    progress = content.get("training", {}).get("progress")
    if isinstance(progress, dict) and progress.get("step") == progress.get("skipped_steps", 0):
        warnings.warn(f"{path} has 0 training steps: its weights are those that the training began with.", stacklevel=2)
    with torch.device("meta"):  # a small file whose config describes a large network takes no memory
        _check_content(build_model(content["config"]), content, path)
    return build_with_weights(content["config"], content["weights"]).to(device), content["metadata"]


def load(path: str | Path, mapped: bool = False) -> dict[str, Any]:
    """Return the content of a checkpoint or model file, with its tensors on the CPU; mapped: as in `read_whole`.

    version: of the program that wrote the file. config: a ModelConfig. weights: a state dictionary, whose names and
    shapes `restore` checks. metadata: plain values; kl_per_group if a run has measured it. training: of a checkpoint,
    the state of the run. run: the name of the run that wrote the file, where it is known.
    Raises CheckpointError; DamagedFileError for a damaged file.
    """
    content = migrate_content(_read(Path(path), mapped))
    try:
        content["config"] = config_from_dict(content["config"], str(path), resolved=True)
    except ConfigError as error:
        raise CheckpointError(f"{error} If a newer version wrote the file, update this program.") from error
    return content


def _read(path: Path, mapped: bool) -> dict[str, Any]:
    """Return the raw content of a file of this program, of any version."""
    if exists(path) and not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file"
        raise CheckpointError(f"'{path}' is {kind}: {EXPECTED}. {_advice(path, 'Name a file.')}")
    if not exists(path):
        files = [
            file
            for kind in ("*.checkpoint", "*.model")
            for file in sorted((root_folder() / FOLDER).glob(kind))
            if file.is_file()
        ]
        existing = f"Existing files: {', '.join(map(str, files))}." if files else "Train a model first."
        raise CheckpointError(f"there is no file '{path}'. {_advice(path, existing)}")
    try:
        content = read_whole(path, mapped)
    except DamagedFileError as error:
        advice = _advice(path, "Copy the file again from its source, or train again.")
        raise DamagedFileError(f"{error} {advice}") from error
    if content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program: {EXPECTED}.")
    needed = [key for key in PARTS if key in content or key not in OPTIONAL]
    if wrong := [key for key in needed if not isinstance(content.get(key), PARTS[key])]:
        raise CheckpointError(f"{path} lacks {' and '.join(wrong)}, or has another kind of value there: {EXPECTED}.")
    if not 1 <= content["version"] <= VERSION:
        raise CheckpointError(
            f"{path} was written by a newer version of this program: got version {content['version']}, expected 1 to "
            f"{VERSION}. Update this program."
        )
    return content


def _advice(path: Path, without_previous: str) -> str:
    if not path.name:  # such as "."
        return without_previous
    previous = previous_path(path)
    whole = f"Use {previous}, the file that was saved before, which is whole."
    return whole if is_whole(previous) else without_previous


def is_whole(path: str | Path) -> bool:
    """Return whether a file exists that `load` can read."""
    try:
        return os.path.isfile(path) and bool(load(path, mapped=True))
    except CheckpointError:
        return False


def with_best_weights(content: dict[str, Any]) -> dict[str, Any]:
    """Return `load`'s content with the best weights of a run with early stopping instead of the last ones."""
    best = content.get("training", {}).get("best")
    if not isinstance(best, dict) or not isinstance(best.get("weights"), dict):
        return content
    kl = {"kl_per_group": best["kl_per_group"]} if "kl_per_group" in best else {}
    return {**content, "weights": best["weights"], "metadata": content["metadata"] | kl}


def restore(model: HierarchicalVAE, content: dict[str, Any], source: str | Path) -> None:
    """Load the weights of `load`'s content into a model of the same config.

    source: the file, for messages. Raises CheckpointError for weights of another network and invalid metadata.
    """
    _check_content(model, content, source)
    model.load_state_dict(content["weights"])


def _check_content(model: HierarchicalVAE, content: dict[str, Any], source: str | Path) -> None:
    """Raise CheckpointError for weights of another network than the model and for invalid metadata."""
    _check_weights(model, content["weights"], source)
    kl = content["metadata"].get("kl_per_group", [0.0] * len(model.groups))
    is_list = isinstance(kl, list) and [type(nats) for nats in kl] == [float] * len(model.groups)
    if not is_list or not all(map(math.isfinite, kl)):
        raise CheckpointError(f"{source} has an invalid kl_per_group: expected one finite number per latent group.")


def _check_weights(model: HierarchicalVAE, weights: dict[Any, Any], source: str | Path) -> None:
    """Raise CheckpointError for missing or extra weights, or another shape."""
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    shapes = {name: tuple(part.shape) if isinstance(part, Tensor) else "no tensor" for name, part in weights.items()}
    for name in expected | shapes:
        got, allowed = shapes.get(name, "nothing"), expected.get(name, "nothing")
        if got != allowed:
            raise CheckpointError(
                f"{source} has weights that do not fit its config, so other code wrote the file: "
                f"{str(name)[:200]!r}: got {got}, expected {allowed}. Use the program that wrote the file."
            )
