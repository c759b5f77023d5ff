import math
import re

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from nvae.training.report.charts import (
    COLORS,
    MAX_BUCKETS,
    WIDTH,
    Curves,
    curves_of,
    drawing,
    kl_over_time,
    save_png,
    thinned,
)


def drawn(chart):
    """The axes of a chart."""
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    chart.draw(axes)
    axes.figure.draw_without_rendering()
    return axes


def test_thinned_curve_keeps_ends_spikes_and_order():
    curve = [(float(i), math.sin(i)) for i in range(5000)]
    curve[1234], curve[4321] = (1234.0, 50.0), (4321.0, -50.0)
    kept = thinned(curve)
    assert len(kept) <= 2 * MAX_BUCKETS + 1
    assert {curve[1234], curve[4321], curve[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(curve[:200]) == curve[:200]


def test_curves_of_metrics_are_those_with_values_other_than_zero():
    lines = [{"step": i, "epoch": i / 2, "loss": 5 - i, "skipped_steps": 0, "fid_self": 7.0} for i in range(1, 5)]
    charts = curves_of(lines, [1.5])
    assert charts.keys() == {"Loss", "FID(self) of samples"}
    loss = charts["Loss"]
    assert (loss.curves, loss.end, loss.marks) == ({"training": [(0.5, 4), (1, 3), (1.5, 2), (2, 1)]}, 2, [1.5])
    assert curves_of([]) == {}


def test_chart_has_the_curves_from_epoch_0_and_marks():
    curve = [(1.0, 10.0), (2.0, 30.0), (4.0, 20.0)]
    axes = drawn(Curves("KL", "", 4.0, {"a": curve}, [2.0]))
    line, mark = axes.get_lines()
    assert line.get_xydata().tolist() == [list(point) for point in curve]
    assert set(mark.get_xdata()) == {2.0}
    assert axes.get_ylim()[0] < 10 and axes.get_ylim()[1] > 30


def test_chart_is_logarithmic_for_positive_values_over_a_wide_range():
    curve = [(1.0, 1.0), (2.0, 100.0), (3.0, 10_000.0)]
    assert drawn(Curves("norm", "", 3.0, {"a": curve}, log=True)).get_yscale() == "log"
    assert drawn(Curves("norm", "", 3.0, {"a": curve})).get_yscale() == "linear"
    assert drawn(Curves("norm", "", 3.0, {"a": [(0.5, 0.0), *curve]}, log=True)).get_yscale() == "linear"


def test_chart_cuts_a_high_beginning_off_and_says_so():
    curve = [(float(i), 1e6 if i < 2 else 10.0 + i % 3) for i in range(40)]
    axes = drawn(Curves("loss", "", 40.0, {"a": curve}))
    assert axes.get_ylim()[1] < 20 and len(axes.texts) == 1
    axes = drawn(Curves("loss", "", 40.0, {"a": curve[2:]}))
    assert not axes.texts


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e200, -1e200], [1e-200, 1e200], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_chart_of_extreme_values_is_finite(values, log):
    curve = [(float(i), value) for i, value in enumerate(values)]
    svg = drawing(Curves("any", "", float(len(values)), {"a": curve}, [], log)).svg
    assert "<path" in svg and not re.search(r"\b(nan|inf)\b", svg)


def test_svg_has_readable_texts_the_colors_of_the_page_and_no_addresses():
    _, _, svg, readout = drawing(Curves("KL", "", 2.0, {"a": [(1.0, 10.0), (2.0, 30.0)], "b": [(1.0, 5.0)]}, [1.0]))
    assert svg.startswith("<svg") and svg.rstrip().endswith("</svg>")
    assert ">30</text>" in svg and "//" not in svg
    assert not any(color in svg for color in COLORS.values()) and "var(--line1)" in svg
    assert readout["curves"][0] == {"name": "a", "values": [[1.0, "10"], [2.0, "30"]]}
    left, bottom, width, height = readout["area"]
    assert left * WIDTH == pytest.approx(52) and bottom + height < 1 and left + width < 1


def test_svg_escapes_names_and_reads_no_mathematics_in_them():
    lines = [{"epoch": 1.0, "kl_per_group": [1.0, 2.0]}]
    svg = drawing(kl_over_time(lines, ["<script>&", "$\\frac$"])).svg
    assert "&lt;script&gt;&amp;" in svg and "$\\frac$" in svg


def test_kl_over_time_prefers_validations_and_has_a_row_per_group():
    lines = [{"epoch": i / 2, "kl_per_group": [9.0, 9.0]} for i in range(1, 9)]
    assert np.unique(kl_over_time(lines, ["a", "b"]).values).tolist() == [9.0]
    for i in (3, 7):
        lines[i]["validation_kl_per_group"] = [0.0, float(i)]
    heat = kl_over_time(lines, ["a", "b"])
    assert heat.values.shape == (2, 160)
    assert (heat.epochs[0], heat.epochs[79], heat.epochs[80], heat.epochs[-1]) == (2, 2, 4, 4)
    assert (heat.values[1, 79], heat.values[1, 80]) == (3, 7)
    assert kl_over_time([], ["a"]) is None
    assert kl_over_time([{"epoch": 1.0}], ["a"]) is None


def test_kl_over_time_of_many_groups_has_a_line_between_levels():
    for count, lines in ((24, []), (40, [10, 39])):
        groups = [f"{i + 1}: {1 if i < 10 else 4 if i < 39 else 8}x" for i in range(count)]
        axes = Figure().add_subplot()
        kl_over_time([{"epoch": 1.0, "kl_per_group": [1.0] * count}], groups).draw(axes)
        assert [line.get_ydata()[0] for line in axes.lines] == lines
        assert len(axes.get_yticks()) <= 24


def test_png_has_the_size_and_the_metadata(tmp_path):
    save_png(Curves("KL", "nats", 1.0, {"a": [(1.0, 10.0)]}), tmp_path / "new" / "kl.png", {"step": 3})
    with Image.open(tmp_path / "new" / "kl.png") as image:
        assert (image.size, image.text["step"]) == ((880, 495), "3")
