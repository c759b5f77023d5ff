"""The pictures of a run: its data, samples, reconstructions, curves, and a film of the samples."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from nvae.data.images import Data, to_float
from nvae.data.pictures.image_files import open_image
from nvae.data.pictures.metadata import save_picture
from nvae.inference.reconstruction import reconstruct
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema import ModelConfig
from nvae.tools.animation import save_animation
from nvae.tools.data_sheet import data_sheet
from nvae.tools.grids import grid, single
from nvae.training.report.charts import BITS, curves_of, kl_over_time, save_png

TEMPERATURES = (0.4, 0.6, 0.8, 1.0)
COLUMNS = 8
RECALIBRATION_PASSES = 4  # fewer than for sampling, to save time
FRAME_SIDE = 512  # largest side in pixels of a frame of the film
MAX_FRAMES = 200
REPEATS = 4  # of a frame in the film


def draw_data(data: Data, config: ModelConfig, folder: Path) -> None:
    """Draw what the model sees of its data set: data.png, where the folder has none yet."""
    if not (path := folder / "data.png").exists():
        save_picture(data_sheet(data, config), path, {"model": folder.name, "dataset": config.dataset.model_dump()})


def draw_samples(model: HierarchicalVAE, folder: Path, step: int) -> Image.Image:
    """Draw the same eight seeds at several temperatures, one row each.

    Writes samples.png, and a small copy without margins for the film, samples/step_<step>.png; returns the picture.
    """
    rows = [Sampler(model, temperature, RECALIBRATION_PASSES).sample(COLUMNS) for temperature in TEMPERATURES]
    picture = grid(torch.cat(rows), COLUMNS, cell=96, labels=[f"t = {t:g}" for t in TEMPERATURES])
    metadata = _metadata(folder, step) | {"temperatures": TEMPERATURES, "seed": 0, "iterations": RECALIBRATION_PASSES}
    save_picture(picture, folder / "samples.png", metadata)
    save_picture(single(_frame(rows)), folder / "samples" / f"step_{step:08d}.png", metadata)
    return picture


def _frame(rows: list[Tensor]) -> Tensor:
    """Rows of images (N, C, S, S) to a square (C, R S, R S) of R rows and as many columns, not above FRAME_SIDE."""
    square = torch.cat([torch.cat(list(row[: len(rows)]), dim=2) for row in rows], dim=1)
    if square.shape[-1] > FRAME_SIDE:
        square = functional.interpolate(square[None], (FRAME_SIDE, FRAME_SIDE), mode="bilinear", antialias=True)[0]
    return square


def draw_film(folder: Path) -> Path | None:
    """Join the pictures in samples/ to samples.webp; return its path, or None if there are fewer than two."""
    paths = sorted((folder / "samples").glob("step_*.png"))
    if len(paths) < 2:
        return None
    paths = [paths[round(i)] for i in np.linspace(0, len(paths) - 1, min(len(paths), MAX_FRAMES))]

    def frames() -> Iterator[Tensor]:
        for path in paths:
            with open_image(path) as picture:
                pixels = torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)
            yield to_float(pixels[None], "cpu").repeat(REPEATS, 1, 1, 1)

    metadata = {"model": folder.name, "temperatures": TEMPERATURES}
    return save_animation(frames(), folder / "samples.webp", "samples", "webp", metadata)


def draw_reconstructions(model: HierarchicalVAE, data: Data, folder: Path, step: int) -> Image.Image:
    """Draw validation images above their reconstructions from the posteriors' means, two rows of eight pairs.

    Writes reconstructions.png and returns the picture.
    """
    count = 2 * COLUMNS if len(data.validation) >= 2 * COLUMNS else COLUMNS  # full rows only
    originals = to_float(data.validation[:count], model.device, model.config.input_bits)
    reconstructions = reconstruct(model, originals)
    split = zip(originals.split(COLUMNS), reconstructions.split(COLUMNS), strict=True)
    pairs = [part for row in split for part in row]
    labels = ["image", "model"] * (len(pairs) // 2)
    picture = grid(torch.cat(pairs), min(COLUMNS, len(originals)), cell=96, labels=labels)
    save_picture(picture, folder / "reconstructions.png", _metadata(folder, step))
    return picture


def draw_curves(metrics: list[dict[str, Any]], groups: list[str], folder: Path) -> None:
    """Draw bits_per_dimension.png and kl_per_group.png from lines of metrics; `groups` names the groups, top first."""
    charts = {"bits_per_dimension": curves_of(metrics).get(BITS), "kl_per_group": kl_over_time(metrics, groups)}
    for name, chart in charts.items():
        if chart is not None:
            save_png(chart, folder / f"{name}.png", _metadata(folder, metrics[-1]["step"]))


def _metadata(folder: Path, step: int) -> dict[str, object]:
    """Name the run, as the commands take it for MODEL, and the step."""
    return {"model": folder.name, "step": step}
