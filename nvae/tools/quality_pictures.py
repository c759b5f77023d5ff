"""Pictures of the quality of samples: curves over the temperature, samples beside real images, and copies."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from nvae.data.images import to_float
from nvae.evaluation.kl_chart import draw_bars
from nvae.evaluation.likelihood import Estimate
from nvae.evaluation.quality.copies import Copies
from nvae.evaluation.quality.measure import Quality, Reference, Row
from nvae.evaluation.quality.report import MOST_ALIKE, REAL, numbers, row_name
from nvae.inference.arguments import format_values
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import HierarchicalVAE
from nvae.schema.choices import Pixels
from nvae.tools.grids import filled, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CELL = 64
COLUMNS = 10


def draw_quality(quality: Quality, model: HierarchicalVAE, kl_per_group: list[float] | None) -> Figure | None:
    """Draw charts; return None where there is nothing to draw.

    A row of charts per extractor with the metrics over the temperatures, the values of other real images as dotted
    lines; and, with path lengths, the movement per latent group beside the KL per latent group.
    """
    from matplotlib.figure import Figure

    names = [facts["name"] for facts in quality.extractors] if len(quality.rows) > 1 else []
    charts = [(name, panels) for name in names if (panels := _panels(quality, name))]
    rows = len(charts) + (quality.movement is not None)
    if rows == 0:
        return None
    columns = max([len(panels) for _, panels in charts] + [1 if quality.movement is None else 2])
    figure = Figure(figsize=(max(7.0, 3.8 * columns), 3.6 * rows), layout="constrained", dpi=110)
    parts = figure.subfigures(rows, 1, squeeze=False)[:, 0]
    for part, (name, panels) in zip(parts, charts, strict=False):  # the last part may be for the movement
        for axes, labels in zip(part.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            _curves(axes, quality, name, labels)
    if quality.movement is not None:
        _bars(parts[-1], model, quality.movement, kl_per_group, row_name(quality.rows[-1]))
    title = f"{quality.samples:,} samples, {quality.reference_images:,} {quality.part} images"
    digests = ", ".join(f"{facts['name']} {facts['digest']}" for facts in quality.extractors)
    figure.suptitle(f"{title}; {digests}" if digests else title, fontsize="medium")
    return figure


def _panels(quality: Quality, extractor: str) -> list[tuple[str, ...]]:
    """Return the names of the numbers in every chart, with the smallest number of neighbors."""
    k = min(quality.settings.neighbors)
    panels: list[tuple[str, ...]] = [(f"FID({extractor})",), (f"KID({extractor})",)]
    panels += [(f"precision k={k}", f"recall k={k}"), (f"density k={k}", f"coverage k={k}")]
    return [panel for panel in panels if set(panel) <= numbers(quality.rows[0], extractor).keys()]


def _curves(axes: Any, quality: Quality, extractor: str, labels: tuple[str, ...]) -> None:
    texts = [format_values(row.temperature) for row in quality.rows if row.temperature is not None]
    values_of_x = list(range(len(texts))) if "," in "".join(texts) else list(map(float, texts))

    def value(row: Row, label: str) -> float:
        number = numbers(row, extractor)[label]
        return number.mean if isinstance(number, Estimate) else number

    for color, label in enumerate(labels):
        axes.plot(values_of_x, [value(row, label) for row in quality.rows], "o-", label=label, color=f"C{color}")
        if quality.real is not None:
            axes.axhline(value(quality.real, label), color=f"C{color}", linestyle=":")
    if quality.real is not None:
        axes.plot([], [], color="gray", linestyle=":", label=REAL)
    axes.set_xticks(values_of_x, texts)
    axes.set_xlabel("temperature")
    axes.grid(alpha=0.3)
    if len(labels) == 1:
        axes.set_title(f"{labels[0]}, lower is better")
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    else:
        axes.set_title(f"{' and '.join(label.partition(' ')[0] for label in labels)} ({extractor})")
        axes.set_ylim(0, max(1.05, axes.get_ylim()[1]))
    axes.legend(fontsize="x-small")


def _bars(
    part: Any, model: HierarchicalVAE, movement: list[float], kl_per_group: list[float] | None, name: str
) -> None:
    """Draw the movement, and the KL if it is known, of every latent group as bars."""
    charts = [(f"change of a subpixel per unit of noise,\n{name}", movement)]
    if kl_per_group is not None:
        charts.append(("KL, nats per image", kl_per_group))
    for axes, (label, values) in zip(part.subplots(1, len(charts), squeeze=False)[0], charts, strict=True):
        draw_bars(axes, model, values)
        axes.set_ylabel(label)


def draw_samples_beside_real(
    quality: Quality, samplers: list[Sampler], reference: Reference, pixels: Pixels
) -> Image.Image:
    """Draw the first samples at every temperature, one row each, and a row of images of the data set."""
    seeds = range(quality.settings.seed, quality.settings.seed + COLUMNS)
    rows = [sampler.sample(seeds, pixels).cpu() for sampler in samplers]
    real = filled(reference.get(reference.own[:COLUMNS]), COLUMNS)
    labels = [format_values(sampler.temperature) for sampler in samplers]
    return grid(torch.cat([*rows, real]), COLUMNS, CELL, labels=[*labels, "real"])


def draw_copies(copies: Copies, sampler: Sampler, training_u8: Tensor, seed: int, pixels: Pixels) -> Image.Image:
    """Draw the samples most like a training image, each above that image, with their difference."""
    chosen = copies.most_alike(MOST_ALIKE)
    samples = sampler.sample([seed + index for index in chosen], pixels).cpu()
    nearest = to_float(training_u8[copies.nearest[chosen]], "cpu", sampler.model.config.pixel_bits)
    differences = copies.difference[chosen].tolist()
    captions = [f"difference {difference:.2f}" for difference in differences]
    captions += [f"image {index}" for index in copies.nearest[chosen].tolist()]
    return grid(
        torch.cat([samples, nearest]),
        len(chosen),
        96,
        labels=["sample", "nearest training image"],
        captions=captions,
        marked={cell for cell, difference in enumerate(differences) if difference < 1},
    )
