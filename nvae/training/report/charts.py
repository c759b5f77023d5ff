"""The charts of a run, drawn by matplotlib: for report.html as SVG, and as PNG files."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from nvae.data.pictures.metadata import as_texts
from nvae.system.files import atomic_write

MAX_BUCKETS = 150  # of a curve; each keeps its smallest and its largest value
MAX_DOTS = 40  # of a curve whose points are drawn as dots
COLUMNS = 160  # of a heat map
MAX_LABELS = 24  # beside a heat map
LOG_RATIO = 30  # a logarithmic axis from this ratio of the largest and the smallest value on
WIDTH, RIGHT, TOP, BOTTOM = 440, 14, 10, 25  # points of a chart on the page, and its margins
# The page replaces each color by its variable of page.css, so that a chart is readable on a dark background, too.
COLORS = {"line0": "#2f6fd6", "line1": "#d9730d", "muted": "#626d7c", "border": "#dde1e7", "warn": "#a15c00"}
TEXTS = ("text.color", "axes.labelcolor", "xtick.color", "ytick.color")
STYLE: dict[Any, Any] = dict.fromkeys(TEXTS, COLORS["muted"]) | {"grid.color": COLORS["border"], "font.size": 11}
STYLE |= {"svg.fonttype": "none", "text.parse_math": False, "xtick.major.pad": 7}  # texts stay texts
BITS = "Bits per dimension"
# Title and unit of every chart, and its curves by name.
CHARTS: tuple[tuple[str, str, dict[str, str]], ...] = (
    (BITS, "upper bound, bits", {"training": "bits_per_dimension", "validation": "validation_bits_per_dimension"}),
    ("ELBO", "nats per image", {"training": "elbo", "validation": "validation_elbo"}),
    ("FID(self) of samples", "lower is better", {"FID(self)": "fid_self"}),
    ("Precision and recall of samples", "self", {"precision": "precision_self", "recall": "recall_self"}),
    ("Loss", "", {"training": "loss"}),
    ("KL", "nats per image", {"training": "kl"}),
    ("Gradient norm", "", {"mean": "gradient_norm", "maximum": "gradient_norm_max"}),
    ("Learning rate", "", {"learning rate": "learning_rate"}),
    ("KL weight", "", {"KL weight": "kl_coefficient"}),
    ("Speed", "images per second", {"training steps": "images_per_second", "overall": "overall_images_per_second"}),
    ("Skipped steps", "since the start", {"skipped": "skipped_steps"}),
)
LOGARITHMIC = ("Gradient norm",)
Curve = Sequence[tuple[float, float]]  # epochs and values


@dataclass(frozen=True)
class Curves:
    """Curves by name, from epoch 0 to `end`. marks: the epochs of events. log: whether the axis may be logarithmic."""

    title: str
    unit: str
    end: float
    curves: dict[str, Curve]
    marks: Sequence[float] = ()
    log: bool = False

    height: ClassVar = 220  # points
    left: ClassVar = 52  # points, for numbers

    def draw(self, axes: Any) -> None:
        """Draw into the axes of matplotlib."""
        from matplotlib.ticker import LogLocator, MaxNLocator

        for index, (name, curve) in enumerate(self.curves.items()):
            dots = "o" if len(curve) <= MAX_DOTS else None
            axes.plot(*zip(*curve, strict=True), color=COLORS[f"line{index}"], label=name, marker=dots, markersize=3.5)
        for mark in self.marks:
            axes.axvline(mark, color=COLORS["warn"], linewidth=1, linestyle="--")
        values = np.array([value for curve in self.curves.values() for _, value in curve])
        low, high = values.min(), values.max()
        if self.log and low > 0 and high > LOG_RATIO * low:
            axes.set_yscale("log", subs=[])
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 100 * low else (1,)))
            axes.set_ylim(low / 1.3, high * 1.3)
        else:
            low, high = self._usual(low, high, axes)
            margin = 0.06 * (high - low) or 0.05 * abs(high) or 1
            axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
            axes.set_ylim(low - margin, high + margin)
        axes.yaxis.set_major_formatter(number)
        axes.grid(axis="y")

    def _usual(self, low: float, high: float, axes: Any) -> tuple[float, float]:
        """Return the range of the values without a few, often the first ones, that are far away from the others."""
        late = [value for curve in self.curves.values() for _, value in curve[len(curve) // 10 :]]
        usual_low, usual_high = np.quantile(late, (0.02, 0.98))
        if not high - low > 3 * (usual_high - usual_low) > 0:
            return low, high
        axes.text(1, 1, "extreme values are cut off", transform=axes.transAxes, ha="right", va="bottom", fontsize=9)
        return usual_low, usual_high

    def readout(self) -> dict[str, Any]:
        """Return the points of every curve, for page.js."""
        curves = [{"name": name, "values": [[x, number(y)] for x, y in curve]} for name, curve in self.curves.items()]
        return {"end": self.end, "curves": curves}


@dataclass(frozen=True)
class HeatMap:
    """The KL of every group, top first, from epoch 0 to `end`."""

    title: str
    unit: str
    end: float
    groups: list[str]
    epochs: list[float]  # of the columns
    values: np.ndarray[Any, Any]  # (groups, columns)

    left: ClassVar = 92  # points, for names of groups

    @property
    def height(self) -> int:
        return min(max(16 * len(self.groups), 110), 320) + TOP + BOTTOM

    def draw(self, axes: Any) -> None:
        """Draw into the axes of matplotlib, with a color bar beside them, and lines between levels of many groups."""
        count, largest = len(self.groups), float(np.quantile(self.values, 0.98)) or 1
        extent = (0, self.end, count, 0)
        image = axes.imshow(self.values, vmin=0, vmax=largest, extent=extent, aspect="auto", interpolation="none")
        labeled = range(0, count, -(-count // MAX_LABELS))
        axes.set_yticks([i + 0.5 for i in labeled], [self.groups[i] for i in labeled])
        if count > len(labeled):
            levels = [name.partition(": ")[2] for name in self.groups]
            for i in (i for i in range(1, count) if levels[i] != levels[i - 1]):
                axes.axhline(i, color="white", linewidth=0.8)
        bar = axes.figure.colorbar(image, ax=axes, pad=0.02, extend="max", format=number)
        bar.outline.set_visible(False)

    def readout(self) -> dict[str, Any]:
        """Return names, epochs and values, for page.js."""
        values = [[number(value) for value in row] for row in self.values.tolist()]
        return {"groups": self.groups, "epochs": self.epochs, "values": values}


def curves_of(metrics: list[dict[str, Any]], marks: Sequence[float] = ()) -> dict[str, Curves]:
    """Return the charts of lines of metrics by title, without those of zeros only. marks: the epochs of events."""
    end, charts = _end(metrics), {}
    for title, unit, keys in CHARTS:
        points = {name: [(x["epoch"], float(x[key])) for x in metrics if key in x] for name, key in keys.items()}
        curves = {name: thinned(curve) for name, curve in points.items() if curve}
        if any(value for curve in curves.values() for _, value in curve):
            charts[title] = Curves(title, unit, end, curves, marks, title in LOGARITHMIC)
    return charts


def kl_over_time(metrics: list[dict[str, Any]], groups: list[str]) -> HeatMap | None:
    """Return the KL per group of the validations, or of the training where there is none; None without any."""
    for key in ("validation_kl_per_group", "kl_per_group"):
        lines = [line for line in metrics if key in line]
        if lines and groups:
            end, epochs = _end(lines), [line["epoch"] for line in lines]
            # Each column has the next validation; columns have equal widths, as the axis has.
            which = np.searchsorted(epochs, (np.arange(COLUMNS) + 0.5) / COLUMNS * end).clip(max=len(lines) - 1)
            values = np.array([lines[i][key] for i in which], dtype=np.float64).T
            unit = "nats per image, the top group first"
            return HeatMap("KL per latent group", unit, end, groups, [epochs[i] for i in which], values)
    return None


def _end(metrics: list[dict[str, Any]]) -> float:
    return float(max((line["epoch"] for line in metrics), default=0)) or 1.0


def thinned(curve: Curve) -> Curve:
    """Return a curve with at most two points per bucket, its smallest and its largest value, in order."""
    if len(curve) <= 2 * MAX_BUCKETS:
        return curve
    kept = {len(curve) - 1}
    for bucket in np.array_split(np.arange(len(curve)), MAX_BUCKETS):
        kept |= {min(bucket, key=lambda i: curve[i][1]), max(bucket, key=lambda i: curve[i][1])}
    return [curve[i] for i in sorted(kept)]


class Drawing(NamedTuple):
    """A chart as an SVG element, whose texts matplotlib has escaped; readout: its values and its area for page.js."""

    title: str
    unit: str
    svg: str
    readout: dict[str, Any]


def drawing(chart: Curves | HeatMap) -> Drawing:
    """Draw a chart for the page."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    width, height, file = WIDTH - chart.left - RIGHT, chart.height - TOP - BOTTOM, io.StringIO()
    with rc_context(STYLE):
        figure = Figure(figsize=(WIDTH / 72, chart.height / 72))
        area = (chart.left / WIDTH, BOTTOM / chart.height, width / WIDTH, height / chart.height)
        axes = _draw(chart, figure.add_axes(area))
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"|^.*?(?=<svg)', "", file.getvalue(), flags=re.DOTALL)
    for name, color in COLORS.items():
        text = text.replace(color, f"var(--{name})")
    return Drawing(chart.title, chart.unit, text, chart.readout() | {"area": axes.get_position().bounds})


def save_png(chart: Curves | HeatMap, path: Path, metadata: dict[str, object]) -> None:
    """Write a chart as a PNG file with a title, a legend and metadata. Raises WriteError."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(STYLE), atomic_write(path) as temporary:
        figure = Figure(figsize=(8, 4.5), layout="constrained")
        axes = _draw(chart, figure.add_subplot(xlabel="epoch", ylabel=chart.unit))
        axes.set_title(chart.title, loc="left")
        if isinstance(chart, Curves):
            axes.legend()
        figure.savefig(temporary, format="png", dpi=110, metadata=as_texts(metadata))


def _draw(chart: Curves | HeatMap, axes: Any) -> Any:
    chart.draw(axes)
    axes.set_xlim(0, chart.end)
    axes.xaxis.set_major_formatter(number)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return axes


def number(value: float, position: int | None = None) -> str:
    """Return a number as a short text: three to five significant digits. position: on an axis, from matplotlib."""
    return f"{value:.5g}" if abs(value) < 1e5 else f"{value:.3g}"
