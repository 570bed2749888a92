"""What the evaluations of results.jsonl found, with intervals, at the end and over time."""

from __future__ import annotations

from dataclasses import dataclass

from clipx.report.page import Section, grid, missing, sub, table, text
from clipx.report.record import Record, Score, SetScores, scores_of
from clipx.viz.line_chart import LineChart, Point, Series
from clipx.viz.markup import Markup, element, join
from clipx.viz.scales import exact_text, percent_text

_RATES = ("top", "R@", "mAP", "recall", "ece", "accuracy", "share", "gap", "worst", "slice")
_NO_RATES = ("modality_gap",)


@dataclass(frozen=True)
class Task:
    """directions: prefix of metrics -> its name; metrics: rest of their name -> title of a column

    over_time: the metrics that are drawn, by their title
    """

    title: str
    directions: dict[str, str]
    metrics: dict[str, str]
    over_time: dict[str, str]

    def has(self, found: SetScores) -> bool:
        return any(metric in found for metric in self.over_time)


TASKS = (
    Task(
        "Zero-shot classification",
        {"zeroshot-": ""},
        {
            "top1": "top-1 accuracy",
            "top5": "top-5 accuracy",
            "mean_per_class_recall": "mean per-class recall",
            "ece": "calibration error",
        },
        {"zeroshot-top1": "top-1 accuracy", "zeroshot-top5": "top-5 accuracy"},
    ),
    Task(
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
    ),
)


def section(record: Record) -> Section:
    scores, children = scores_of(record.results), []
    if not scores:
        why = "results.jsonl has no evaluation: give the run evaluators, or see `clipx eval RUN`."
        return Section("scores", "Evaluation", [missing(why)])
    newest = max(s.step for sets in scores.values() for found in sets.values() for s in found)
    told = f"Values of results.jsonl at step {newest:,}, with their 95 % intervals."
    children.append(text(told))
    left = dict(scores)
    for task in TASKS:
        sets = {name: found for name, found in scores.items() if task.has(found)}
        if sets:
            children += [sub(task.title), task_table(task, sets, newest), *over_time(task, sets)]
        left = {name: found for name, found in left.items() if name not in sets}
    left = {name: found for name, found in left.items() if "alignment" not in found}  # see space
    if left:
        children += [sub("Other evaluations"), other_table(left, newest)]
    return Section("scores", "Evaluation", children)


def task_table(task: Task, sets: dict[str, SetScores], newest: int) -> Markup:
    """A row for each set and direction."""
    told = any(task.directions.values())
    rows = []
    for name, found in sets.items():
        for prefix, direction in task.directions.items():
            cells = [
                cell(prefix + metric, found[prefix + metric][-1])
                if prefix + metric in found
                else ""
                for metric in task.metrics
            ]
            rows.append(
                [
                    set_name(name, found, newest),
                    *([direction] if told else []),
                    last_count(found),
                    *cells,
                ]
            )
    columns = ["set", *(["direction"] if told else []), "samples", *task.metrics.values()]
    title = f"{task.title}: value, 95 % interval"
    return table(columns, rows, title=title, numbers=[columns.index("samples")])


def other_table(sets: dict[str, SetScores], newest: int) -> Markup:
    rows = []
    for name, found in sets.items():
        for metric, values in found.items():
            if not metric.startswith("num_"):
                value, bar, ends = parts(metric, values[-1])
                shown = [set_name(name, found, newest), last_count(found), metric]
                rows.append([*shown, value, bar or "", ends or ""])
    columns = ["set", "samples", "metric", "value", "", "95 % interval"]
    return table(columns, rows, title="Other metrics, by evaluator", numbers=[1, 3])


def set_name(name: str, found: SetScores, newest: int) -> Markup:
    """With its step, where others were evaluated later."""
    step = max(score.step for values in found.values() for score in values)
    older = element("span", f"at step {step:,}", class_="interval") if step < newest else None
    return join(name, older)


def last_count(found: SetScores) -> str:
    return exact_text(found["num_samples"][-1].value) if "num_samples" in found else ""


def is_rate(metric: str) -> bool:
    return any(w in metric for w in _RATES) and not any(w in metric for w in _NO_RATES)


def value_text(metric: str, value: float) -> str:
    return percent_text(value) if is_rate(metric) else exact_text(value)


def cell(metric: str, score: Score) -> Markup:
    return join(*parts(metric, score))


def parts(metric: str, score: Score) -> tuple[Markup, Markup | None, Markup | None]:
    """The value; for a rate, it and its interval on a line from 0 to 100%; the interval."""
    value = element("strong", value_text(metric, score.value))
    if score.low is None or score.high is None:
        return value, None, None
    ends = f"{value_text(metric, score.low)} to {value_text(metric, score.high)}"
    interval = element("span", ends, class_="interval")
    if not is_rate(metric):
        return value, None, interval
    low, middle, high = (100 * min(1.0, max(0.0, v)) for v in (score.low, score.value, score.high))
    inner = element("i", style=f"left:{low:.1f}%;width:{high - low:.1f}%")
    dot = element("b", style=f"left:{middle:.1f}%")
    return value, element("span", inner, dot, class_="whisker"), interval


def over_time(task: Task, sets: dict[str, SetScores]) -> list[Markup]:
    """A chart for each set that was evaluated more than once."""
    charts = []
    for name, found in sets.items():
        drawn = {m: title for m, title in task.over_time.items() if m in found}
        series = [Series(title, [point(s) for s in found[m]]) for m, title in drawn.items()]
        if len(series[0].points) > 1:
            charts.append(LineChart(name, series, zero=True, percent=True).figure())
    if charts:
        return [grid(*charts)]
    why = "Each set was evaluated once, so there is no curve; evaluators.<set>.every asks for more."
    return [missing(why)]


def point(score: Score) -> Point:
    nan = float("nan")
    low, high = (nan if v is None else v for v in (score.low, score.high))
    return Point(score.step, score.value, low, high)
