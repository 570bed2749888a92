"""How training went: one chart for each number of metrics.jsonl that is worth one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from clipx.report.page import Section, grid, missing
from clipx.report.record import Lines, Record, is_number
from clipx.viz.line_chart import LineChart, Point, Series
from clipx.viz.scales import exact_text

_PREFIX = "train/"


@dataclass(frozen=True)
class Curve:
    key: str
    title: str
    unit: str
    zero: bool = False
    percent: bool = False


CURVES = (
    Curve("train/loss", "Loss", "mean over the batch"),
    Curve("train/image_to_text_accuracy", "In-batch accuracy", "image to text", True, True),
    Curve("train/samples_per_second", "Throughput", "samples/s over all processes", True),
    Curve("train/lr", "Learning rate", "base rate of the step", True),
    Curve("train/grad_norm", "Gradient norm", "before clipping"),
    Curve("train/scale", "Logit scale", "1 / temperature"),
)
_NO_CURVE = {"train/clamped_steps"}


def section(record: Record) -> Section:
    if not record.metrics:
        return Section("curves", "Learning curves", [missing("metrics.jsonl has no line yet.")])
    charts = [chart(curve, record.metrics).figure() for curve in curves_of(record)]
    return Section("curves", "Learning curves", [grid(*charts)])


def curves_of(record: Record) -> Iterator[Curve]:
    """The known ones that were logged, then any other number of a training step."""
    there = {key for line in record.metrics for key, value in line.items() if is_number(value)}
    for curve in CURVES:
        if curve.key in there:
            yield curve
            there.discard(curve.key)
    for key in sorted(there - _NO_CURVE):
        if key.startswith(_PREFIX):
            title = key.removeprefix(_PREFIX).replace("_", " ")
            yield Curve(key, title[0].upper() + title[1:], key, percent="accuracy" in title)


def chart(curve: Curve, lines: Lines) -> LineChart:
    there = [line for line in lines if is_number(line.get(curve.key))]
    points = [
        Point(line["step"], line[curve.key], label=place(line["step"], line.get("samples_seen")))
        for line in there
    ]
    bad = sum(not math.isfinite(p.y) for p in points)
    notes = [f"{bad:,} of {len(points):,} values are not finite and left out."] if bad else []
    return LineChart(
        curve.title,
        [Series(curve.title.lower(), points)],
        unit=curve.unit,
        zero=curve.zero,
        percent=curve.percent,
        notes=notes,
    )


def place(step: int, samples: int | None) -> str:
    seen = f", {exact_text(samples)} samples seen" if samples else ""
    return f"step {exact_text(step)}{seen}"
