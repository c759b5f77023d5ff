"""The pictures of a run: samples, reconstructions, curves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from nvae.data.images import Data, to_float
from nvae.inference.reconstruction import reconstruct
from nvae.inference.sampling import Sampler
from nvae.models.hierarchy import HierarchicalVAE
from nvae.picture_files import save_picture
from nvae.tools.grids import grid

TEMPERATURES = (0.4, 0.6, 0.8, 1.0)
COLUMNS = 8
RECALIBRATION_PASSES = 4  # fewer than sample.py's: this is a look in passing


def draw_samples(model: HierarchicalVAE, path: Path, step: int) -> None:
    """The same eight seeds at several temperatures, one row each."""
    rows = [Sampler(model, temperature, RECALIBRATION_PASSES).sample(COLUMNS) for temperature in TEMPERATURES]
    picture = grid(torch.cat(rows), COLUMNS, cell=96, labels=[f"t = {t:g}" for t in TEMPERATURES])
    about = {"step": step, "temperatures": TEMPERATURES, "seed": 0, "iterations": RECALIBRATION_PASSES}
    save_picture(picture, path, about)


def draw_reconstructions(model: HierarchicalVAE, data: Data, path: Path, step: int) -> None:
    """Eight validation images above what the model makes of their posteriors' means, twice."""
    originals = to_float(data.validation[: 2 * COLUMNS], model.device, model.config.pixel_bits)
    again = reconstruct(model, originals)
    pairs = [part for row in zip(originals.split(COLUMNS), again.split(COLUMNS), strict=True) for part in row]
    labels = ["image", "model"] * (len(pairs) // 2)
    if len(originals) % COLUMNS and len(originals) > COLUMNS:  # whole rows only
        pairs, labels = pairs[:2], labels[:2]
    columns = min(COLUMNS, len(originals))
    save_picture(grid(torch.cat(pairs), columns, cell=96, labels=labels), path, {"step": step})


def draw_curves(metrics: list[dict[str, Any]], levels: list[str], folder: Path) -> None:
    """bits_per_dimension.png and kl_per_group.png from the metrics; `levels` names the groups, top first."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    def figure(title: str, ylabel: str) -> tuple[Figure, Any]:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(title=title, xlabel="epoch", ylabel=ylabel)
        axes.grid(alpha=0.3)
        return figure, axes

    bounds, axes = figure("Bits per dimension (upper bound)", "bits per dimension")
    axes.plot([m["epoch"] for m in metrics], [m["bits_per_dimension"] for m in metrics], label="training")
    checked = [m for m in metrics if "validation_bits_per_dimension" in m]
    axes.plot(
        [m["epoch"] for m in checked], [m["validation_bits_per_dimension"] for m in checked], "o-", label="validation"
    )
    axes.legend()
    bounds.savefig(folder / "bits_per_dimension.png", dpi=110)

    kls, axes = figure("KL of each latent group, the top one first", "nats per image")
    axes.stackplot(
        [m["epoch"] for m in metrics],
        *zip(*(m["kl_per_group"] for m in metrics), strict=True),
        labels=levels,
        colors=_colors(len(levels)),
    )
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small", ncols=-(-len(levels) // 20))
    kls.savefig(folder / "kl_per_group.png", dpi=110)


def _colors(count: int) -> list[Any]:
    from matplotlib import colormaps

    return [colormaps["viridis"](i / max(count - 1, 1)) for i in range(count)]
