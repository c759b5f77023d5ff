"""Save and load checkpoints and models: complete in one file, safe to load, written atomically.

Both kinds are dictionaries of tensors and plain values that `torch.load(weights_only=True)` reads, so a file cannot run
code. Both hold the whole resolved config. A `.checkpoint` also has `training`: everything that a run needs to continue.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nvae.config import ConfigError, config_from_dict
from nvae.config.migrations import migrate_content, version1_weight_name
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE
from nvae.system.files import previous_path
from nvae.system.torch_files import (
    EXPECTED,
    CheckpointError,
    DamagedFileError,
    ForeignFileError,
    read_whole,
    tensor_bytes,
    write_whole,
)

FORMAT = "deep hierarchical VAE"
VERSION = 2
FOLDER = Path("saved_weights")
ADVICE_WITHOUT_COPY = "Copy the file again from its source, or train again."


def checkpoint_path(name: str, folder: str | Path = ".") -> Path:
    """Return the path of a run's checkpoint, in saved_weights/ of `folder`."""
    return Path(folder) / FOLDER / f"{name}.checkpoint"


def model_path(name: str, folder: str | Path = ".") -> Path:
    """Return the path of a run's result, in saved_weights/ of `folder`."""
    return Path(folder) / FOLDER / f"final_result_{name}.model"


def plain_name(path: str | Path) -> str:
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
    if training is not None:
        content["training"] = training
    if run is not None:
        content["run"] = run
    write_whole(content, Path(path))


def weights_digest(model: HierarchicalVAE) -> str:
    """Return 32 hexadecimal digits that identify a model's weights and running statistics, on any device."""
    digest = hashlib.blake2b(digest_size=16)
    named = {version1_weight_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def load(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint or model file, with its tensors on the CPU. Raises CheckpointError.

    Keys: config (a ModelConfig), weights (a state dictionary), metadata (plain values; kl_per_group if a run has
    measured it), version (of the program that wrote the file), where it is known run (the name of the run that wrote
    the file) and, in a checkpoint, training. Raises DamagedFileError for a file that is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_missing(path))
    try:
        content = read_whole(path)
    except DamagedFileError as error:
        raise DamagedFileError(f"{error} {_use_previous(path) or ADVICE_WITHOUT_COPY}") from error
    if content.get("format") != FORMAT:
        raise ForeignFileError(f"{path} was written by another program: {EXPECTED}.")
    parts = {"version": int, "config": dict, "weights": dict}
    parts |= {key: kind for key, kind in (("training", dict), ("metadata", dict), ("run", str)) if key in content}
    wrong = [key for key, kind in parts.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path} lacks {' and '.join(wrong)}, or has another kind of value there: {EXPECTED}.")
    _check_weights(content["weights"], path)
    if isinstance(content["version"], bool) or content["version"] < 1:
        raise CheckpointError(f"{path} has the version {content['version']}: expected 1 to {VERSION}.")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path} was written by a newer version of this program. Update this program.")
    if content["version"] == 1:
        content = migrate_content(content)
    content.setdefault("metadata", {})
    try:
        content["config"] = config_from_dict(content["config"], str(path), resolved=True)
    except ConfigError as error:
        raise CheckpointError(f"{error} If a newer version wrote the file, update this program.") from error
    return content


def _check_weights(weights: dict[Any, Any], source: str | Path) -> None:
    for name, tensor in weights.items():
        if not isinstance(name, str) or not is_plain(tensor):
            raise CheckpointError(f"{source} has {name!r} among its weights: expected names with dense, real tensors.")


def is_plain(value: Any) -> bool:
    """Return whether a value is a dense tensor of real numbers in the CPU's memory."""
    is_dense = isinstance(value, torch.Tensor) and not value.is_nested and value.layout is torch.strided
    return is_dense and value.device.type == "cpu" and not value.is_complex() and not value.is_quantized


def is_whole(path: str | Path) -> bool:
    """Return whether a file exists that `load` can read."""
    try:
        return Path(path).is_file() and bool(load(path))
    except CheckpointError:
        return False


def _missing(path: Path) -> str:
    files = sorted(FOLDER.glob("*.checkpoint")) + sorted(FOLDER.glob("*.model"))
    advice = f"Existing files: {', '.join(map(str, files))}." if files else "Train a model first."
    return f"there is no file '{path}'. {_use_previous(path) or advice}"


def _use_previous(path: Path) -> str:
    previous = previous_path(path)
    return f"Use {previous}, the file that was saved before, which is whole." if is_whole(previous) else ""


def restore(model: HierarchicalVAE, content: dict[str, Any], source: str | Path) -> None:
    """Load the weights of `load`'s content into a model of the same config.

    source: the file, for messages. Raises CheckpointError for missing or extra weights, or another shape.
    """
    kl = content["metadata"].get("kl_per_group")
    if kl is not None and not (isinstance(kl, list) and len(kl) == len(model.groups) and all(map(_finite_number, kl))):
        raise CheckpointError(f"{source} has an invalid kl_per_group: expected one finite number per latent group.")
    _refuse_other_network(model, content["weights"], source)
    model.load_state_dict(content["weights"])


def _refuse_other_network(model: HierarchicalVAE, weights: dict[str, Tensor], source: str | Path) -> None:
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    shapes = {name: tensor.shape for name, tensor in weights.items()}
    if wrong := [name for name in expected | shapes if expected.get(name) != shapes.get(name)]:
        got, allowed = (
            "nothing" if shape is None else tuple(shape) for shape in (shapes.get(wrong[0]), expected.get(wrong[0]))
        )
        raise CheckpointError(
            f"{source} has weights that do not fit its config, so other code wrote the file: {wrong[0][:200]!r}: got "
            f"{got}, expected {allowed}. Use the program that wrote the file."
        )


def with_best_weights(content: dict[str, Any], source: str | Path) -> dict[str, Any]:
    """Return `load`'s content with the best weights of a run with early stopping instead of the last ones.

    source: the file, for messages. Raises CheckpointError.
    """
    best = content.get("training", {}).get("best")
    if not isinstance(best, dict) or not isinstance(best.get("weights"), dict):
        return content
    _check_weights(best["weights"], source)
    kl = {"kl_per_group": best["kl_per_group"]} if "kl_per_group" in best else {}
    return content | {"weights": best["weights"], "metadata": content["metadata"] | kl}


def _finite_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> HierarchicalVAE:
    """Load a `.model` or `.checkpoint` file as a model in eval mode without gradients. Raises CheckpointError."""
    return load_model_and_metadata(path, device)[0]


def load_model_and_metadata(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """Load a model as `load_model` does, and the file's metadata. Raises CheckpointError."""
    content = with_best_weights(load(path), path)
    with torch.device("meta"):  # a small file whose config describes a large network takes no memory
        _refuse_other_network(build_model(content["config"]), content["weights"], path)
    model = build_model(content["config"])
    restore(model, content, path)
    return model.to(device).eval().requires_grad_(False), content["metadata"]
