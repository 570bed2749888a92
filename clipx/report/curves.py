"""Learning curves: a chart for each number of metrics.jsonl that is worth one."""

from __future__ import annotations

from dataclasses import dataclass

from clipx.report.charts import LineChart, Point, line_chart
from clipx.report.collect import Lines
from clipx.report.formats import exact_text

PREFIX = "train/"


@dataclass(frozen=True)
class CurveStyle:
    """from_zero: the y axis begins at 0; percent: the values are shares"""

    title: str
    unit: str
    from_zero: bool = False
    percent: bool = False


STYLES = {
    "train/loss": CurveStyle("Loss", "mean over the batch"),
    "train/image_to_text_accuracy": CurveStyle("In-batch accuracy", "image to text", True, True),
    "train/samples_per_second": CurveStyle("Throughput", "samples/s over all processes", True),
    "train/lr": CurveStyle("Learning rate", "base rate of the step", True),
    "train/grad_norm": CurveStyle("Gradient norm", "before clipping"),
    "train/scale": CurveStyle("Logit scale", "1 / temperature"),
}
NOT_CHARTED = ("train/clamped_steps",)


def learning_curves(metrics: Lines) -> list[LineChart]:
    """The metrics of STYLES that were logged, then any other number of a training step."""
    logged: set[str] = set()
    for line in metrics:
        logged |= line.keys()
    charts = []
    for key, style in STYLES.items():
        if key in logged:
            charts.append(learning_curve(key, style, metrics))
    for key in sorted(logged - STYLES.keys()):
        if key.startswith(PREFIX) and key not in NOT_CHARTED and not key.endswith("_interval"):
            name = key.removeprefix(PREFIX).replace("_", " ")
            style = CurveStyle(name[:1].upper() + name[1:], key, percent="accuracy" in name)
            charts.append(learning_curve(key, style, metrics))
    return charts


def learning_curve(key: str, style: CurveStyle, metrics: Lines) -> LineChart:
    points = []
    for line in metrics:
        if key not in line:
            continue
        label = f"step {exact_text(line['step'])}"
        if line.get("samples_seen"):
            label += f", {exact_text(line['samples_seen'])} samples seen"
        points.append(Point(line["step"], line[key], label=label))
    return line_chart(
        style.title,
        {style.title.lower(): points},
        unit=style.unit,
        from_zero=style.from_zero,
        percent=style.percent,
    )
