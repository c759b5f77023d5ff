"""folder: all pictures of a folder or an archive, converted to the model's size."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

from nvae.data.images import Data
from nvae.data.paths import dataset_path
from nvae.data.pictures.archives import open_archive
from nvae.data.pictures.decoding import DecodedPictures, Picture, decode_pictures, with_reports
from nvae.data.pictures.folders import PART_FOLDERS, list_pictures
from nvae.data.pictures.report import PictureError
from nvae.data.splits import split
from nvae.schema import FolderDataset, ModelConfig
from nvae.system.errors import Remedy, UserError
from nvae.system.texts import counted

PARTS = tuple(dict.fromkeys(PART_FOLDERS.values()))
TRAINING, VALIDATION, TEST, NO_PART = range(len(PARTS) + 1)


def load_folder(config: ModelConfig, progress: bool = False, cache: bool = False) -> Data:
    """Load the pictures of the folder or archive `dataset.path`, subfolders included. Symbolic links are followed.

    The subfolders train/ and val/, where both have files, are the parts, with test/ where present. Without val/, the
    pictures of train/ beside test/, or else all pictures, are split: a picture's name alone decides between training
    and validation, so adding a picture moves no other picture to the other part (except in tiny sets, where each part
    needs at least one). With `validation_images`, the training pictures are split in the order of their names, as those
    of a public data set. Files that cannot be used and duplicates are left out and named in the report. cache: keep
    the images for later runs, see `decode_pictures`. Raises UserError.
    """
    dataset = config.dataset
    assert isinstance(dataset, FolderDataset)
    path = dataset_path(dataset)
    if not path.exists():
        raise UserError(
            f"the image folder '{path}' does not exist. Set dataset.path to the folder of your images, or set "
            "dataset.name to toy_faces to train on built-in images.",
            Remedy.DATASET_PATH,
        )
    with nullcontext(list_pictures(path)) if path.is_dir() else open_archive(path) as pictures:
        parts = {_part(picture) for picture in pictures if not isinstance(picture.content, PictureError)}
        if TRAINING not in parts or parts.isdisjoint({VALIDATION, TEST}):
            parts = set()  # labels, not parts
        else:
            pictures = [_refuse_without_part(picture) for picture in pictures]
        by_rank = dataset.validation_images is None
        pictures = sorted(
            pictures,
            key=lambda picture: (_part(picture) if parts else TRAINING, -_rank(picture) if by_rank else picture.key),
        )
        decoded = decode_pictures(pictures, config, str(path), progress, leave_out_duplicates=True, cache=cache)
    kept = [pictures[i] for i in decoded.indices]
    counts = Counter(_part(picture) if parts else TRAINING for picture in kept)
    if VALIDATION not in parts and by_rank:
        counts[VALIDATION] = _num_validation(kept[: counts[TRAINING]], decoded, dataset.validation_fraction)
        counts[TRAINING] -= counts[VALIDATION]
    for part in (TRAINING, VALIDATION) if by_rank else (TRAINING,):
        if not counts[part]:
            _refuse(decoded, f"0 {PARTS[part]} pictures that can be used; expected at least one")
    training, *others = decoded.images_u8.split([counts[part] for part in (TRAINING, VALIDATION, TEST)])
    return with_reports(split(training, [part for part in others if len(part)], dataset), decoded)


def _num_validation(pictures: Sequence[Picture], decoded: DecodedPictures, validation_fraction: float) -> int:
    """Return how many of the pictures, those at the end, are for validation; each part gets one at least."""
    if len(pictures) < 2:
        _refuse(
            decoded, f"{counted(len(pictures), 'picture')} that can be used, subfolders included; expected at least two"
        )
    below = sum(_rank(picture) < validation_fraction for picture in pictures)
    return min(max(below, 1), len(pictures) - 1)


def _refuse(decoded: DecodedPictures, problem: str) -> NoReturn:
    reasons = "".join(f" {warning}." for warning in decoded.report.warnings())
    names = [name for names in decoded.report.left_out.values() for name in names]
    is_lmdb = any(".mdb" in name for name in names)
    advice = "Set dataset.name to lmdb for LMDB databases." if is_lmdb else "Set dataset.path to your pictures."
    raise UserError(f"'{decoded.report.source}' holds {problem}.{reasons} {advice}", Remedy.DATASET_PATH)


# ------------------------------------------------------------------------------------------------ files and names


def _rank(picture: Picture) -> float:
    """Map the picture's name to a number in [0, 1)."""
    name = picture.key.encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=6).digest(), "big") / 2**48


def _part(picture: Picture) -> int:
    """Return the index of the part whose folder holds the picture, or NO_PART."""
    folder, _, name = picture.name.partition("/")
    part = PART_FOLDERS.get(folder.lower()) if name else None
    return NO_PART if part is None else PARTS.index(part)


def _refuse_without_part(picture: Picture) -> Picture:
    if _part(picture) < NO_PART or isinstance(picture.content, PictureError):
        return picture
    return picture._replace(content=PictureError("no part"))
