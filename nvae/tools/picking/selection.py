"""Cherry-picked images: the file with the settings of every image, and drawing the images again from the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nvae.data.pictures.metadata import read_metadata, save_picture
from nvae.inference.arguments import with_number_above_scales
from nvae.inference.sampling import Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema.choices import MAX_ITERATIONS, Pixels
from nvae.system.errors import UserError
from nvae.system.files import atomic_write, unused_path
from nvae.system.progress import Progress
from nvae.tools.grids import grid, is_file_name, near_square

EXPECTED = "expected a .json or .png file of cherry.py"
MAX_PICKS = 10_000
MAX_TOTAL_ITERATIONS = 10 * MAX_ITERATIONS  # of the recalibrations of all picks

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Factors = Annotated[list[Factor], Field(min_length=1, max_length=1000)]  # one, or one per scale or latent group


class Pick(BaseModel):
    """Everything that makes one image."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str  # path of the file
    weights: str  # their digest
    seed: Annotated[int, Field(ge=0)]
    temperature: Factors
    iterations: Annotated[int, Field(ge=0, le=MAX_ITERATIONS)]  # of the batch-norm recalibration
    statistics: str | None  # digest of the recalibrated statistics; None without iterations


class Selection(BaseModel):
    """Cherry-picked images in their order, and how they are shown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["cherry-picked samples"] = "cherry-picked samples"
    version: Literal[1] = 1
    pixels: Pixels = "mean"
    scale_noise: Factors = [1.0]
    cells: Annotated[list[Pick], Field(max_length=MAX_PICKS)] = []

    def save(self, path: Path) -> None:
        """Write the JSON file atomically. Raises WriteError."""
        with atomic_write(path) as temporary:
            temporary.write_text(self.model_dump_json(indent=2) + "\n", encoding="utf-8")

    def changed(self, **settings: Any) -> Selection:
        """Return the same seeds with other fields of the picks and of the selection; None keeps a field."""
        given = {key: value for key, value in settings.items() if value is not None}
        of_picks = {key: given.pop(key) for key in Pick.model_fields if key in given}
        if of_picks:
            of_picks["statistics"] = None  # the recorded digest belongs to the old settings
        return self.model_copy(update=given | {"cells": [pick.model_copy(update=of_picks) for pick in self.cells]})

    def with_context_temperature(self, temperature: float, open_model: Callable[[str], HierarchicalVAE]) -> Selection:
        """Return the same seeds with another temperature of the context. open_model: as in `render`."""
        picks = []
        for pick in self.cells:
            model = open_model(pick.model)
            factors = with_number_above_scales(model, pick.temperature, temperature, "temperature")
            picks.append(pick.model_copy(update={"temperature": factors, "statistics": None}))
        return self.model_copy(update={"cells": picks})


def load_selection(path: Path) -> Selection:
    """Read a selection from its .json file, or from the metadata of its picture. Raises UserError."""
    if not path.is_file():  # a pipe would block forever
        raise UserError(f"{path} is no file: {EXPECTED}.")
    content = path.read_bytes()
    try:
        selection = Selection.model_validate_json(_json_in(path) if content.startswith(b"\x89PNG") else content)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(map(str, first["loc"])).split()) or "the whole file"
        raise UserError(f"{path} holds no cherry-picked samples ({place}: {first['msg']}): {EXPECTED}.") from error
    batches = {(pick.model, tuple(pick.temperature), pick.iterations) for pick in selection.cells}  # as in `render`
    if sum(iterations for *_, iterations in batches) > MAX_TOTAL_ITERATIONS:
        raise UserError(f"{path} asks for more than {MAX_TOTAL_ITERATIONS:,} iterations in all: {EXPECTED}.")
    if not selection.cells:
        raise UserError(f"{path} holds no picks: {EXPECTED}.")
    return selection


def _json_in(picture: Path) -> str:
    """Return the JSON of a selection's picture, whose metadata hold one text per key."""
    content: dict[str, Any] = {}
    for key, text in read_metadata(picture).items():
        content[key] = text
        if key not in ("format", "pixels"):
            with suppress(ValueError, RecursionError):
                content[key] = json.loads(text)
    return json.dumps(content)


def load_pick(reference: str) -> tuple[Selection, Pick]:
    """Read one pick, named as FILE:N with N counted from 1. Raises UserError."""
    file, _, number = reference.rpartition(":")
    selection = load_selection(Path(file if number.isdecimal() and file else reference))
    count = len(selection.cells)
    if not file or not number.isdecimal() or not (len(number) < 6 and 1 <= int(number) <= count):
        raise UserError(f"'{reference}' names no pick: expected FILE:N with N from 1 to {count}.")
    return selection, selection.cells[int(number) - 1]


def render(
    selection: Selection, open_model: Callable[[str], HierarchicalVAE], progress: Progress = False
) -> tuple[Tensor, Selection, list[str]]:
    """Make the images (N, C, S, S) in [0, 1] of a selection, on the CPU.

    open_model: from the path in a pick to the model in eval mode, called several times for a path. Also returns the
    selection with the digests of the weights and statistics that were used, and warnings where these are not the
    recorded ones. Raises UserError.
    """
    batches: dict[tuple, list[int]] = {}  # picks that are sampled together
    for index, pick in enumerate(selection.cells):
        batches.setdefault((pick.model, tuple(pick.temperature), pick.iterations), []).append(index)
    images: dict[int, Tensor] = {}
    picks, warnings = list(selection.cells), []
    for (path, temperature, iterations), indices in batches.items():
        model = open_model(path)
        cache = StatisticsCache(model, path)
        sampler = Sampler(model, temperature, iterations, cache, progress=progress)
        batch = sampler.sample([picks[index].seed for index in indices], selection.pixels, selection.scale_noise).cpu()
        digest = sampler.statistics.digest if sampler.statistics else None
        if any(picks[index].weights != cache.weights for index in indices):
            warnings.append(f"{path} holds other weights than the picks were made with: the images differ.")
        elif any(picks[index].statistics not in (digest, None) for index in indices):
            warnings.append("the batch-norm statistics measured here differ by rounding from the recorded ones.")
        for index, image in zip(indices, batch, strict=True):
            images[index] = image
            picks[index] = picks[index].model_copy(update={"weights": cache.weights, "statistics": digest})
    if len({image.shape for image in images.values()}) > 1:
        raise UserError("the models of the selection make images of different sizes or channels: draw them separately.")
    ordered = torch.stack([images[index] for index in range(len(picks))])
    return ordered, selection.model_copy(update={"cells": picks}), warnings


def save_result(images: Tensor, selection: Selection, record: Path, show_seeds: bool = False) -> Path:
    """Save the images and the selection of `render` as .png and as .json, `record`; return the picture's path."""
    selection.save(record)
    captions = [str(pick.seed) for pick in selection.cells] if show_seeds else []
    picture = grid(images, near_square(len(images)), captions=captions)
    return save_picture(picture, record.with_suffix(".png"), selection.model_dump())


def reserve(out: Path, name: str) -> Path:
    """Create and return a new, empty .json file beside which the .png is free too.

    out: a folder, where a number is added to the name if needed, or the name of a .png file. Raises UserError, and
    OSError for a folder that cannot be made.
    """

    def create(path: Path) -> bool:
        if path.with_suffix(".png").exists():
            return False
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return True
        return False

    if not is_file_name(out, ".png"):
        out.mkdir(parents=True, exist_ok=True)
        return unused_path(out, name, ".json", create)
    record = out.with_suffix(".json")
    record.parent.mkdir(parents=True, exist_ok=True)
    if not create(record):
        raise UserError(f"{record} or its picture exists already: choose another name, earlier picks are kept.")
    return record
