"""Decode pictures of any size and format into uint8 images of a model's size."""

from __future__ import annotations

import hashlib
import math
import os
import unicodedata
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel
from torch import Tensor
from tqdm.auto import tqdm

from nvae.data.cache import CachedImages, memory_limit
from nvae.data.images import CHUNK, Data
from nvae.data.pictures.conversion import cropped, fit, has_deep_colors, is_deep, picture_keys
from nvae.data.pictures.image_files import open_image, read_content, without_pillow_warnings
from nvae.data.pictures.profiles import ProfileError, profile_transform
from nvae.data.pictures.report import PictureError, PictureReport, is_other_file
from nvae.data.threads import map_in_threads
from nvae.schema import DatasetConfig, ModelConfig, PictureDataset
from nvae.system.errors import UserError
from nvae.system.limits import cpu_count
from nvae.system.memory_maps import releasing
from nvae.system.texts import printable

VERSION = 2  # of the decoder: images that another version decoded are replaced


class Picture(NamedTuple):
    """One picture of a data set: a file, a member of an archive, or a record of a database."""

    name: str  # unique in the data set, with slashes; messages show it, and a folder's split depends on `key` alone
    content: Callable[[], IO[bytes] | Image.Image] | PictureError  # called in a thread; or why there is no content
    stamp: str  # changes when the content changes: of the size and the time of change, for example
    position: int | None = None  # pictures with a position are opened one after another, in the order of the positions

    @property
    def key(self) -> str:
        """The name in Unicode's form NFC: a copy of the file may have its name in another form, as NFD on macOS."""
        return unicodedata.normalize("NFC", self.name)

    def open(self) -> IO[bytes] | Image.Image:
        """Return the content: an open file, or a decoded picture. Raises PictureError, and almost any exception."""
        if isinstance(self.content, PictureError):
            raise self.content
        return self.content()


class DecodedPictures(NamedTuple):
    """Images of the pictures that can be used, in the order of the pictures."""

    images_u8: Tensor  # uint8 (N, C, S, S)
    indices: list[int]  # of the picture of each image
    report: PictureReport


class _Decoded(BaseModel):
    """What the cache keeps beside the images."""

    indices: list[int]  # of the picture of each image
    report: PictureReport
    final: bool  # whether all faults will be there next time

    def with_images(self, images_u8: np.ndarray) -> DecodedPictures:
        return DecodedPictures(torch.from_numpy(images_u8)[: len(self.indices)], self.indices, self.report)


def decode_pictures(
    pictures: Sequence[Picture],
    config: ModelConfig,
    source: str,
    progress: bool = False,
    leave_out_duplicates: bool = False,
    cache: bool = False,
) -> DecodedPictures:
    """Decode pictures in parallel, with the keys of a `PictureDataset` in `config.dataset`.

    A picture that cannot be used is left out and named in the report, never an error. source: the path of the folder or
    archive, for messages. leave_out_duplicates: of files with the same bytes, use the first one alone.
    Images that exceed `memory_limit` are kept in a memory-mapped file of the cache folder, and used again as long as
    the pictures stay the same. cache: keep any number of images. The number of threads is
    `training_parameters.workers`. Raises UserError if the images cannot be written.
    """
    shape = (len(pictures), config.image_channels, config.input_dimension, config.input_dimension)
    cached = _cached_images(pictures, config, source, leave_out_duplicates)
    found, notes = _from_cache(cached, shape, progress)
    if found and found[1].final:
        return found[1].with_images(found[0])

    def decode(images_u8: np.ndarray) -> _Decoded:
        return _decode(pictures, images_u8, config, source, progress, leave_out_duplicates)

    if cache or math.prod(shape) > memory_limit():
        cached.write(shape, lambda images_u8: decode(images_u8).model_dump_json())
        found, _ = _from_cache(cached, shape, progress)
        if not found:
            raise UserError(f"the cache file {cached.path} was changed by another program. Start again.")
    else:
        images_u8 = np.empty(shape, np.uint8)
        found = images_u8, decode(images_u8)
    decoded = found[1].with_images(found[0])
    report = decoded.report.model_copy(update={"notes": (*decoded.report.notes, *notes)})
    return decoded._replace(report=report)


def decode_parts(
    parts: Mapping[str, tuple[str, Sequence[Picture]]], config: ModelConfig, progress: bool = False, cache: bool = False
) -> dict[str, DecodedPictures]:
    """Decode the parts of a data set: of each the source and the pictures, as for `decode_pictures`.

    Raises UserError for a part without a picture that can be used.
    """
    decoded = {}
    for part, (source, pictures) in parts.items():
        decoded[part] = decode_pictures(pictures, config, source, progress, cache=cache)
        if not decoded[part].indices:
            reasons = "; ".join(decoded[part].report.warnings())
            raise UserError(
                f"none of the {len(pictures):,} {part} pictures in '{source}' can be used: {reasons}. Get the data set "
                "again."
            )
    return decoded


def with_reports(data: Data, *decoded: DecodedPictures) -> Data:
    """Return the data set with the warnings and the texts of the reports."""
    reports = [part.report for part in decoded]
    warnings = tuple(warning for report in reports for warning in report.warnings())
    return replace(data, warnings=warnings, report="\n".join(filter(None, (report.text() for report in reports))))


# ------------------------------------------------------------------------------------------------------- the cache


def _cached_images(
    pictures: Sequence[Picture], config: ModelConfig, source: str, leave_out_duplicates: bool
) -> CachedImages:
    size, channels, keys = config.input_dimension, config.image_channels, picture_keys(config.dataset)
    own_keys = {key: getattr(keys, key) for key in PictureDataset.model_fields if key not in DatasetConfig.model_fields}
    path = os.path.abspath(source)
    settings = _digest([repr((1, path, size, channels, own_keys, leave_out_duplicates))])
    stem = "".join(c if c.isalnum() and c.isascii() else "_" for c in Path(path).name)[:40]
    names = (f"{picture.key}\0{picture.stamp}\0" for picture in pictures)
    return CachedImages(f"{stem}_{size}x{size}x{channels}_{settings}", _digest(chain([f"{VERSION}\0"], names)))


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for text in texts:
        digest.update(text.encode(errors="backslashreplace"))
    return digest.hexdigest()


def _from_cache(
    cached: CachedImages, shape: tuple[int, ...], progress: bool
) -> tuple[tuple[np.ndarray, _Decoded] | None, tuple[str, ...]]:
    """Return what `decode_pictures` kept in a file, None for no file and for a damaged one; and sentences on damage."""
    try:
        if (kept := cached.read(shape, progress)) is None:
            return None, ()
        return (kept[0], _Decoded.model_validate_json(kept[1])), ()
    except ValueError:
        return None, (f"{cached.path} was damaged, so the pictures were decoded again",)


# ---------------------------------------------------------------------------------------------------- the decoding


class _Facts(NamedTuple):
    """What is known of a picture that was decoded."""

    digest: bytes | None  # of the file's bytes; None where duplicates are of no interest
    changes: tuple[str, ...]  # keys of `_notes`


def _decode(
    pictures: Sequence[Picture],
    images_u8: np.ndarray,
    config: ModelConfig,
    source: str,
    progress: bool,
    leave_out_duplicates: bool,
) -> _Decoded:
    """Fill `images_u8` from the front."""
    size, channels, keys = config.input_dimension, config.image_channels, picture_keys(config.dataset)
    threads = config.training_parameters.workers or cpu_count()

    def decode(job: tuple[int, Picture]) -> _Facts | PictureError:
        i, picture = job
        try:
            return _decode_one(picture, images_u8[i], size, channels, keys, leave_out_duplicates)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's decoders raise almost any exception for a broken file
            return _as_fault(error)

    order = sorted(range(len(pictures)), key=lambda i: pictures[i].position or 0)
    results: list[_Facts | PictureError] = [PictureError("broken")] * len(pictures)
    jobs = ((i, _opened_in_turn(pictures[i])) for i in order)
    bar = tqdm(order, f"reading {source}", unit=" files", leave=False, disable=not progress, delay=1)
    with without_pillow_warnings(), closing(map_in_threads(decode, jobs, threads, ahead=2 * threads)) as decoded:
        for i, result in zip(bar, releasing(decoded, CHUNK), strict=True):
            results[i] = result
    is_final = not any(isinstance(result, PictureError) and result.is_temporary for result in results)
    indices, report = _collect(pictures, results, images_u8, keys, source)
    return _Decoded(indices=indices, report=report, final=is_final)


def _opened_in_turn(picture: Picture) -> Picture:
    """Open a picture that has a position, outside of the threads; other pictures are opened in the threads."""
    if picture.position is None:
        return picture
    try:
        opened = picture.open()
    except Exception as error:  # of a damaged archive: tarfile, zlib, lzma and others
        return picture._replace(content=_as_fault(error))
    return picture._replace(content=lambda: opened)


def _decode_one(
    picture: Picture, image_u8: np.ndarray, size: int, channels: int, keys: PictureDataset, with_digest: bool
) -> _Facts:
    """Decode a picture into uint8 (C, S, S). Raises almost any exception."""
    opened, digest = picture.open(), None
    if not isinstance(opened, Image.Image):
        with opened:
            opened = read_content(opened)
        digest = hashlib.blake2b(opened.getbuffer(), digest_size=16).digest() if with_digest else None
    with open_image(opened, keys.max_image_pixels) as image:
        if min(image.size) < keys.min_image_size:
            raise PictureError("too small", f"{image.width} x {image.height} pixels")
        changes = _changes(image)
        part = cropped(image, keys.crop) if keys.crop else image
        place = zlib.crc32(picture.key.encode(errors="surrogateescape")) / 2**32
        image_u8[:] = fit(part, size, channels, keys, place)
    return _Facts(digest, changes)


def _as_fault(error: Exception) -> PictureError:
    if isinstance(error, PictureError):
        return error
    if isinstance(error, UnidentifiedImageError):
        return PictureError("broken", "damaged at its beginning")
    if isinstance(error, OSError) and error.errno is not None:  # Pillow's own errors have no number
        return PictureError("unreadable", error.strerror or "", is_temporary=True)
    return PictureError("broken", str(error) or type(error).__name__)


def _collect(
    pictures: Sequence[Picture],
    results: Sequence[_Facts | PictureError],
    images_u8: np.ndarray,
    keys: PictureDataset,
    source: str,
) -> tuple[list[int], PictureReport]:
    """Leave out duplicates, and move the remaining images to the front of `images_u8`."""
    indices: list[int] = []
    faults: dict[str, PictureError] = {}
    changes: dict[str, list[str]] = defaultdict(list)
    first: dict[bytes, str] = {}  # name of the first picture by digest
    for i, (picture, result) in enumerate(releasing(zip(pictures, results, strict=True), CHUNK)):
        if isinstance(result, _Facts) and result.digest is not None:
            original = first.setdefault(result.digest, picture.name)
            if original != picture.name:
                result = PictureError("duplicate", f"the same as {original}")
        if isinstance(result, PictureError):
            ordinary = is_other_file(picture.name) and result.kind in ("broken", "empty", "not an image")
            faults[picture.name] = PictureError("not an image") if ordinary else result
        else:
            if i > len(indices):
                images_u8[len(indices)] = images_u8[i]
            indices.append(i)
            for change in result.changes:
                changes[change].append(picture.name)
    return indices, PictureReport.of(source, len(indices), faults, _notes(changes, keys))


def _notes(changes: Mapping[str, Sequence[str]], keys: PictureDataset) -> tuple[str, ...]:
    """Return a sentence for each change. changes: names of pictures by change."""
    lowest, highest = keys.percentiles or (0, 100)
    limits = (
        "its lowest and highest value" if keys.percentiles is None else f"its percentiles {lowest:g} and {highest:g}"
    )
    sentences = {
        "gray": f"gray pictures of more than 8 bits were scaled, each so that {limits} become black and white; "
        "dataset.percentiles changes this",
        "color": "pictures of 16 bits with colors or transparency were reduced to their upper 8 bits; if they are too "
        "dark, save them with 8 bits",
        "profile": "pictures have a color profile that cannot be used, and were read as sRGB",
    }
    return tuple(
        f"{len(names):,} {sentence} (the first one: {printable(names[0])})"
        for change, sentence in sentences.items()
        if (names := changes.get(change))
    )


def _changes(image: Image.Image) -> tuple[str, ...]:
    """Return which sentences of `_notes` are true for an image that is not loaded yet."""
    try:
        profile_transform(image)
        changes = []
    except ProfileError:
        changes = ["profile"]
    if is_deep(image) or has_deep_colors(image):
        changes.append("gray" if is_deep(image) else "color")
    return tuple(changes)
