"""Curves as inline SVG: axes, a legend where there are several, and a title under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from clipx.viz.markup import Markup, element, join
from clipx.viz.scales import Scale, axis_over, exact_text, percent_text, tick_text, ticks_of

WIDTH, HEIGHT = 350.0, 200.0
LEFT, RIGHT, TOP, BOTTOM = 44.0, 10.0, 8.0, 38.0
MOST_POINTS = 120
"""A longer curve is shown by the means of as many stretches, and its band is their range."""


@dataclass(frozen=True)
class Point:
    """y: NaN where there is no finite value; low, high: of the band; label: what x is called"""

    x: float
    y: float
    low: float = math.nan
    high: float = math.nan
    label: str = ""


@dataclass(frozen=True)
class Series:
    name: str
    points: Sequence[Point]


@dataclass(frozen=True)
class LineChart:
    """series: the first is drawn in the accent color; value: of a point, for people"""

    title: str
    series: Sequence[Series]
    unit: str = ""
    x_title: str = "step"
    zero: bool = False
    percent: bool = False
    notes: Sequence[str] = field(default_factory=list)

    def value(self, number: float) -> str:
        return percent_text(number) if self.percent else exact_text(number)

    def figure(self) -> Markup:
        """Title, newest value, legend and drawing; None of it needs a script."""
        shown = [Series(s.name, thinned(s.points)) for s in self.series]
        newest = next((p for p in reversed(shown[0].points) if math.isfinite(p.y)), None)
        if newest is None:
            why = element("p", "No finite value was logged.", class_="missing")
            return element("figure", self._caption(""), why, class_="chart")
        notes = [element("p", note, class_="note") for note in self.notes]
        drawing = self._drawing(shown)
        caption = self._caption(self.value(newest.y))
        return element("figure", caption, drawing, *notes, class_="chart")

    def _caption(self, newest: str) -> Markup:
        legend = [
            element("span", s.name, class_=f"key key-{n}") for n, s in enumerate(self.series, 1)
        ]
        return element(
            "figcaption",
            element("strong", self.title),
            element("span", newest, class_="newest") if newest else None,
            element("span", self.unit, class_="unit") if self.unit else None,
            element("span", *legend, class_="legend") if len(legend) > 1 else None,
        )

    def _drawing(self, shown: Sequence[Series]) -> Markup:
        points = [p for s in shown for p in s.points if math.isfinite(p.y)]
        values = [v for p in points for v in (p.y, p.low, p.high) if math.isfinite(v)]
        first, last = min(p.x for p in points), max(p.x for p in points)
        if first == last:
            first, last = first - 1, last + 1
        x = Scale(first, last, LEFT, WIDTH - RIGHT)
        y = axis_over(values, HEIGHT - BOTTOM, TOP, zero=self.zero)
        curves = [c for n, s in reversed([*enumerate(shown, 1)]) for c in _curve(s, n, x, y)]
        return element(
            "svg",
            element("g", *axes(x, y, self.x_title, percent=self.percent), class_="axis"),
            *curves,
            element("g", *self._hovers(shown, x, y), class_="hovers"),
            viewBox=f"0 0 {WIDTH:.0f} {HEIGHT:.0f}",
            role="img",
            aria_label=self._summary(shown),
        )

    def _summary(self, shown: Sequence[Series]) -> str:
        told = []
        for series in shown:
            finite = [p for p in series.points if math.isfinite(p.y)]
            if finite:
                ends = f"{self.value(finite[0].y)} to {self.value(finite[-1].y)}"
                told.append(f"{series.name} from {ends}")
        return f"{self.title}: {', '.join(told)}"

    def _hovers(self, shown: Sequence[Series], x: Scale, y: Scale) -> list[Markup]:
        """A column for each x, which shows its dots and its title when it is pointed at."""
        columns: dict[float, list[tuple[str, Point]]] = {}
        for series in shown:
            for point in series.points:
                if math.isfinite(point.y):
                    columns.setdefault(point.x, []).append((series.name, point))
        places = sorted(columns)
        edges = [a + (b - a) / 2 for a, b in pairwise(places)]
        out = []
        for number, place in enumerate(places):
            left = x(edges[number - 1]) if number else LEFT
            right = x(edges[number]) if number < len(edges) else WIDTH - RIGHT
            told = columns[place]
            label = told[0][1].label or f"{self.x_title} {exact_text(place)}"
            lines = [f"{name}: {self.value(p.y)}{self._band(p)}" for name, p in told]
            dots = [element("circle", cx=x(place), cy=y(p.y), r=3.5) for _, p in told]
            area = element("rect", x=left, y=TOP, width=right - left, height=HEIGHT - BOTTOM - TOP)
            title = element("title", "\n".join([label, *lines]))
            out.append(element("g", title, area, *dots))
        return out

    def _band(self, point: Point) -> str:
        if not math.isfinite(point.low) or not math.isfinite(point.high):
            return ""
        return f" ({self.value(point.low)} to {self.value(point.high)})"


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most MOST_POINTS, each the mean of a stretch of neighbors and the range of their y."""
    if len(points) <= MOST_POINTS:
        return list(points)
    out = []
    for number in range(MOST_POINTS):
        start, stop = (len(points) * n // MOST_POINTS for n in (number, number + 1))
        part = [p for p in points[start:stop] if math.isfinite(p.y)]
        if not part:
            out.append(Point(points[start].x, math.nan))
            continue
        values = [p.y for p in part]
        label = f"mean of {part[0].label or exact_text(part[0].x)} to {exact_text(part[-1].x)}"
        mean = sum(values) / len(values)
        out.append(Point(part[-1].x, mean, min(values), max(values), label))
    return out


def axes(x: Scale, y: Scale, x_title: str, *, percent: bool = False) -> list[Markup]:
    """Grid lines, ticks with their numbers, and what x is."""
    out = []
    ticks = ticks_of(y)
    for tick in ticks:
        if percent:
            text = tick_text(100 * tick, [100 * t for t in ticks]) + "%"
        else:
            text = exact_text(tick) if y.log else tick_text(tick, ticks)
        out.append(element("line", x1=x.start, x2=x.stop, y1=y(tick), y2=y(tick)))
        out.append(element("text", text, x=x.start - 6, y=y(tick) + 3.5, text_anchor="end"))
    ticks = ticks_of(x)
    for tick in ticks:
        text = tick_text(tick, ticks)
        out.append(element("text", text, x=x(tick), y=y.start + 15, text_anchor="middle"))
        out.append(element("line", x1=x(tick), x2=x(tick), y1=y.start, y2=y.start + 4))
    base = element("line", x1=x.start, x2=x.stop, y1=y.start, y2=y.start, class_="base")
    middle = (x.start + x.stop) / 2
    title = element("text", x_title, x=middle, y=y.start + 31, text_anchor="middle")
    return [*out, base, title]


def _curve(series: Series, number: int, x: Scale, y: Scale) -> list[Markup]:
    """The band, the line, broken where there is no value, and dots where points are few."""
    out, stretches = [], _stretches(series.points)
    for part in stretches:
        if all(math.isfinite(p.low) and math.isfinite(p.high) for p in part) and len(part) > 1:
            over = [f"{x(p.x):.1f},{y(p.high):.1f}" for p in part]
            under = [f"{x(p.x):.1f},{y(p.low):.1f}" for p in reversed(part)]
            out.append(element("polygon", points=" ".join(over + under), class_=f"band-{number}"))
    for part in stretches:
        path = " ".join(f"{x(p.x):.1f},{y(p.y):.1f}" for p in part)
        out.append(element("polyline", points=path, class_=f"line line-{number}"))
    if len(series.points) <= 12:
        dots = [
            element("circle", cx=x(p.x), cy=y(p.y), r=2.5)
            for p in series.points
            if math.isfinite(p.y)
        ]
        out.append(element("g", *dots, class_=f"dots-{number}"))
    return [join(*out)]


def _stretches(points: Sequence[Point]) -> list[list[Point]]:
    """Neighbors with values."""
    out: list[list[Point]] = [[]]
    for point in points:
        if math.isfinite(point.y):
            out[-1].append(point)
        elif out[-1]:
            out.append([])
    return [part for part in out if part]
