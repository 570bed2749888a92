"""The last lines of a run: where it is, its best figures, and the next command."""

from __future__ import annotations

import math
import shlex
from datetime import timedelta
from pathlib import Path
from typing import Any

from clipx.trackers.jsonl import read_lines, step_of
from clipx.training.config import TrainConfig

MAX_FIGURES = 12
"""Metrics that are listed."""


def closing_text(config: TrainConfig, *, first_step: int, total: int, seconds: float) -> str:
    """The last lines of a run that has all of its steps.

    first_step: steps that it had before this start; seconds: since this start
    """
    folder = Path(config.run_dir)
    if first_step < total:
        lines = [f"finished {total:,} steps in {timedelta(seconds=int(seconds))}: {folder}"]
    else:
        lines = [
            f"already finished with {first_step:,} of {total:,} steps: {folder}",
            "  a longer duration= continues this run, another run_dir= starts a new one",
        ]
    lines += [f"  {figure}" for figure in _best_figures(folder)]
    run = shlex.quote(str(folder))
    # Curves of a run that was never measured would say little.
    following = f"clipx report {run}" if config.evaluators else f"clipx eval {run} --set TEST_SET"
    return "\n".join([*lines, f"next: {following}"])


def _best_figures(folder: Path) -> list[str]:
    """The last and the lowest loss, and the best value of each headline metric with its step, and
    with the value before the first step where that was measured."""
    figures = []
    losses = _values(read_lines(folder / "metrics.jsonl"), ("train/loss",))
    if points := losses.get("train/loss"):
        last = points[-1][0]
        lowest, step = min(points)
        figures.append(f"loss {last:.4f}, lowest {lowest:.4f} at step {step:,}")
    metrics = _values(read_lines(folder / "results.jsonl"), ("top1", "R@1", "-loss"))
    for name, points in list(metrics.items())[:MAX_FIGURES]:
        is_loss = name.endswith("-loss")
        of_trained = [point for point in points if point[1] > 0] or points
        values = [value for value, _ in of_trained]
        best = min(values) if is_loss else max(values)
        # The first of equal values: later ones have added nothing.
        step = next(step for value, step in of_trained if value == best)
        form = ".4f" if is_loss else ".2%"
        before = ""
        if points[0][1] == 0 and step > 0:
            before = f"{points[0][0]:{form}} before the first step, "
        figures.append(f"{name} {before}{best:{form}} at step {step:,}")
    if len(metrics) > MAX_FIGURES:
        figures.append(f"and {len(metrics) - MAX_FIGURES} more in results.jsonl")
    return figures


def _values(
    records: list[dict[str, Any]], endings: tuple[str, ...]
) -> dict[str, list[tuple[float, int]]]:
    """Metric -> its finite values with their steps, for the metrics with one of these endings."""
    values: dict[str, list[tuple[float, int]]] = {}
    for record in records:
        step = step_of(record)
        for name, value in record.items():
            is_number = isinstance(value, int | float) and math.isfinite(value)
            if step is not None and is_number and name.endswith(endings):
                values.setdefault(name, []).append((value, step))
    return values
