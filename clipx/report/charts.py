"""Geometry of the line charts, in pixels. charts.svg.j2 draws it.

Own code rather than a charting library; docs/decisions.md has the measured reasons.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise

from clipx.report.axes import Axis, labeled_ticks, value_axis
from clipx.report.formats import exact_text, percent_text

# The drawing, and the edges of the area in which curves are drawn.
WIDTH, HEIGHT = 350, 200
LEFT, RIGHT, TOP, BOTTOM = 44, 340, 8, 162

MAX_POINTS = 120  # a longer curve shows the means of as many stretches, with their ranges as band
MAX_DOTS = 12  # a curve of at most so many points has a dot on each
NAN = float("nan")

Position = tuple[float, float]


@dataclass(frozen=True)
class Point:
    """A value at a step.

    low, high: ends of its interval, drawn as a band; NaN without one
    label: heading of the tooltip, by default the step
    """

    step: float
    value: float
    low: float = NAN
    high: float = NAN
    label: str = ""

    @property
    def has_interval(self) -> bool:
        return math.isfinite(self.low)


@dataclass(frozen=True)
class Curve:
    """bands: their outlines; lines: unbroken ones; dots: none on a curve of many points"""

    bands: list[list[Position]]
    lines: list[list[Position]]
    dots: list[Position]


@dataclass(frozen=True)
class Column:
    """A column of the drawing that shows its text and its dots while the pointer is over it."""

    left: float
    width: float
    text: str
    dots: list[Position]


@dataclass(frozen=True)
class LineChart:
    """A chart as charts.svg.j2 draws it.

    names: of the series; the first is drawn in the accent color
    newest: last value of the first series; empty if no value is finite, so there is no drawing
    x_ticks, y_ticks: (pixel, text)
    summary: the chart in words, for screen readers
    """

    title: str
    unit: str
    names: list[str]
    note: str = ""
    newest: str = ""
    summary: str = ""
    x_ticks: list[tuple[float, str]] = field(default_factory=list)
    y_ticks: list[tuple[float, str]] = field(default_factory=list)
    curves: list[Curve] = field(default_factory=list)
    columns: list[Column] = field(default_factory=list)


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    *,
    unit: str = "",
    from_zero: bool = False,
    percent: bool = False,
) -> LineChart:
    """Lay out a chart of one or more series over the step.

    series: name -> points by increasing step
    from_zero: the y axis begins at 0
    percent: values are shares, shown in percent
    """
    value_text = percent_text if percent else exact_text
    names = list(series)
    shown = {}
    finite = {}
    trends = []
    steps = []
    values = []
    num_points = 0
    num_finite = 0
    for name, points in series.items():
        num_points += len(points)
        num_finite += sum(math.isfinite(point.value) for point in points)
        shown[name] = thinned(points)
        finite[name] = [point for point in shown[name] if math.isfinite(point.value)]
        for point in finite[name]:
            steps.append(point.step)
            values.append(point.value)
            # The axis must hold the bands too, or they would leave the drawing.
            if point.has_interval:
                values += [point.low, point.high]
        if finite[name]:
            oldest = value_text(finite[name][0].value)
            newest = value_text(finite[name][-1].value)
            trends.append(f"{name} from {oldest} to {newest}")
    if not finite[names[0]]:
        return LineChart(title, unit, names)

    margin = 1 if min(steps) == max(steps) else 0  # a single step has no span
    x = Axis(min(steps) - margin, max(steps) + margin, LEFT, RIGHT)
    y = value_axis(values, BOTTOM, TOP, from_zero=from_zero)
    note = ""
    if num_finite < num_points:
        note = f"{num_points - num_finite:,} of {num_points:,} values are not finite and left out."
    return LineChart(
        title,
        unit,
        names,
        note=note,
        newest=value_text(finite[names[0]][-1].value),
        summary=f"{title}: {', '.join(trends)}",
        x_ticks=labeled_ticks(x),
        y_ticks=labeled_ticks(y, percent=percent),
        curves=[curve(points, x, y) for points in shown.values()],
        columns=hover_columns(finite, x, y, percent=percent),
    )


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MAX_POINTS points: means of stretches of neighbors, with their ranges as bands."""
    if len(points) <= MAX_POINTS:
        return list(points)
    means = []
    for number in range(MAX_POINTS):
        start = len(points) * number // MAX_POINTS
        stop = len(points) * (number + 1) // MAX_POINTS
        stretch = [point for point in points[start:stop] if math.isfinite(point.value)]
        if not stretch:  # the gap stays visible
            means.append(Point(points[start].step, NAN))
            continue
        first = stretch[0]
        last = stretch[-1]
        label = f"mean of {first.label or exact_text(first.step)} to {exact_text(last.step)}"
        values = [point.value for point in stretch]
        mean = sum(values) / len(values)
        means.append(Point(last.step, mean, min(values), max(values), label))
    return means


def curve(points: Sequence[Point], x: Axis, y: Axis) -> Curve:
    """Lines and bands, broken where a value is missing."""
    bands = []
    lines = []
    dots = []
    for is_finite, stretch in groupby(points, key=lambda point: math.isfinite(point.value)):
        if not is_finite:
            continue
        line = []
        upper = []
        lower = []
        for point in stretch:
            pixel = x.pixel(point.step)
            line.append((pixel, y.pixel(point.value)))
            if point.has_interval:
                upper.append((pixel, y.pixel(point.high)))
                lower.append((pixel, y.pixel(point.low)))
        lines.append(line)
        dots += line
        # A point without a band would be bridged by its neighbors' bands.
        if len(upper) == len(line) > 1:
            bands.append(upper + lower[::-1])  # along the upper ends, back along the lower ones
    return Curve(bands, lines, dots if len(points) <= MAX_DOTS else [])


def hover_columns(
    series: Mapping[str, Sequence[Point]], x: Axis, y: Axis, *, percent: bool
) -> list[Column]:
    """A column around each step, as wide as the way to its neighbors, for the values of all series.

    No script runs on the page: the browser shows the text as the tooltip of the column.
    """
    value_text = percent_text if percent else exact_text
    # The series of a chart may have been logged at different steps.
    by_step: dict[float, list[tuple[str, Point]]] = {}
    for name, points in series.items():
        for point in points:
            by_step.setdefault(point.step, []).append((name, point))
    steps = sorted(by_step)
    middles = [x.pixel((first + second) / 2) for first, second in pairwise(steps)]
    edges = pairwise([LEFT, *middles, RIGHT])
    columns = []
    for step, (left, right) in zip(steps, edges, strict=True):
        lines = [by_step[step][0][1].label or f"step {exact_text(step)}"]
        dots = []
        for name, point in by_step[step]:
            text = f"{name}: {value_text(point.value)}"
            if point.has_interval:
                text += f" ({value_text(point.low)} to {value_text(point.high)})"
            lines.append(text)
            dots.append((x.pixel(step), y.pixel(point.value)))
        columns.append(Column(left, right - left, "\n".join(lines), dots))
    return columns
