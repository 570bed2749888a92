"""Learning curves: a chart for each number of metrics.jsonl that is worth one."""

from __future__ import annotations

from typing import Any

from clipx.report.charts import LineChart, Point, line_chart
from clipx.report.collect import Lines
from clipx.report.formats import exact_text
from clipx.training import collapse

PREFIX = "train/"
STYLES: dict[str, dict[str, Any]] = {  # metric -> arguments of `line_chart`
    "train/loss": {"title": "Loss", "unit": "mean over the batch"},
    "train/image_to_text_accuracy": {
        "title": "In-batch accuracy",
        "unit": "image to text",
        "from_zero": True,
        "percent": True,
    },
    "train/samples_per_second": {
        "title": "Throughput",
        "unit": "samples/s over all processes",
        "from_zero": True,
    },
    "train/lr": {"title": "Learning rate", "unit": "base rate of the step", "from_zero": True},
    "train/grad_norm": {"title": "Gradient norm", "unit": "before clipping"},
    "train/scale": {"title": "Logit scale", "unit": "1 / temperature"},
}
NOT_CHARTED = ("train/clamped_steps",)
FIGURES: dict[str, dict[str, Any]] = {  # of `clipx.training.collapse` -> arguments
    "deviation": {
        "title": "Spread of features",
        "unit": "standard deviation of a dimension; 1: even, 0: one point",
        "from_zero": True,
    },
    "effective_rank": {
        "title": "Effective rank of features",
        "unit": "dimensions in use",
        "from_zero": True,
    },
    "uniformity": {"title": "Uniformity of features", "unit": "0: one point"},
    "alignment": {"title": "Alignment of positives", "unit": "squared distance", "from_zero": True},
}


def learning_curves(metrics: Lines) -> list[LineChart]:
    """The metrics of STYLES that were logged, then any other number of a training step."""
    logged: set[str] = set()
    for line in metrics:
        logged |= line.keys()
    styles = dict(STYLES)
    # Other losses and objectives log metrics of their own.
    for key in sorted(logged - STYLES.keys()):
        if key.startswith(PREFIX) and key not in NOT_CHARTED and not key.endswith("_interval"):
            name = key.removeprefix(PREFIX).replace("_", " ")
            title = name[:1].upper() + name[1:]
            styles[key] = {"title": title, "unit": key, "percent": "accuracy" in name}

    charts = []
    for key, style in styles.items():
        points = points_of(key, metrics)
        if points:
            charts.append(line_chart(series={style["title"].lower(): points}, **style))
    return [*charts, *feature_curves(metrics)]


def feature_curves(metrics: Lines) -> list[LineChart]:
    """For each figure of collapse monitoring a chart with a curve for each kind of features."""
    logged: dict[str, None] = {}
    for line in metrics:
        logged |= dict.fromkeys(key for key in line if key.startswith(collapse.PREFIX))
    charts = []
    for figure, style in FIGURES.items():
        series = {}
        for key in logged:
            name, _, of_key = key.removeprefix(collapse.PREFIX).rpartition("/")
            if of_key == figure:
                series[name] = points_of(key, metrics)
        if series:
            charts.append(line_chart(series=series, **style))
    return charts


def points_of(key: str, metrics: Lines) -> list[Point]:
    points = []
    for line in metrics:
        if key not in line:
            continue
        label = f"step {exact_text(line['step'])}"
        if line.get("samples_seen"):
            label += f", {exact_text(line['samples_seen'])} samples seen"
        points.append(Point(line["step"], line[key], label=label))
    return points


def collapse_alarms(metrics: Lines) -> list[str]:
    """The alarms of the newest line, and since when there are any without a break."""
    first_step = 0
    for line in reversed(metrics):
        if not collapse.alarms(line):
            break
        first_step = line["step"]
    messages = []
    for message in collapse.alarms(metrics[-1]) if metrics else []:
        messages.append(f"{message}; alarms since step {exact_text(first_step)}")
    return messages
