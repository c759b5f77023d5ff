"""Cherry-picked images: the file that says what made each of them, and drawing them again from it."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import Tensor

from nvae.errors import UserError
from nvae.inference.sampling import Pixels, Sampler
from nvae.inference.statistics_cache import StatisticsCache
from nvae.models.hierarchy import HierarchicalVAE
from nvae.tools.grids import grid, near_square, replacing, save_picture

WANTED = "give the .json file that cherry.py wrote beside its picture"

Factor = Annotated[float, Field(ge=0, allow_inf_nan=False)]
PerScale = Annotated[list[Factor], Field(min_length=1)]  # one number, or one per scale, the coarsest first


class Cell(BaseModel):
    """All that makes one image."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    model: str  # path of the file
    weights: str  # their digest
    seed: Annotated[int, Field(ge=0)]
    temperature: PerScale
    iterations: Annotated[int, Field(ge=0)]  # of the batch-norm recalibration
    statistics: str | None  # digest of the recalibrated statistics; None without iterations


class Selection(BaseModel):
    """Cherry-picked images, in their order, and how they are shown."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    format: Literal["cherry-picked samples"] = "cherry-picked samples"
    version: Literal[1] = 1
    pixels: Pixels = "mean"
    scale_noise: PerScale = [1.0]
    cells: list[Cell] = []

    def save(self, path: Path) -> None:
        """Write the JSON file, all of it or nothing. Raises OSError."""
        with replacing(path) as unfinished, open(unfinished, "w", encoding="utf-8") as file:
            file.write(self.model_dump_json(indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())

    def changed(
        self,
        model: str | None = None,
        temperature: list[float] | None = None,
        iterations: int | None = None,
        pixels: Pixels | None = None,
        scale_noise: list[float] | None = None,
    ) -> Selection:
        """The same seeds otherwise: what is None stays as it is."""
        of_cells = {"model": model, "temperature": temperature, "iterations": iterations}
        of_all = {"pixels": pixels, "scale_noise": scale_noise}
        changes = {key: value for key, value in of_cells.items() if value is not None}
        if changes:
            changes["statistics"] = None  # others are wanted
        cells = [cell.model_copy(update=changes) for cell in self.cells]
        return self.model_copy(update={key: v for key, v in of_all.items() if v is not None} | {"cells": cells})


def load_selection(path: Path) -> Selection:
    """What `Selection.save` wrote. Raises UserError."""
    try:
        selection = Selection.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); {WANTED}.") from error
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(map(str, first["loc"])).split())
        raise UserError(f"{path} is no selection ({place or 'as a whole'}: {first['msg']}); {WANTED}.") from error
    if not selection.cells:
        raise UserError(f"{path} holds no picks; {WANTED}.")
    return selection


def render(selection: Selection, open_model: Callable[[str], HierarchicalVAE]) -> tuple[Tensor, Selection, list[str]]:
    """The images (N, C, S, S) in [0, 1] of a selection, on the CPU.

    open_model: from the path in a cell to the model in eval mode. Also returns the selection with the digests of the
    weights and statistics that were used, and what a person should know where these are others than those in it.
    Raises UserError.
    """
    models: dict[str, HierarchicalVAE] = {}
    together: dict[tuple, list[int]] = {}
    for place, cell in enumerate(selection.cells):
        together.setdefault((cell.model, tuple(cell.temperature), cell.iterations), []).append(place)
    images: dict[int, Tensor] = {}
    cells, notices = list(selection.cells), []
    for (path, temperature, iterations), places in together.items():
        model = models[path] = models.get(path) or open_model(path)
        cache = StatisticsCache(model, path)
        sampler = Sampler(model, temperature, iterations, cache)
        seeds = [cells[place].seed for place in places]
        found = sampler.sample(seeds, selection.pixels, selection.scale_noise).cpu()
        digest = sampler.statistics.digest if sampler.statistics else None
        if any(cells[place].weights != cache.weights for place in places):
            notices.append(f"{path} holds other weights than those that were picked from: the images are others.")
        elif any(cells[place].statistics not in (digest, None) for place in places):
            notices.append("the batch-norm statistics measured here differ from those of the picking by rounding.")
        for place, image in zip(places, found, strict=True):
            images[place] = image
            cells[place] = cells[place].model_copy(update={"weights": cache.weights, "statistics": digest})
    if len({image.shape for image in images.values()}) > 1:
        raise UserError("the selection's models make images of different sizes or channels; draw them apart.")
    ordered = torch.stack([images[place] for place in range(len(cells))])
    return ordered, selection.model_copy(update={"cells": cells}), notices


def save_result(
    selection: Selection, record: Path, open_model: Callable[[str], HierarchicalVAE]
) -> tuple[Path, list[str]]:
    """Draw a selection, as a .png beside its .json, which is written too; returns its path and `render`'s notices."""
    images, selection, notices = render(selection, open_model)
    about = selection.model_dump()
    try:
        selection.save(record)
    except OSError as error:
        raise UserError(f"{record} could not be saved: {error}; make room or mend the folder.") from error
    picture = grid(images, near_square(len(images)))
    return save_picture(picture, picture_of(record), about), notices


def picture_of(record: Path) -> Path:
    """Where the picture of a selection's .json file goes."""
    return record.with_name(f"{record.name.removesuffix('.json')}.png")


def record_of(picture: Path) -> Path:
    """The .json file of a picture."""
    return picture.with_name(f"{picture.name.removesuffix('.png')}.json")


def redo(
    selection: Selection, folder: Path, name: str, open_model: Callable[[str], HierarchicalVAE]
) -> tuple[Path, list[str]]:
    """`save_result` under a new name."""
    record = reserve(folder, name)
    try:
        return save_result(selection, record, open_model)
    except BaseException:
        record.unlink(missing_ok=True)
        raise


def reserve(folder: Path, name: str) -> Path:
    """A new <folder>/<name>.json, or with a number, for which there is no .png either. Raises UserError."""
    number, path = 1, folder / f"{name}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            if not picture_of(path).exists():
                with suppress(FileExistsError):
                    path.touch(exist_ok=False)
                    return path
            number += 1
            path = folder / f"{name}_{number}.json"
    except OSError as error:
        raise UserError(
            f"{path} could not be saved: {error}; make room or choose a folder that can be written (--out)."
        ) from error
