"""Report an evaluation: a page of text, a JSON file and a chart."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from nvae.data.pictures.metadata import as_texts
from nvae.evaluation.kl_chart import draw_kl_chart
from nvae.evaluation.likelihood import Estimate, Evaluation
from nvae.models.group_names import group_names
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import table
from nvae.system.files import atomic_write, unused_path


def report(evaluation: Evaluation, model: HierarchicalVAE, images: str) -> str:
    """Return an evaluation as a text. images: a name of the images, such as "validation images of mnist"."""

    def row(name: str, nats: Estimate, bits: Estimate) -> tuple[str, ...]:
        return name, f"{_with_error(nats, 2)} nats", f"{_with_error(bits, 4)} bits/dim"

    bounds = [row("ELBO", evaluation.elbo, evaluation.elbo_bits)]
    if (published := evaluation.estimator == "analytic_kl") or evaluation.samples > 1:
        name = f"log p(x), {evaluation.samples} importance samples"
        if published:
            name = f"published protocol, {evaluation.samples} samples: NOT A BOUND"
        bounds.append(row(name, evaluation.log_likelihood, evaluation.log_likelihood_bits))
    return "\n".join(
        [
            f"{evaluation.images:,} {images}; means and their standard errors",
            *table(bounds),
            *([] if evaluation.is_normalized else [f"NOT BOUNDS: {model.likelihood.flaw}"]),
            f"log p(x|z) {evaluation.reconstruction:.2f} nats",
            "",
            *table(_group_rows(evaluation, model)),
        ]
    )


def _group_rows(evaluation: Evaluation, model: HierarchicalVAE) -> list[tuple[str, ...]]:
    active = evaluation.active_units_per_group
    units = evaluation.units_per_group

    def active_of(indices: list[int]) -> str:
        if active is None:
            return "not counted"
        return f"{sum(active[i] for i in indices):,} of {sum(units[i] for i in indices):,}"

    rows: list[tuple[str, ...]] = [("latent group, top first", "KL in nats", "active units")]
    for index, name in enumerate(group_names(model)):
        rows.append((name, f"{evaluation.kl_per_group[index]:.2f}", active_of([index])))
    rows.append(("all", f"{sum(evaluation.kl_per_group):.2f}", active_of(list(range(len(units))))))
    return rows


def _with_error(estimate: Estimate, digits: int) -> str:
    error = "" if math.isnan(estimate.standard_error) else f" ± {estimate.standard_error:.{digits}f}"
    return f"{estimate.mean:.{digits}f}{error}"


def report_name(model_name: str, dataset: str, part: str, images: int, samples: int, *settings: str) -> str:
    """Return a file name, without an ending, that tells evaluations of different images, samples and settings apart."""
    return "_".join(["evaluation", model_name, dataset, part, f"{images}images", f"{samples}samples", *settings])


def report_path(folder: Path, name: str, metadata: dict[str, Any]) -> Path:
    """Return <folder>/<name>.json, or the first of <name>_2, <name>_3, ... that has no report with other metadata."""
    return unused_path(folder, name, ".json", lambda path: not path.exists() or is_saved(path, metadata))


def is_saved(path: Path, metadata: dict[str, Any]) -> bool:
    """Return whether the JSON file and the PNG file of a report exist, and the JSON file has this metadata."""
    try:
        content = json.loads(path.read_text()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and metadata.items() <= content.items() and path.with_suffix(".png").exists()


def save_report(evaluation: Evaluation, model: HierarchicalVAE, path: Path, metadata: dict[str, Any]) -> None:
    """Write the JSON file at `path`, and beside it a PNG file, both with the metadata. Raises WriteError."""
    with atomic_write(path.with_suffix(".png")) as chart:  # first: a JSON file alone would count as a complete report
        draw_kl_chart(evaluation, model, chart, as_texts(metadata))
    content = json.dumps(metadata | evaluation.to_dict(), indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(content, encoding="utf-8")
