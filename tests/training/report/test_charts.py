import math

import numpy as np
import pytest

from nvae.training.report.charts import HEIGHT, MAX_BUCKETS, WIDTH, Tick, chart, heat_map, thinned


def test_thinned_curve_keeps_ends_spikes_and_order():
    curve = [(float(i), math.sin(i)) for i in range(5000)]
    curve[1234], curve[4321] = (1234.0, 50.0), (4321.0, -50.0)
    kept = thinned(curve)
    assert len(kept) <= 2 * MAX_BUCKETS + 1
    assert {curve[1234], curve[4321], curve[-1]} <= set(kept)
    assert kept == sorted(kept)
    assert thinned(curve[:200]) == curve[:200]


def test_chart_maps_larger_values_to_the_top_and_epochs_to_the_right():
    drawn = chart("KL", "", {"a": [(1.0, 10.0), (2.0, 30.0), (4.0, 20.0)]}, 4.0, [Tick(2.0, "here")])
    (line,) = drawn.lines
    xs, ys = [p[0] for p in line.points], [p[1] for p in line.points]
    assert xs[1] - xs[0] == pytest.approx((xs[2] - xs[0]) / 3, abs=0.2)
    assert ys[1] < ys[2] < ys[0]
    assert all(0 <= x <= WIDTH and 0 <= y <= HEIGHT for x, y in zip(xs, ys, strict=True))
    assert [p[3] for p in line.points] == ["10", "30", "20"]
    assert drawn.marks == [Tick(xs[1], "here")]


def test_chart_is_logarithmic_for_positive_values_over_a_wide_range():
    curve = [(1.0, 1.0), (2.0, 100.0), (3.0, 10_000.0)]
    (line,) = chart("norm", "", {"a": curve}, 3.0, [], log=True).lines
    ys = [p[1] for p in line.points]
    assert ys[0] - ys[1] == pytest.approx(ys[1] - ys[2], abs=0.2)
    (line,) = chart("norm", "", {"a": [(0.5, 0.0), *curve]}, 3.0, [], log=True).lines
    assert line.points[2][1] - line.points[3][1] > 90 * (line.points[1][1] - line.points[2][1])


def test_chart_cuts_a_high_beginning_off():
    curve = [(float(i), 1e6 if i < 2 else 10.0 + i % 3) for i in range(40)]
    drawn = chart("loss", "", {"a": curve}, 40.0, [])
    assert drawn.cut
    assert max(p[1] for p in drawn.lines[0].points) - min(p[1] for p in drawn.lines[0].points[2:]) > HEIGHT / 2
    assert not chart("loss", "", {"a": curve[2:]}, 40.0, []).cut


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.0], [1e300, -1e300], [1e-300, 1e300], [3, 3, 3]], ids=str)
@pytest.mark.parametrize("log", [False, True])
def test_chart_of_extreme_values_is_finite(values, log):
    drawn = chart("any", "", {"a": [(float(i), value) for i, value in enumerate(values)]}, len(values) - 1.0, [], log)
    numbers = [n for x, y, *_ in drawn.lines[0].points for n in (x, y)]
    numbers += [tick.at for tick in drawn.x_ticks + drawn.y_ticks]
    assert all(map(math.isfinite, numbers))


def test_chart_without_values_is_none():
    assert chart("any", "", {"a": [], "b": []}, 3.0, []) is None
    assert heat_map([], [], []) is None


def test_heat_map_has_a_row_per_group_and_at_most_120_columns():
    kl = np.arange(500)[:, None] * [0.0, 1.0, 2.0]
    heat = heat_map(["a", "b", "c"], list(range(1, 501)), kl.tolist())
    assert [len(row) for row in heat.values] == [120] * 3
    assert (heat.epochs[0], heat.epochs[-1]) == ("1", "500")
    assert (heat.values[0][-1], heat.values[2][-1]) == ("0", "998")
    assert len(heat.x_ticks) <= 7
