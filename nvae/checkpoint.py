"""Save and load checkpoints and models: complete in one file, safe to load, written atomically.

Both kinds are dictionaries of tensors and plain values that `torch.load(weights_only=True)` reads, so a file cannot run
code. Both hold the whole resolved config. A `.checkpoint` also has `training`: everything that a run needs to continue.
"""

from __future__ import annotations

import hashlib
import math
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from nvae.config import ConfigError, config_from_dict
from nvae.errors import UserError
from nvae.files import WriteError, atomic_write, previous_path
from nvae.migrations import migrate_content, version1_weight_name
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE

FORMAT = "deep hierarchical VAE"
VERSION = 2
FOLDER = Path("saved_weights")
ZIP_MAGIC = b"PK"  # torch.save writes zip files
EXPECTED = "expected a .checkpoint or .model file of this program"


class CheckpointError(UserError):
    """A checkpoint or model file that is missing, damaged, of another program, or cannot be written."""


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
) -> None:
    """Write a `.model`, or with `training` a `.checkpoint`, atomically. Raises CheckpointError.

    training: the state of the run. metadata: facts about the model that are not weights, plain values such as
    kl_per_group. A replaced file is kept as `<path>.previous`.
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
    write_whole(content, Path(path))


def weights_digest(model: HierarchicalVAE) -> str:
    """Return 32 hexadecimal digits that identify a model's weights and running statistics, on any device."""
    digest = hashlib.blake2b(digest_size=16)
    named = {version1_weight_name(name): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in sorted(named.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def write_whole(content: dict[str, Any], path: Path, keep_previous: bool = True) -> None:
    """Write `content` with `torch.save`, atomically. Raises CheckpointError."""
    try:
        with atomic_write(path, keep_previous) as temporary, open(temporary, "wb") as file:
            try:
                torch.save(content, file)
            except RuntimeError as error:  # torch's writer hides the OSError of a full disk
                hidden = error.__context__
                raise hidden if isinstance(hidden, OSError) else OSError(str(error).splitlines()[0]) from error
    except WriteError as error:
        kept = " The file saved before is unchanged." if path.exists() else ""
        raise CheckpointError(f"{error}{kept}") from error


def read_whole(path: Path) -> Any:
    """Read a file of `write_whole` and compare its checksums; raises almost anything for a damaged file."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        parts = {name.rpartition("/")[2] for name in archive.namelist()}
    if "data.pkl" not in parts or "constants.pkl" in parts:  # any other zip file, or TorchScript
        raise pickle.UnpicklingError("not a file of torch.save")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: str | Path) -> dict[str, Any]:
    """Return the content of a checkpoint or model file, with its tensors on the CPU. Raises CheckpointError.

    Keys: config (a ModelConfig), weights (a state dictionary), metadata (plain values; kl_per_group if a run has
    measured it), version (of the program that wrote the file) and, in a checkpoint, training.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_missing(path))
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise CheckpointError(f"{path} is not a checkpoint: {EXPECTED}.")
    try:
        content = read_whole(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was written by another program: got more than tensors and plain values, {EXPECTED}."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or was cut off. {_how_to_replace(path)}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program: {EXPECTED}.")
    parts = {"version": int, "config": dict, "weights": dict}
    parts |= {key: kind for key, kind in (("training", dict), ("metadata", dict)) if key in content}
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


def _missing(path: Path) -> str:
    files = sorted(FOLDER.glob("*.checkpoint")) + sorted(FOLDER.glob("*.model"))
    advice = f"Existing files: {', '.join(map(str, files))}." if files else "Train a model first."
    return f"there is no file '{path}'. {advice}"


def _how_to_replace(path: Path) -> str:
    previous = previous_path(path)
    if previous.is_file():
        return f"To use the file that was saved before, rename {previous} to {path.name}."
    return "Copy the file again from its source, or train again."


def restore(model: HierarchicalVAE, content: dict[str, Any], source: str | Path) -> None:
    """Load the weights of `load`'s content into a model of the same config.

    source: the file, for messages. Raises CheckpointError for missing or extra weights, or another shape.
    """
    kl = content["metadata"].get("kl_per_group")
    if kl is not None and not (isinstance(kl, list) and len(kl) == len(model.groups) and all(map(_finite_number, kl))):
        raise CheckpointError(f"{source} has an invalid kl_per_group: expected one finite number per latent group.")
    try:
        model.load_state_dict(content["weights"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} has weights that do not fit its config, so other code wrote the file: "
            f"{str(error).splitlines()[1].strip()[:200]}"
        ) from error


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
    model = build_model(content["config"])
    restore(model, content, path)
    return model.to(device).eval().requires_grad_(False), content["metadata"]
