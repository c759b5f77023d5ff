"""Files of published weights: found where torch keeps them, downloaded, or named in an error that says what to do."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from nvae.data.downloads import check_connection
from nvae.evaluation.quality.extractors.base import DIGEST_LENGTH
from nvae.system.errors import UserError

CHUNK = 2**20  # bytes


class PublishedFile(NamedTuple):
    """A file of published weights."""

    name: str
    url: str
    sha256: str = ""  # the first digits, or all; empty where none are published


def weights_folder() -> Path:
    """Return the folder where torch.hub keeps downloaded weights, for all programs of the user."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def obtain(
    what: str, published: PublishedFile, file: Path | None, progress: bool, instead: str = "use the extractor self"
) -> Path:
    """Return the path of a file of weights: the given one, the one in `weights_folder`, or a new download.

    what: needs the file. instead: what else to do. Raises UserError, which names the address and the folder.
    """
    if file is not None:
        if not file.is_file():
            raise UserError(f"the file of weights '{file}' does not exist. Download {published.url}.")
        return file
    path = weights_folder() / published.name
    if path.is_file():
        return path
    try:
        check_connection(published.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), published.sha256 or None, progress)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: another digest
        reason = str(getattr(error, "reason", "") or error) or type(error).__name__
        raise UserError(
            f"{what} needs the file {published.name}, which cannot be downloaded ({reason}). "
            f"Download {published.url} by hand into '{path.parent}'; or {instead}."
        ) from error
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def short_digest(path: Path) -> str:
    """Return the first 12 digits of the SHA-256 of a file."""
    return file_digest(path)[:DIGEST_LENGTH]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights. Runs no code from the file. Raises UserError for any other file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise almost anything
        raise UserError(
            f"'{path}' is damaged, or is no file of weights. Delete the file to download it again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"'{path}' is no file of weights: expected tensors by their names.")
    return dict(content)
