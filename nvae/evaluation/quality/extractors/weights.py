"""Files of published weights: found where torch keeps them, downloaded, or named in an error that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
import yaml
from torch import Tensor

from nvae.data.downloads import check_connection
from nvae.evaluation.quality.extractors.base import DIGEST_LENGTH
from nvae.system.errors import UserError, error_of_system
from nvae.system.files import expand_home


class PublishedFile(NamedTuple):
    """A file of published weights, with the fields of published.yaml."""

    file: str
    url: str
    sha256: str = ""  # empty where no digest is published
    network: str = ""
    layer: str = ""
    dimensions: int = 0


def published_file(name: str) -> PublishedFile:
    """Return an entry of published.yaml."""
    facts = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text(encoding="utf-8"))
    return PublishedFile(**facts[name])


def weights_folder() -> Path:
    """Return the folder where torch.hub keeps downloaded weights, for all programs of the user."""
    return expand_home(torch.hub.get_dir(), temporary=True) / "checkpoints"


def obtain(what: str, published: PublishedFile, file: Path | None, progress: bool) -> Path:
    """Return the path of a file of weights: the given one, the one in `weights_folder`, or a new download.

    what: needs the file. Raises UserError, which names the address and the folder.
    """
    if file is not None:
        if not file.is_file():
            raise UserError(f"the file of weights '{file}' does not exist. Download {published.url}.")
        return file
    path = weights_folder() / published.file
    if path.is_file():
        return path
    try:
        check_connection(published.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(published.url, str(path), published.sha256 or None, progress)
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: another digest
        raise UserError(
            f"{what} needs the file {published.file}, which cannot be downloaded ({error}). "
            f"Download {published.url} by hand into '{path.parent}'."
        ) from error
    return path


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, 64 hexadecimal digits."""
    import pooch

    return pooch.file_hash(path, alg="sha256")


def short_digest(path: Path) -> str:
    """Return the first 12 digits of the SHA-256 of a file."""
    return file_digest(path)[:DIGEST_LENGTH]


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a file of weights. Runs no code from the file. Raises UserError for any other file."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files make torch raise almost anything
        if (cause := error_of_system(error)) is not None:
            raise UserError(f"'{path}' cannot be read: {cause.strerror}.") from error
        raise UserError(
            f"'{path}' is damaged, or is no file of weights. Delete the file to download it again."
        ) from error
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"'{path}' is no file of weights: expected tensors by their names.")
    return dict(content)
