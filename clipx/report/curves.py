"""Learning curves: a chart for each number of metrics.jsonl that is worth one."""

from __future__ import annotations

from typing import Any

from clipx.report.charts import LineChart, Point, line_chart
from clipx.report.collect import Lines
from clipx.report.formats import exact_text

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
        points = []
        for line in metrics:
            if key not in line:
                continue
            label = f"step {exact_text(line['step'])}"
            if line.get("samples_seen"):
                label += f", {exact_text(line['samples_seen'])} samples seen"
            points.append(Point(line["step"], line[key], label=label))
        if points:
            charts.append(line_chart(series={style["title"].lower(): points}, **style))
    return charts
