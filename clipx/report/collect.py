"""Read the files of a run folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.report.charts import Point
from clipx.trackers.jsonl import read_lines, step_of
from clipx.training.runs import usable_status
from clipx.types import UserError
from clipx.yaml_text import parse_mapping

Lines = list[dict[str, Any]]


SetScores = dict[str, list[Point]]
"""Metric -> its values with their 95 % intervals, oldest first."""


@dataclass(frozen=True)
class Record:
    """The files of a run folder. A missing file is an empty field.

    config: the resolved config
    versions: of code and hardware, one entry a start
    status: of the newest start
    """

    path: Path
    config_yaml: str
    config: dict[str, Any]
    versions: Lines
    metrics: Lines
    results: Lines
    quarantine: Lines
    nonfinite: Lines
    status: dict[str, Any]

    @property
    def newest_metrics(self) -> dict[str, Any]:
        return self.metrics[-1] if self.metrics else {}

    def settings(self, name: str) -> dict[str, Any]:
        """A part of the config, such as `optim`; empty if there is none."""
        part = self.config.get(name)
        return part if isinstance(part, dict) else {}

    def bad_samples_by_reason(self) -> list[tuple[tuple[str, str], int]]:
        """((stage, error), samples), most frequent first."""
        reasons: Counter[tuple[str, str]] = Counter()
        for bad in self.quarantine:
            reasons[str(bad.get("stage", "?")), str(bad.get("error", "?"))] += 1
        return reasons.most_common()

    def training_seconds(self) -> float:
        """Time of the steps, without evaluations and checkpoints, from the logged samples/s."""
        seconds = 0.0
        seen_before = 0
        for line in self.metrics:
            # The rate is the mean since the line before.
            rate = line.get("train/samples_per_second", 0)
            seen = line.get("samples_seen", seen_before)
            if rate > 0:
                seconds += max(0, seen - seen_before) / rate
            seen_before = seen
        return seconds


def read_record(path: Path) -> Record:
    """Raises UserError if there is no run."""
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; give the run_dir of a `clipx train`")
    if not (path / "config.yaml").exists() and not (path / "metrics.jsonl").exists():
        raise UserError(
            f"{path} is not a run folder: it has neither config.yaml nor metrics.jsonl; give the "
            "run_dir of a `clipx train`, for example runs/demo"
        )
    try:
        config_yaml = read_text(path / "config.yaml")
        nonfinite = read_lines(path / "nonfinite.jsonl")
        # The page counts and joins the keys. Other lines need no check: their values are shown.
        for line in nonfinite:
            if not isinstance(line.get("keys"), list):
                line["keys"] = []
        try:
            status = usable_status(json.loads(read_text(path / "status.json") or "{}"))
        except (ValueError, TypeError, RecursionError):
            status = {}  # a damaged file must not cost the rest of the report
        return Record(
            path,
            config_yaml=config_yaml,
            config=parse_mapping(config_yaml) or {},
            versions=read_lines(path / "version.json"),
            metrics=read_steps(path / "metrics.jsonl"),
            results=read_steps(path / "results.jsonl"),
            quarantine=read_lines(path / "quarantine.jsonl"),
            nonfinite=nonfinite,
            status=status,
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def read_steps(path: Path) -> Lines:
    """The lines that have a step, with their numbers and their intervals, which are pairs of
    numbers. Other programs may have written to the file."""
    lines = []
    for line in read_lines(path):
        step = step_of(line)
        if step is None or not 0 <= step < 1 << 63:
            continue
        usable = {}
        for name, value in line.items():
            if name.endswith("_interval"):
                is_usable = isinstance(value, list) and len(value) == 2 and all(map(is_real, value))
            elif name.startswith("train/") and name != "train/samples_per_second":
                # NaN and infinity stay: the page counts them.
                is_not_finite = isinstance(value, float) and not math.isfinite(value)
                is_usable = is_real(value) or is_not_finite
            else:
                is_usable = is_real(value)
            if is_usable:
                usable[name] = value
        lines.append(usable)
    return lines


def is_real(value: Any) -> bool:
    """Whether it is a finite number with which one can calculate in floats."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e300


def scores_by_set(results: Lines) -> dict[str, SetScores]:
    """Test set -> metric -> scores, from all lines of results.jsonl.

    An entry is `<set>-<metric>`, with `<set>-<metric>_interval` beside it.
    """
    scores: dict[str, SetScores] = {}
    for line in results:
        # Both parts may have hyphens. Every set has `<set>-num_samples`, which gives its name.
        sets = [key.removesuffix("-num_samples") for key in line if key.endswith("-num_samples")]
        for key, value in line.items():
            owners = [name for name in sets if key.startswith(f"{name}-")]
            if not owners or key.endswith("_interval"):
                continue
            owner = max(owners, key=len)  # pets-and-owners-R@1 is not of the set pets
            metric = key.removeprefix(f"{owner}-")
            point = Point(line["step"], float(value), *line.get(f"{key}_interval", ()))
            scores.setdefault(owner, {}).setdefault(metric, []).append(point)
    return scores
