"""Checkpoints and models on disk: self-contained, safe to load, never half written.

Both kinds are dictionaries of tensors and plain values that `torch.load(weights_only=True)` reads, so nothing in them
can run code. Both carry the whole resolved config. A `.checkpoint` also has `training`, all that a run needs to go on.
"""

from __future__ import annotations

import errno
import hashlib
import math
import os
import pickle
import re
import shutil
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from nvae.config import ConfigError, config_from_dict
from nvae.errors import UserError
from nvae.migrations import migrate_weights
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


def previous_path(path: Path) -> Path:
    """The file that the last save replaced."""
    return path.with_name(path.name + ".previous")


def save(model: HierarchicalVAE, path: str | Path, training: dict[str, Any] | None = None) -> None:
    """Write a `.model`, or with `training` a `.checkpoint`.

    The file at `path` is replaced at once or not at all, and is kept as `<path>.previous`. Raises CheckpointError.
    """
    content = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config.model_dump(),
        "weights": {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
    }
    if model.kl_per_group is not None:
        content["kl_per_group"] = model.kl_per_group
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
    """To a temporary file, flushed to the disk, then renamed: a crash at any instant leaves a whole file."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(unfinished, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        if keep_previous and path.exists():
            previous = previous_path(path)
            previous.unlink(missing_ok=True)
            try:
                os.link(path, previous)  # so that there is a file called `path` at every instant
            except OSError:  # a file system without hard links
                shutil.copy2(path, previous)
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch's writer turns some of the former into the latter
        raise CheckpointError(_why_not_written(path, error)) from error
    finally:
        with suppress(OSError):  # renamed already, or in a folder that is none
            unfinished.unlink()


def _why_not_written(path: Path, error: Exception) -> str:
    cause = error if isinstance(error, OSError) else error.__context__
    full = getattr(cause, "errno", None) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    if not full and path.parent.is_dir():
        full = shutil.disk_usage(path.parent).free < 2**20
    problem = "no space is left to write it" if full else str(error).splitlines()[0]
    kept = "what was saved before is still there; " if path.exists() else ""
    return f"{path} could not be saved: {problem}; {kept}make room or mend the folder, and run the same command again."


def read_whole(path: Path) -> Any:
    """What `write_whole` wrote, its checksums compared; raises almost anything where the file is damaged."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    return torch.load(path, map_location="cpu", weights_only=True)


def load(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint or model file, its tensors on the CPU. Raises CheckpointError.

    Keys: config (a Config), weights (a state dictionary), kl_per_group where a run has measured it, and, in a
    checkpoint, training.
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
    parts |= {key: kind for key, kind in (("training", dict), ("kl_per_group", list)) if key in content}
    wrong = [key for key, kind in parts.items() if not isinstance(content.get(key), kind)]
    if wrong:
        raise CheckpointError(f"{path} lacks {' and '.join(wrong)}, or holds something else there; {WANTED}.")
    if content["version"] > VERSION:
        raise CheckpointError(f"{path} was written by a newer version of this program; update it (git pull).")
    if content["version"] == 1:
        content["weights"] = migrate_weights(content["weights"])
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
    """Load the weights, every one of which must find its place, and what is known of them. Raises CheckpointError."""
    kl = content.get("kl_per_group")
    if kl is not None and not (len(kl) == len(model.groups) and all(map(_finite_number, kl))):
        raise CheckpointError(f"{source} does not hold one KL per latent group in kl_per_group; {WANTED}.")
    model.kl_per_group = kl
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
    content = load(path)
    model = build_model(content["config"])
    restore(model, content, path)
    return model.to(device).eval().requires_grad_(False)
