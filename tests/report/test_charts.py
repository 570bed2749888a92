"""Axes, charts and maps: positions of the marks, and their labels."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clipx.report.axes import labeled_ticks, linear_ticks, tick_labels, value_axis
from clipx.report.charts import MAX_POINTS, LineChart, Point, line_chart, thinned
from clipx.report.maps import EDGE, HEIGHT, MIN_GAP, WIDTH, centered, map_pairs, pca

ENDS = st.tuples(st.floats(-1e6, 1e6, allow_nan=False), st.floats(1e-5, 1e6, allow_nan=False)).map(
    lambda pair: (pair[0], pair[0] + pair[1] * max(1.0, abs(pair[0]) * 1e-3))
)


@given(ENDS)
def test_ticks_lie_inside_and_are_about_five(ends: tuple[float, float]) -> None:
    low, high = ends
    ticks = linear_ticks(low, high)
    tolerance = (high - low) * 1e-6
    assert 2 <= len(ticks) <= 6
    assert low - tolerance <= ticks[0]
    assert ticks[-1] <= high + tolerance


@given(ENDS)
def test_no_two_ticks_have_the_same_label(ends: tuple[float, float]) -> None:
    ticks = linear_ticks(*ends)
    assert len(set(tick_labels(ticks))) == len(ticks)


@pytest.mark.parametrize(
    ("low", "high", "labels"),
    [
        (0, 10, ["0", "2", "4", "6", "8", "10"]),
        (0, 0.001, ["0", "0.0002", "0.0004", "0.0006", "0.0008", "0.0010"]),
        (0, 2e-5, ["0", "5e-06", "1e-05", "1.5e-05", "2e-05"]),
        (9e-4, 9.1e-4, ["0.0009", "0.000902", "0.000904", "0.000906", "0.000908", "0.00091"]),
        (0, 25000, ["0", "5k", "10k", "15k", "20k", "25k"]),
        (0, 5e6, ["0", "1M", "2M", "3M", "4M", "5M"]),
        (1.0, 1.2, ["1.00", "1.05", "1.10", "1.15", "1.20"]),
    ],
)
def test_labels_of_ticks(low: float, high: float, labels: list[str]) -> None:
    assert tick_labels(linear_ticks(low, high)) == labels


def test_an_axis_holds_its_values_and_is_logarithmic_if_they_span_much() -> None:
    plain = value_axis([2.0, 3.0], 100, 0)
    assert not plain.log
    assert 0 < plain.pixel(3.0) < plain.pixel(2.0) < 100
    wide = value_axis([1e-3, 1.0, 1000.0], 100, 0)
    assert wide.log
    assert wide.pixel(1.0) == pytest.approx(50)
    assert [label for _, label in labeled_ticks(wide)] == [
        "0.001",
        "0.01",
        "0.1",
        "1",
        "10",
        "100",
        "1,000",
    ]
    assert value_axis([5.0, 1000.0], 100, 0, from_zero=True).low == 0


def test_an_axis_over_one_value_has_a_middle() -> None:
    for value in (0.0, 5.0, -5.0):
        assert 0 < value_axis([value], 100, 0).pixel(value) <= 100


def chart_of(values: list[float]) -> LineChart:
    return line_chart("t", {"loss": [Point(float(n), value) for n, value in enumerate(values)]})


def test_a_curve_falls_where_its_values_do() -> None:
    (line,) = chart_of([10.0, 9.0, 8.0, 7.0, 6.0]).curves[0].lines
    xs = [x for x, _ in line]
    ys = [y for _, y in line]
    assert xs == sorted(xs)
    assert ys == sorted(ys)  # pixels grow downwards
    gaps = [second - first for first, second in pairwise(xs)]
    assert max(gaps) - min(gaps) < 0.2


def test_a_curve_is_broken_where_a_value_is_missing() -> None:
    chart = chart_of([1.0, 2.0, math.nan, 3.0, 4.0, math.inf, 5.0])
    assert [len(line) for line in chart.curves[0].lines] == [2, 2, 1]
    assert chart.note == "2 of 7 values are not finite and left out."


def test_a_band_is_an_outline_over_the_upper_and_back_over_the_lower_ends() -> None:
    chart = line_chart("t", {"a": [Point(0, 2, 1, 3), Point(1, 4, 3, 5), Point(2, 5)]})
    assert chart.curves[0].bands == []  # a point without an interval
    chart = line_chart("t", {"a": [Point(0, 2, 1, 3), Point(1, 4, 3, 5)]})
    (band,) = chart.curves[0].bands
    assert [x for x, _ in band] == [44, 340, 340, 44]
    upper_left, upper_right, lower_right, lower_left = (y for _, y in band)
    assert upper_right < upper_left < lower_left  # pixels grow downwards
    assert upper_left == pytest.approx(lower_right)


def test_the_columns_under_the_pointer_cover_the_drawing_without_gaps() -> None:
    chart = chart_of([1.0, 2.0, math.nan, 4.0])
    edges = [(column.left, column.left + column.width) for column in chart.columns]
    assert edges[0][0] == 44
    assert edges[-1][1] == 340
    assert all(first[1] == pytest.approx(second[0]) for first, second in pairwise(edges))
    assert [column.text for column in chart.columns] == [
        "step 0\nloss: 1",
        "step 1\nloss: 2",
        "step 3\nloss: 4",
    ]


def test_a_long_curve_keeps_its_mean_and_its_range() -> None:
    points = [Point(float(n), float((n * 7919) % 101)) for n in range(12 * MAX_POINTS)]
    means = thinned(points)
    assert len(means) == MAX_POINTS
    assert sum(p.value for p in means) / len(means) == pytest.approx(
        sum(p.value for p in points) / len(points)
    )
    assert max(p.high for p in means) == max(p.value for p in points)
    assert min(p.low for p in means) == min(p.value for p in points)
    assert thinned(points[:MAX_POINTS]) == points[:MAX_POINTS]


def test_a_chart_without_values_has_no_drawing_and_one_value_is_enough() -> None:
    assert line_chart("t", {"a": []}).newest == ""
    chart = chart_of([4.0])
    assert chart.newest == "4"
    assert len(chart.curves[0].lines) == 1


@pytest.mark.parametrize("count", [1, 2, 300])
def test_a_map_has_each_pair_once_inside_the_drawing(count: int) -> None:
    projection = pca(centered(torch.randn(count, 8), torch.randn(count, 8)))
    pairs = map_pairs(projection, [f"caption {n}" for n in range(count)], max_pictures=25)
    assert [pair.name for pair in pairs] == [f"caption {n}" for n in range(count)]
    for pair in pairs:
        for x, y in (pair.image, pair.text):
            assert EDGE <= x <= WIDTH - EDGE
            assert EDGE <= y <= HEIGHT - EDGE


def test_pictures_on_a_map_do_not_overlap() -> None:
    projection = pca(centered(torch.randn(300, 8), torch.randn(300, 8)))
    pairs = map_pairs(projection, ["caption"] * 300, max_pictures=25)
    centers = [pair.image for pair in pairs if pair.has_picture]
    assert 5 < len(centers) <= 25
    for number, (x, y) in enumerate(centers):
        for other_x, other_y in centers[:number]:
            assert max(abs(x - other_x), abs(y - other_y)) >= MIN_GAP
