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
from nvae.schema.choices import Pixels
from nvae.system.errors import UserError
from nvae.system.files import WriteError, atomic_write, unused_path
from nvae.system.progress import Progress
from nvae.tools.grids import grid, is_file_name, near_square

EXPECTED = "expected a .json or .png file of cherry.py"
MAX_ITERATIONS = 100_000
MAX_PICKS = 10_000

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

    def changed(
        self,
        model: str | None = None,
        temperature: list[float] | None = None,
        iterations: int | None = None,
        pixels: Pixels | None = None,
        scale_noise: list[float] | None = None,
    ) -> Selection:
        """Return the same seeds with other settings; None keeps a setting."""
        pick_settings = {"model": model, "temperature": temperature, "iterations": iterations}
        common = {"pixels": pixels, "scale_noise": scale_noise}
        changes: dict[str, Any] = {key: value for key, value in pick_settings.items() if value is not None}
        if changes:
            changes["statistics"] = None  # the recorded digest belongs to the old settings
        picks = [pick.model_copy(update=changes) for pick in self.cells]
        return self.model_copy(update={key: v for key, v in common.items() if v is not None} | {"cells": picks})

    def with_context_temperature(self, temperature: float, open_model: Callable[[str], HierarchicalVAE]) -> Selection:
        """Return the same seeds with another temperature of the context. open_model: as in `render`."""
        models = {path: open_model(path) for path in {pick.model for pick in self.cells}}
        picks = []
        for pick in self.cells:
            temperatures = with_number_above_scales(models[pick.model], pick.temperature, temperature, "temperature")
            picks.append(pick.model_copy(update={"temperature": temperatures, "statistics": None}))
        return self.model_copy(update={"cells": picks})


def load_selection(path: Path) -> Selection:
    """Read a selection from its .json file, or from the metadata of its picture. Raises UserError."""
    if path.exists() and not path.is_file():  # a pipe would block forever
        raise UserError(f"{path} is not a regular file: {EXPECTED}.")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): {EXPECTED}.") from error
    try:
        selection = Selection.model_validate_json(_json_in(path) if content.startswith(b"\x89PNG") else content)
    except ValidationError as error:
        first = error.errors()[0]
        place = " ".join(".".join(map(str, first["loc"])).split()) or "the whole file"
        raise UserError(f"{path} holds no cherry-picked samples ({place}: {first['msg']}): {EXPECTED}.") from error
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

    open_model: from the path in a pick to the model in eval mode. Also returns the selection with the digests of the
    weights and statistics that were used, and warnings where these are not the recorded ones. Raises UserError.
    """
    models: dict[str, HierarchicalVAE] = {}
    batches: dict[tuple, list[int]] = {}  # picks that are sampled together
    for index, pick in enumerate(selection.cells):
        batches.setdefault((pick.model, tuple(pick.temperature), pick.iterations), []).append(index)
    images: dict[int, Tensor] = {}
    picks, warnings = list(selection.cells), []
    for (path, temperature, iterations), indices in batches.items():
        model = models[path] = models.get(path) or open_model(path)
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


def save_result(
    selection: Selection,
    record: Path,
    open_model: Callable[[str], HierarchicalVAE],
    show_seeds: bool = False,
    progress: Progress = False,
) -> tuple[Path, list[str]]:
    """Draw a selection and save it as .json and .png; return the picture's path and the warnings of `render`."""
    images, selection, warnings = render(selection, open_model, progress)
    selection.save(record)
    captions = [str(pick.seed) for pick in selection.cells] if show_seeds else []
    picture = grid(images, near_square(len(images)), captions=captions)
    return save_picture(picture, picture_path(record), selection.model_dump()), warnings


def picture_path(record: Path) -> Path:
    """Return the path of the picture that belongs to a selection's .json file."""
    return record.with_name(f"{record.name.removesuffix('.json')}.png")


def record_path(picture: Path) -> Path:
    """Return the path of the .json file that belongs to a picture."""
    return picture.with_name(f"{picture.name.removesuffix('.png')}.json")


def redo(
    selection: Selection,
    out: Path,
    name: str,
    open_model: Callable[[str], HierarchicalVAE],
    show_seeds: bool = False,
    progress: Progress = False,
) -> tuple[Path, list[str]]:
    """Draw a selection as with `save_result`, under a new name."""
    record = reserve(out, name)
    try:
        return save_result(selection, record, open_model, show_seeds, progress)
    except BaseException:
        record.unlink(missing_ok=True)
        raise


def reserve(out: Path, name: str) -> Path:
    """Create and return a new, empty .json file beside which the .png is free too.

    out: a folder, where a number is added to the name if needed, or the name of a .png file. Raises UserError.
    """

    def create(path: Path) -> bool:
        if picture_path(path).exists():
            return False
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return True
        return False

    named = out.with_suffix(".json") if is_file_name(out, ".png") else None
    folder = named.parent if named else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if named is None:
            return unused_path(out, name, ".json", create)
        if not create(named):
            raise UserError(f"{named} or its picture exists already: choose another name, earlier picks are kept.")
        return named
    except OSError as error:
        raise WriteError(named or folder / f"{name}.json", error) from error
