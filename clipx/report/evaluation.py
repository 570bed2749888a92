"""Scores of results.jsonl: cells of the tables, and charts over time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from clipx.metrics.chance import chance_level
from clipx.report.charts import LineChart, Point, line_chart
from clipx.report.collect import SetScores
from clipx.report.formats import exact_text, percent_text
from clipx.results import is_rate


@dataclass(frozen=True)
class Task:
    """A kind of evaluation, which has a table of its own.

    directions: prefix of metrics -> its name, with a row for each
    columns: rest of the metric's name -> title
    charted: metrics that are shown over time -> title
    """

    title: str
    directions: dict[str, str]
    columns: dict[str, str]
    charted: dict[str, str]


CLASSIFICATION = Task(
    "Zero-shot classification",
    {"zeroshot-": ""},
    {
        "top1": "top-1 accuracy",
        "top5": "top-5 accuracy",
        "mean_per_class_recall": "mean per-class recall",
        "ece": "calibration error",
    },
    {"zeroshot-top1": "top-1 accuracy", "zeroshot-top5": "top-5 accuracy"},
)
RETRIEVAL = Task(
    "Retrieval",
    {"image_to_text_": "image to text", "text_to_image_": "text to image"},
    {
        "R@1": "recall@1",
        "R@5": "recall@5",
        "R@10": "recall@10",
        "mAP": "mean average precision",
        "median_rank": "median rank",
    },
    {"image_to_text_R@1": "image to text R@1", "text_to_image_R@1": "text to image R@1"},
)
TASKS = (CLASSIFICATION, RETRIEVAL)


def sets_of_task(task: Task | None, scores: dict[str, SetScores]) -> dict[str, SetScores]:
    """The sets with metrics of a task; for None those of no task, without embedding_health's, which
    have a section of their own."""
    chosen = {}
    for name, metrics in scores.items():
        tasks = [candidate for candidate in TASKS if candidate.charted.keys() & metrics]
        if task in tasks or (task is None and not tasks and "alignment" not in metrics):
            chosen[name] = metrics
    return chosen


def newest_step(metrics: SetScores) -> float:
    return max(point.step for points in metrics.values() for point in points)


def value_text(metric: str, value: float) -> str:
    return percent_text(value) if is_rate(metric) else exact_text(value)


def chance_text(metric: str, metrics: SetScores) -> str:
    """The chance level of a rate, such as `chance 0.4%`; empty where none is known, as for runs of
    before results had the number of classes."""
    counts = {}
    for name in ("num_classes", "num_samples", "num_captions", "num_repeated_captions"):
        if name in metrics:
            counts[name] = metrics[name][-1].value
    chance = chance_level(metric, counts)
    return "" if chance is None else f"chance {percent_text(chance)}"


def start_text(metric: str, metrics: SetScores) -> str:
    """The value before the first step, such as `at step 0: 12.5%`, if it was measured."""
    first, *later = metrics[metric]
    if first.step != 0 or not later:
        return ""
    return f"at step 0: {value_text(metric, first.value)}"


def interval_text(metric: str, point: Point) -> str:
    if not point.has_interval:
        return ""
    return f"{value_text(metric, point.low)} to {value_text(metric, point.high)}"


def bar(metric: str, point: Point) -> tuple[float, float, float] | None:
    """(low, value, high) of a rate with an interval, in percent of a bar; else None."""
    if not point.has_interval or not is_rate(metric):
        return None
    # Some rates, such as differences of slices, can lie outside of the bar.
    ends = np.clip((point.low, point.value, point.high), 0, 1)
    low, value, high = (100 * ends).tolist()
    return low, value, high


def over_time(task: Task, sets: dict[str, SetScores]) -> list[LineChart]:
    """A chart for each set that was evaluated more than once."""
    charts = []
    for name, metrics in sets.items():
        charts += score_chart(name, metrics, task.charted, is_share=True)
    return charts


def score_chart(
    title: str, metrics: SetScores, names: dict[str, str], *, unit: str = "", is_share: bool = False
) -> list[LineChart]:
    """A chart of those metrics, if they were measured more than once. names: metric -> series"""
    series = {name: metrics[metric] for metric, name in names.items() if metric in metrics}
    # A single point is no curve, and the tables have it already.
    if max(map(len, series.values()), default=0) < 2:
        return []
    return [line_chart(title, series, unit=unit, from_zero=is_share, percent=is_share)]
