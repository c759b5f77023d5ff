"""Pictures of the quality of samples: curves over the temperature, samples beside real images, and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from nvae.data.images import to_float
from nvae.evaluation.quality.copies import THRESHOLD
from nvae.evaluation.quality.measure import Quality, Reference, Row, temperature_text
from nvae.evaluation.quality.report import MOST_ALIKE, REAL, numbers, row_name
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema.choices import Pixels
from nvae.summary import group_name
from nvae.tools.grids import filled, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 64
COLUMNS = 10
MAX_TICKS = 20
MAX_NAMES = 8  # of groups with their resolution below the bars


def draw_quality(quality: Quality, model: HierarchicalVAE, kl_per_group: list[float] | None) -> Figure | None:
    """Draw charts; return None where there is nothing to draw.

    A row of charts per extractor with the metrics over the temperatures, the values of other real images as dotted
    lines; and, with path lengths, the movement per latent group beside the KL per latent group.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = [facts["name"] for facts in quality.extractors]
    charts = [_panels(quality, name) for name in names] if len(quality.rows) > 1 else []
    charts = [panels for panels in charts if panels]
    with_movement = quality.movement is not None
    rows = len(charts) + with_movement
    if rows == 0:
        return None
    columns = max([len(panels) for panels in charts] + [2 if with_movement else 1])
    figure = Figure(figsize=(max(7.0, 3.8 * columns), 3.6 * rows), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, panels in zip(parts, charts, strict=False):  # the last part may be for the movement
        for axes, (title, lines) in zip(part.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
            axes.set(title=title, xlabel="temperature")
            _curves(axes, quality, lines)
    if with_movement:
        _bars(parts[-1], model, quality.movement, kl_per_group, row_name(quality.rows[-1]))
    title = f"{quality.samples:,} samples, {quality.reference_images:,} {quality.part} images"
    digests = ", ".join(f"{facts['name']} {facts['digest']}" for facts in quality.extractors)
    figure.suptitle(f"{title}; {digests}" if digests else title, fontsize="medium")
    return figure


def _panels(quality: Quality, extractor: str) -> dict[str, dict[str, str]]:
    """Return the lines of every chart, with the smallest number of neighbors.

    A line is the key of `numbers` by the label of the line, by the title of the chart.
    """
    k = min(quality.settings.neighbors)
    keys = numbers(quality.rows[0], extractor)
    panels = {f"{key}, lower is better": {key: key} for key in keys if key.startswith(("FID", "KID"))}
    for pair in (("precision", "recall"), ("density", "coverage")):
        lines = {f"{name} k={k}": f"{name} k={k} ({extractor})" for name in pair}
        if set(lines.values()) <= keys.keys():
            panels[f"{' and '.join(pair)} ({extractor})"] = lines
    return panels


def _curves(axes: Any, quality: Quality, lines: dict[str, str]) -> None:
    texts = [temperature_text(row.temperature).removeprefix("temperature ") for row in quality.rows]
    values_of_x = range(len(texts))
    if all(isinstance(row.temperature, int | float) or len(row.temperature) == 1 for row in quality.rows):
        values_of_x = [float(text) for text in texts]
    for color, (label, key) in enumerate(lines.items()):
        extractor = key.rpartition("(")[2].rstrip(")")
        values = [numbers(row, extractor)[key] for row in quality.rows]
        axes.plot(values_of_x, values, marker="o", label=label, color=f"C{color}")
        if quality.real is not None:
            real = numbers(quality.real, extractor)[key]
            axes.axhline(real, color=f"C{color}", linestyle=":", label=REAL if len(lines) == 1 else None)
    axes.set_xticks(list(values_of_x), texts)
    axes.grid(alpha=0.3)
    if len(lines) == 1:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    else:
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
        if quality.real is not None:
            axes.plot([], [], color="gray", linestyle=":", label=REAL)
    axes.legend(fontsize="x-small")


def _bars(
    part: Any, model: HierarchicalVAE, movement: list[float], kl_per_group: list[float] | None, name: str
) -> None:
    """Draw the movement, and the KL if it is known, of every latent group as bars."""
    groups = len(movement)
    charts = [(f"change of a subpixel per unit of noise,\n{name}", movement)]
    if kl_per_group is not None and len(kl_per_group) == groups:
        charts.append(("KL, nats per image", kl_per_group))
    every = max(1, groups // MAX_TICKS)
    names = [group_name(model, group) if groups <= MAX_NAMES else str(group + 1) for group in range(0, groups, every)]
    all_axes = part.subplots(1, len(charts), squeeze=False)[0]
    for color, (axes, (label, values)) in enumerate(zip(all_axes, charts, strict=True)):
        axes.bar(range(groups), values, width=min(0.8, 0.15 * groups), color=f"C{color}")
        axes.set_xlim(-0.6, groups - 0.4)
        axes.set_xticks(range(0, groups, every), names)
        axes.set(xlabel="latent group, top first", ylabel=label)
        axes.grid(axis="y", alpha=0.3)


def draw_samples_beside_real(
    quality: Quality, samplers: list[Sampler], reference: Reference, pixels: Pixels
) -> Image.Image:
    """Draw the first samples at every temperature, one row each, and a row of images of the data set."""
    seeds = range(quality.settings.seed, quality.settings.seed + COLUMNS)
    rows = [sampler.sample(seeds, pixels).cpu() for sampler in samplers]
    real = filled(reference.get(reference.own[:COLUMNS]), COLUMNS)
    labels = [temperature_text(sampler.temperature).removeprefix("temperature ") for sampler in samplers]
    return grid(torch.cat([*rows, real]), COLUMNS, CELL, labels=[*labels, "real"])


def draw_copies(row: Row, sampler: Sampler, training_u8: Tensor, seed: int, pixels: Pixels) -> Image.Image:
    """Draw the samples most like a training image, each above that image, with the ratio of distances."""
    chosen = row.copies.most_alike(MOST_ALIKE)
    samples = sampler.sample([seed + index for index in chosen], pixels).cpu()
    bits = sampler.model.config.pixel_bits
    nearest = to_float(training_u8[row.copies.nearest[chosen]], "cpu", bits)
    ratios = [float(row.copies.ratio[index]) for index in chosen]
    captions = [f"ratio {ratio:.2f}" for ratio in ratios]
    numbers_of_images = [f"image {int(row.copies.nearest[index])}" for index in chosen]
    marked = {cell for cell, ratio in enumerate(ratios) if ratio < THRESHOLD}
    return grid(
        torch.cat([samples, nearest]),
        len(chosen),
        96,
        labels=["sample", "nearest training image"],
        captions=[*captions, *numbers_of_images],
        marked=marked,
    )
