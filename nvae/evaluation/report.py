"""Report an evaluation: a page of text, a JSON file and a chart."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nvae.data.pictures.metadata import as_texts
from nvae.evaluation.kl_chart import draw_kl_chart
from nvae.evaluation.likelihood import Estimate, Evaluation
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import group_table, table
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
            *group_table(model, ("KL in nats", "active units"), partial(_group_cells, evaluation)),
        ]
    )


def _group_cells(evaluation: Evaluation, groups: Sequence[int]) -> tuple[str, str]:
    kl, active, units = evaluation.kl_per_group, evaluation.active_units_per_group, evaluation.units_per_group
    counts = "not counted"
    if active is not None:
        counts = f"{sum(active[i] for i in groups):,} of {sum(units[i] for i in groups):,}"
    return f"{sum(kl[i] for i in groups):.2f}", counts


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
