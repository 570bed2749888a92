"""Read the files of a run folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.trackers.jsonl import read_lines, step_of
from clipx.training.runs import usable_status
from clipx.types import UserError
from clipx.yaml_text import parse_mapping

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Score:
    """Value of a metric at a step, with the ends of its 95 % interval if it has one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


SetScores = dict[str, list[Score]]
"""Metric -> its scores, oldest first."""


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
        return Record(
            path,
            config_yaml=config_yaml,
            config=parse_mapping(config_yaml) or {},
            versions=read_lines(path / "version.json"),
            metrics=read_steps(path / "metrics.jsonl"),
            results=read_steps(path / "results.jsonl"),
            quarantine=read_lines(path / "quarantine.jsonl"),
            nonfinite=read_lines(path / "nonfinite.jsonl"),
            status=read_status(path / "status.json"),
        )
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def read_status(path: Path) -> dict[str, Any]:
    try:
        return usable_status(json.loads(read_text(path) or "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}  # a damaged file must not cost the rest of the report


def read_steps(path: Path) -> Lines:
    """The lines that have a step, with their usable entries. Other programs may have written to
    the file."""
    lines = []
    for line in read_lines(path):
        step = step_of(line)
        if step is not None and 0 <= step < 1 << 63:
            lines.append(usable_entries(line))
    return lines


def usable_entries(line: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a line, and its intervals, which are pairs of numbers."""
    usable = {}
    for name, value in line.items():
        if name.endswith("_interval"):
            is_usable = is_interval(value)
        elif name.startswith("train/") and name != "train/samples_per_second":
            is_usable = is_number(value)  # may be NaN, which the page counts
        else:
            is_usable = is_number(value) and math.isfinite(value)
        if is_usable:
            usable[name] = value
    return usable


def is_number(value: Any) -> bool:
    """An int or a float with which one can calculate, or NaN or infinity."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not abs(value) > 1e300 or value in (math.inf, -math.inf)


def is_interval(value: Any) -> bool:
    if not isinstance(value, list) or len(value) != 2:
        return False
    return all(is_number(end) and math.isfinite(end) for end in value)


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
            low, high = line.get(f"{key}_interval", (None, None))
            score = Score(line["step"], float(value), low, high)
            scores.setdefault(owner, {}).setdefault(metric, []).append(score)
    return scores


def nonfinite_keys(line: dict[str, Any]) -> list[Any]:
    """Keys of the samples of a line of nonfinite.jsonl."""
    keys = line.get("keys")
    return keys if isinstance(keys, list) else []
