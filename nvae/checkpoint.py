"""Checkpoints and models on disk: self-contained, safe to load, never half written.

Both kinds are dictionaries of tensors and plain values that `torch.load(weights_only=True)` reads, so nothing in them
can run code. Both carry the whole resolved config. A `.checkpoint` also has `training`, all that a run needs to go on.
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
from nvae.migrations import migrate_content
from nvae.models.families import build_model
from nvae.models.hierarchy import HierarchicalVAE

FORMAT = "deep hierarchical VAE"
VERSION = 2
FOLDER = Path("saved_weights")
ZIP_MAGIC = b"PK"  # torch.save writes zip files
WANTED = "give a .checkpoint or .model file that this program wrote"


class CheckpointError(UserError):
    """A file that is not one of ours, is damaged, or cannot be written."""


def checkpoint_path(name: str) -> Path:
    """Where a config's training state is kept."""
    return FOLDER / f"{name}.checkpoint"


def model_path(name: str) -> Path:
    """Where a config's result goes."""
    return FOLDER / f"final_result_{name}.model"


def plain_name(path: str | Path) -> str:
    """What a checkpoint or model file is called, without its ending."""
    return re.sub(r"\.(checkpoint|model)(?=\.|$)", "", Path(path).name)


def save(
    model: HierarchicalVAE,
    path: str | Path,
    training: dict[str, Any] | None = None,
    metadata: dict[str, Any] | None = None,
) -> None:
    """Write a `.model`, or with `training` a `.checkpoint`.

    metadata: facts about the model that are not weights, plain values such as kl_per_group.

    The file at `path` is replaced at once or not at all, and is kept as `<path>.previous`. Raises CheckpointError.
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
    """32 hexadecimal digits that tell a model's weights and running statistics from others, on any device."""
    digest = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
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
    """What `write_whole` wrote, its checksums compared; raises almost anything where the file is damaged."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint or model file, its tensors on the CPU. Raises CheckpointError.

    Keys: config (a ModelConfig), weights (a state dictionary), metadata (plain values; kl_per_group where a run has
    measured it) and, in a checkpoint, training.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(_not_there(path))
    with open(path, "rb") as file:
        if file.read(len(ZIP_MAGIC)) != ZIP_MAGIC:
            raise CheckpointError(f"{path} is not a checkpoint; {WANTED}.")
    try:
        content = read_whole(path)
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} was written by another program: it holds more than tensors and plain values, and was not opened "
            f"further; {WANTED}."
        ) from error
    except (RuntimeError, EOFError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is damaged or was cut off; {_use_previous(path)}.") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise CheckpointError(f"{path} was written by another program; {WANTED}.")
    parts = {"version": int, "config": dict, "weights": dict}
    parts |= {key: kind for key, kind in (("training", dict), ("metadata", dict)) if key in content}
    wrong = [key for key, kind in parts.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path} lacks {' and '.join(wrong)}, or holds something else there; {WANTED}.")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path} was written by a newer version of this program; update it (git pull).")
    if content["version"] == 1:
        content = migrate_content(content)
    try:
        content["config"] = config_from_dict(content["config"], str(path), resolved=True)
    except ConfigError as error:
        raise CheckpointError(f"{error} Perhaps a newer version wrote it; update this program (git pull).") from error
    return content


def _not_there(path: Path) -> str:
    files = sorted(FOLDER.glob("*.checkpoint")) + sorted(FOLDER.glob("*.model"))
    there = f"there are {', '.join(map(str, files))}" if files else "train a model first: python3 train.py quickstart"
    return f"there is no file '{path}'; {there}."


def _use_previous(path: Path) -> str:
    previous = previous_path(path)
    if previous.is_file():
        return f"the one before it is {previous}: rename it to {path.name} to go on from there"
    return "take it from where it was copied once more, or train again with --fresh"


def restore(model: HierarchicalVAE, content: dict[str, Any], source: str | Path) -> None:
    """Load the weights into a model of the same config. Raises CheckpointError for missing, extra or other weights."""
    kl = content["metadata"].get("kl_per_group")
    if kl is not None and not (isinstance(kl, list) and len(kl) == len(model.groups) and all(map(_finite_number, kl))):
        raise CheckpointError(f"{source} does not hold one KL per latent group in kl_per_group; {WANTED}.")
    try:
        model.load_state_dict(content["weights"])
    except RuntimeError as error:
        raise CheckpointError(
            f"{source} holds weights for another network than its config describes "
            f"({str(error).splitlines()[1].strip()[:200]}); it was written by other code."
        ) from error


def _finite_number(value: Any) -> bool:
    return isinstance(value, float) and math.isfinite(value)


def load_model(path: str | Path, device: torch.device | str = "cpu") -> HierarchicalVAE:
    """The model in a `.model` or `.checkpoint` file, ready for sampling (eval mode). Raises CheckpointError."""
    return load_model_and_metadata(path, device)[0]


def load_model_and_metadata(
    path: str | Path, device: torch.device | str = "cpu"
) -> tuple[HierarchicalVAE, dict[str, Any]]:
    """As `load_model`, with the file's metadata. Raises CheckpointError."""
    content = load(path)
    model = build_model(content["config"])
    restore(model, content, path)
    return model.to(device).eval().requires_grad_(False), content["metadata"]
