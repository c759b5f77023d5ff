"""Curves and heat maps of a run as numbers in the coordinates of an SVG drawing; page.html draws them."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from nvae.training.report.facts import number

WIDTH, HEIGHT = 440, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 14, 10, 24  # margins of a chart
FRAME = {"left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "height": HEIGHT}
MAX_BUCKETS = 150  # of a curve; each keeps its smallest and its largest value
MAX_COLUMNS = 120  # of a heat map
MAX_LABELS = 24  # beside a heat map
LOG_RATIO = 30  # a logarithmic axis from this ratio of the largest and the smallest value on
Curve = Sequence[tuple[float, float]]  # epochs and values


class Tick(NamedTuple):
    at: float
    label: str


class Line(NamedTuple):
    """A curve: points are (x, y, epoch, value), the last two as texts."""

    name: str
    points: list[tuple[float, float, str, str]]

    @property
    def path(self) -> str:
        return " ".join(f"{x},{y}" for x, y, _, _ in self.points)


class Chart(NamedTuple):
    """Curves with two axes. cut: whether extreme values are outside of the frame."""

    title: str
    unit: str
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    lines: list[Line]
    marks: list[Tick]  # events
    cut: bool


class HeatMap(NamedTuple):
    """The KL of every group over time, as a picture with one pixel per value."""

    src: str
    height: int
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    epochs: list[str]
    groups: list[str]
    values: list[list[str]]  # by group
    largest: str  # the value of the brightest color
    scale: str  # the colors


def chart(
    title: str, unit: str, curves: dict[str, Curve], end: float, marks: Sequence[Tick], log: bool = False
) -> Chart | None:
    """Return a Chart of curves by name, from epoch 0 to `end`; None without a value. marks: events at epochs."""
    curves = {name: thinned(curve) for name, curve in curves.items() if curve}
    values = [value for curve in curves.values() for _, value in curve]
    if not values:
        return None
    positive = [value for value in values if value > 0]
    log = log and len(positive) == len(values) and max(values) > LOG_RATIO * min(values)
    early = max((len(curve) for curve in curves.values()), default=0) // 10
    late = [value for curve in curves.values() for _, value in curve[early:]] or values
    low, high = min(values), max(values)
    usual_low, usual_high = (float(bound) for bound in np.quantile(np.array(late) / 2, (0.02, 0.98)) * 2)
    cut = not log and high / 2 - low / 2 > 3 * (usual_high / 2 - usual_low / 2) > 0
    if cut:
        low, high = usual_low, usual_high
    if log:
        low, high = math.log10(low), math.log10(high)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    low, high, end = low - margin, high + margin, end or 1.0

    def x_of(epoch: float) -> float:
        return round(LEFT + (WIDTH - LEFT - RIGHT) * min(max(epoch / end, 0.0), 1.0), 1)

    def y_of(value: float) -> float:
        value = math.log10(value) if log else value
        share = (value / 2 - low / 2) / (high / 2 - low / 2)  # halves: differences of huge numbers overflow
        return round(TOP + (HEIGHT - TOP - BOTTOM) * (1 - min(max(share, -1.0), 2.0)), 1)

    ticks = _log_ticks(low, high) if log else _ticks(low, high)
    lines = [
        Line(name, [(x_of(epoch), y_of(value), number(epoch), number(value)) for epoch, value in curve])
        for name, curve in curves.items()
    ]
    return Chart(
        title,
        unit,
        [Tick(x_of(epoch), number(epoch)) for epoch in _ticks(0, end)],
        [Tick(y_of(value), number(value)) for value in ticks],
        lines,
        [Tick(x_of(mark.at), mark.label) for mark in marks],
        cut,
    )


def thinned(curve: Curve) -> Curve:
    """Return a curve with at most two points per bucket, its smallest and its largest value, in order."""
    if len(curve) <= 2 * MAX_BUCKETS:
        return curve
    bounds = np.linspace(0, len(curve), MAX_BUCKETS + 1).astype(int)
    kept = set()
    for first, last in zip(bounds[:-1], bounds[1:], strict=True):
        bucket = range(first, last)
        kept |= {min(bucket, key=lambda i: curve[i][1]), max(bucket, key=lambda i: curve[i][1])}
    return [curve[i] for i in sorted(kept | {len(curve) - 1})]


def heat_map(groups: list[str], epochs: Sequence[float], kl_per_group: Sequence[Sequence[float]]) -> HeatMap | None:
    """Return the heat map of the KL of groups, top first, at several epochs: `kl_per_group` has a list for each."""
    from matplotlib import colormaps

    if not groups or not kl_per_group:
        return None
    columns = sorted({round(i) for i in np.linspace(0, len(epochs) - 1, min(len(epochs), MAX_COLUMNS))})
    values = np.array([kl_per_group[i] for i in columns], dtype=np.float64).T  # (groups, columns)
    largest = float(np.quantile(values, 0.98)) or 1.0
    colors = colormaps["viridis"]
    height = min(max(16 * len(groups), 110), 320)
    cell, step = height / len(groups), -(-len(groups) // MAX_LABELS)
    width = (WIDTH - LEFT - RIGHT) / len(columns)
    stride = -(-len(columns) // 6)
    return HeatMap(
        _png(colors(np.clip(values / largest, 0, 1))[..., :3]),
        round(height),
        [Tick(round(LEFT + width * (i + 0.5), 1), number(epochs[columns[i]])) for i in range(0, len(columns), stride)],
        [Tick(round(TOP + cell * (i + 0.5), 1), groups[i].partition(":")[0]) for i in range(0, len(groups), step)],
        [number(epochs[i]) for i in columns],
        groups,
        [[f"{value:.4g}" for value in row] for row in values],
        f"{largest:.3g}",
        _png(colors(np.linspace(0, 1, 64))[None, :, :3]),
    )


def _png(colors: np.ndarray[Any, Any]) -> str:
    """Return colors (H, W, 3) in [0, 1] as the data URI of a PNG file."""
    file = io.BytesIO()
    Image.fromarray((255 * colors).round().astype(np.uint8)).save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _ticks(low: float, high: float) -> list[float]:
    from matplotlib.ticker import MaxNLocator

    return [float(tick) for tick in MaxNLocator(6, steps=[1, 2, 5, 10]).tick_values(low, high) if low <= tick <= high]


def _log_ticks(low: float, high: float) -> list[float]:
    """Return round values between powers of ten."""
    exponents = range(max(math.floor(low), -300), min(math.ceil(high), 300) + 1)
    steps = (1, 2, 5) if high - low < 2 else (1,)
    ticks = [s * 10.0**e for e in exponents for s in steps if low <= e + math.log10(s) <= high]
    return ticks[:: -(-len(ticks) // 6) or 1]
