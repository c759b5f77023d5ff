"""Report the quality of samples: a text, and plain values for a JSON file. Every number names its extractor."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from nvae.evaluation.likelihood import Estimate, plain
from nvae.evaluation.quality.measure import FeatureQuality, Quality, Row
from nvae.inference.arguments import format_values
from nvae.models.hierarchy import HierarchicalVAE
from nvae.summary import group_table, table
from nvae.system.texts import counted

MOST_ALIKE = 8  # samples that are named and drawn beside their nearest training images
REAL = "other real images"
PIXELS = {"mean": "means of p(x|z)", "most_likely": "most likely pixels of p(x|z)", "sample": "draws from p(x|z)"}


def row_name(row: Row) -> str:
    """Return what a row describes."""
    return REAL if row.temperature is None else f"temperature {format_values(row.temperature)}"


def numbers(row: Row, extractor: str) -> dict[str, float | Estimate]:
    """Return the numbers of a row for one extractor by name, such as "FID(self)" and "precision k=3"."""
    quality = row.features.get(extractor, FeatureQuality())
    result = {f"FID({extractor})": quality.fid, f"KID({extractor})": quality.kid}
    for k, manifold in (quality.manifolds or {}).items():
        result |= {f"{name} k={k}": value for name, value in manifold._asdict().items()}
    return {name: value for name, value in result.items() if value is not None}


def report(quality: Quality, model: HierarchicalVAE, dataset: str) -> str:
    """Return the quality as a text."""
    rows = [*quality.rows, *([quality.real] if quality.real else [])]
    compared = quality.settings.needs_features
    samples = f"{quality.samples:,} samples, {PIXELS[quality.settings.pixels]}"
    lines = [
        samples
        + (f", against {counted(quality.reference_images, f'{quality.part} image')} of {dataset}" if compared else ""),
        *(
            f"extractor {facts['name']}: {facts['dimensions']} features, digest {facts['digest']}, {facts['source']}"
            for facts in quality.extractors
        ),
    ]
    for facts in quality.extractors:
        if any(numbers(row, facts["name"]) for row in rows):
            lines += ["", *table(_feature_rows(rows, facts["name"]))]
        if any(row.features[facts["name"]].too_few_images for row in rows if facts["name"] in row.features):
            lines.append(too_few_images(facts["name"], facts["dimensions"]))
    if compared and quality.real is None:
        missing = f"{quality.reference_images:,} more {quality.part} images"
        lines.append(f"{REAL}: not measured, because the data set has not {missing}")
    if lengths := _length_rows(quality):
        lines += ["", *table(lengths)]
    elif "ppl" in quality.settings.metrics:
        lines += ["", "path lengths: not measured, because the extractors take 8-bit images. Add the extractor self."]
    if quality.movement is not None:
        movement = quality.movement
        header = f"change of a subpixel per unit of noise of one group, {row_name(quality.rows[-1])}"
        lines += ["", *group_table(model, [header], lambda groups: [f"{fmean(movement[i] for i in groups):.4f}"])]
    lines += _copies_lines(quality, dataset)
    for row in quality.rows:
        if row.seconds_per_image is not None:
            lines.append(f"{row_name(row)}: {1000 * row.seconds_per_image:.1f} ms of sampling per image")
    return "\n".join(lines)


def too_few_images(extractor: str, dimensions: int) -> str:
    """Return a warning for `FeatureQuality.too_few_images`."""
    return (
        f"FID({extractor}) is far too high, and no number to compare: its covariances of {dimensions} features need "
        f"more than {dimensions} samples and images; use KID"
    )


def _feature_rows(rows: list[Row], extractor: str) -> list[tuple[str, ...]]:
    columns = numbers(rows[0], extractor).items()
    header = (f"with {extractor}", *(f"{n} x 1000" if isinstance(v, Estimate) else n for n, v in columns))
    return [header, *((row_name(row), *map(_cell, numbers(row, extractor).values())) for row in rows)]


def _cell(value: float | Estimate) -> str:
    if isinstance(value, Estimate):
        return _with_error(value, 1000)
    return f"{value:.3f}" if abs(value) < 1e6 else f"{value:.4g}"


def _length_rows(quality: Quality) -> list[tuple[str, ...]]:
    names = list(dict.fromkeys(name for row in quality.rows for name in row.path_lengths))
    if not names:
        return []
    groups = quality.settings.ppl_groups
    moving = {"all": "all groups move", "top": "the top group moves"}.get(str(groups), f"group {groups} moves")
    moving += _if_others(quality)
    header = (f"path length, {moving}", *(f"PPL({name})" for name in names))
    rows = [(row_name(row), *(_with_error(row.path_lengths[n]) for n in names)) for row in quality.rows]
    return [header, *rows]


def _copies_lines(quality: Quality, dataset: str) -> list[str]:
    lines = []
    for row in quality.rows:
        if row.copies is not None:
            lines.append(
                f"{row_name(row)}: {row.copies.count:,} of {quality.samples:,} samples are copies of training images "
                f"of {dataset} (difference below 1{_if_others(quality)}); "
                f"smallest difference {row.copies.difference.min().item():.2f}"
            )
    if lines and quality.held_out is not None:
        images, equal, copies = quality.held_out
        twice = f", without {equal:,} that equal a training image" if equal else ""
        lines.append(f"for comparison: {copies:,} of {images - equal:,} validation images of {dataset}{twice}")
    return ["", *lines] if lines else []


def _if_others(quality: Quality) -> str:
    """Return which pixels are compared, where these are not those of the other metrics."""
    shown = quality.settings.shown
    return "" if shown == quality.settings.pixels else f"; {PIXELS[shown]}"


def _with_error(estimate: Estimate, factor: float = 1.0) -> str:
    error = "" if math.isnan(estimate.standard_error) else f" ± {factor * estimate.standard_error:.3g}"
    return f"{factor * estimate.mean:.4g}{error}"


def to_dict(quality: Quality) -> dict[str, Any]:
    """Return plain values for a JSON file."""
    return {
        "samples": quality.samples,
        "reference_images": quality.reference_images,
        "part": quality.part,
        "extractors": quality.extractors,
        "settings": quality.settings._asdict(),
        "pixels_of_path_lengths_and_copies": quality.settings.shown,
        "rows": [_row_dict(row, quality) for row in quality.rows],
        "real": None if quality.real is None else _row_dict(quality.real, quality),
        "movement_per_group": plain(quality.movement),
        "movement_temperature": None if quality.movement is None else plain(quality.rows[-1].temperature),
        "copies_among_held_out_images": quality.held_out and quality.held_out._asdict(),
    }


def _row_dict(row: Row, quality: Quality) -> dict[str, Any]:
    result: dict[str, Any] = {"temperature": plain(row.temperature)}
    for name, features in row.features.items():
        result[f"fid_{name}"] = plain(features.fid)
        if features.too_few_images:
            result[f"fid_{name}_has_too_few_images"] = True
        result[f"kid_{name}"] = plain(features.kid)
        for k, manifold in (features.manifolds or {}).items():
            result |= {f"{key}_k{k}_{name}": value for key, value in manifold._asdict().items()}
    result |= {f"ppl_{name}": plain(length) for name, length in row.path_lengths.items()}
    if row.copies is not None:
        result["copies"] = row.copies.count
        result["most_alike"] = [
            {
                "seed": quality.settings.seed + index,
                "training_image": int(row.copies.nearest[index]),
                "difference": float(row.copies.difference[index]),
            }
            for index in row.copies.most_alike(MOST_ALIKE)
        ]
    if row.seconds_per_image is not None:
        result["seconds_per_image"] = row.seconds_per_image
    return result
