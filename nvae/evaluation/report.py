"""An evaluation for people: a page of text, a picture, a JSON file."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nvae.errors import UserError
from nvae.evaluation.likelihood import Estimate, Evaluation
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import table


def report(evaluation: Evaluation, model: HierarchicalVAE, images: str) -> str:
    """The page. images: what they are, such as "validation images of mnist"."""

    def line(name: str, nats: Estimate, bits: Estimate) -> tuple[str, ...]:
        return name, f"{_with_error(nats, 2)} nats", f"{_with_error(bits, 4)} bits/dim"

    bounds = [line("ELBO", evaluation.elbo, evaluation.elbo_bits)]
    if evaluation.samples > 1:
        name = f"log p(x), {evaluation.samples} importance samples"
        bounds.append(line(name, evaluation.log_likelihood, evaluation.log_likelihood_bits))
    groups = [("latent group, top first", "resolution", "KL in nats", "active units")]
    for index, level in enumerate(group.level for group in model.groups):
        active = f"{evaluation.active_units_per_group[index]:,} of {evaluation.units_per_group[index]:,}"
        kl = f"{evaluation.kl_per_group[index]:.2f}"
        groups.append((str(index + 1), f"{level.resolution} x {level.resolution}", kl, active))
    all_active = f"{sum(evaluation.active_units_per_group):,} of {sum(evaluation.units_per_group):,}"
    groups.append(("all", "", f"{sum(evaluation.kl_per_group):.2f}", all_active))
    lines = [
        f"{evaluation.images:,} {images}; means and their standard errors",
        *table(bounds),
        f"log p(x|z) {evaluation.reconstruction:.2f} nats",
        "",
        *table(groups),
    ]
    return "\n".join(lines)


def _with_error(estimate: Estimate, digits: int) -> str:
    error = "" if math.isnan(estimate.standard_error) else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def save_report(evaluation: Evaluation, model: HierarchicalVAE, stem: Path, about: dict[str, Any]) -> None:
    """Write <stem>.json and <stem>.png. about: what else the JSON should say. Raises UserError."""
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        content = about | evaluation.plain()
        json_path(stem).write_text(json.dumps(content, indent=2, allow_nan=False) + "\n")
        draw_kl(evaluation, model, stem.with_name(stem.name + ".png"))
    except OSError as error:
        raise UserError(f"{stem}.json and .png cannot be written ({error}); make room or mend the folder.") from error


def json_path(stem: Path) -> Path:
    """<stem>.json, whatever dots the stem holds."""
    return stem.with_name(f"{stem.name}.json")


def already_saved(stem: Path, about: dict[str, Any]) -> bool:
    """Whether there is a report that says all of `about`."""
    try:
        content = json.loads(json_path(stem).read_text())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and about.items() <= content.items()


def stem_for(folder: Path, name: str, about: dict[str, Any]) -> Path:
    """Where a report goes: <folder>/<name>, or with the first number after it that no report of something else has."""
    number, stem = 1, folder / name
    while json_path(stem).exists() and not already_saved(stem, about):
        number += 1
        stem = folder / f"{name}_{number}"
    return stem


def draw_kl(evaluation: Evaluation, model: HierarchicalVAE, path: Path) -> None:
    """A bar per latent group: its KL, colored by its resolution."""
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    levels = [group.level for group in model.groups]
    figure = Figure(figsize=(max(7.0, 2.5 + 0.32 * len(levels)), 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="latent group, the top one first", ylabel="KL, nats per image")
    for i, level in enumerate(model.levels):
        numbers = [g + 1 for g, other in enumerate(levels) if other is level]
        active = sum(evaluation.active_units_per_group[n - 1] for n in numbers)
        units = sum(evaluation.units_per_group[n - 1] for n in numbers)
        kls = [evaluation.kl_per_group[n - 1] for n in numbers]
        label = f"{level.resolution} x {level.resolution}: {sum(kls):.1f} nats, {active:,} of {units:,} units active"
        axes.bar(numbers, kls, color=colormaps["viridis"]((i + 0.5) / len(model.levels)), label=label)
    axes.set_xticks(range(1, len(levels) + 1, max(1, len(levels) // 20)))
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize="small")
    figure.suptitle(_title(evaluation), fontsize="medium")
    figure.savefig(path, dpi=110)


def _title(evaluation: Evaluation) -> str:
    best, bits = evaluation.log_likelihood, evaluation.log_likelihood_bits
    title = f"ELBO {evaluation.elbo.mean:.2f} nats, {evaluation.elbo_bits.mean:.3f} bits/dim"
    if evaluation.samples > 1:
        title += f"; log p(x) at least {best.mean:.2f} nats, {bits.mean:.3f} bits/dim ({evaluation.samples} samples)"
    return title
