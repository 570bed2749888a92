"""What a run wrote down, as far as it is there."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.trackers.jsonl import read_lines, step_of
from clipx.training.runs import usable_status
from clipx.types import UserError
from clipx.yaml_text import parse_mapping

Lines = list[dict[str, Any]]


@dataclass(frozen=True)
class Record:
    """The files of a run folder; what is missing is empty.

    config: as it was resolved; versions: one of each start; status: of the newest start
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


def read_record(path: Path) -> Record:
    """Raises UserError where there is no run."""
    if not path.is_dir():
        raise UserError(f"{path} is no folder; give the run_dir of a `clipx train`")
    if not any((path / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        raise UserError(
            f"{path} is no run folder: it has neither config.yaml nor metrics.jsonl; give the "
            "run_dir of a `clipx train`, for example runs/demo"
        )
    text = _text(path / "config.yaml")
    try:
        names = ("metrics", "results", "quarantine", "nonfinite")
        lines = {name: read_lines(path / f"{name}.jsonl") for name in names}
        versions = read_lines(path / "version.json")
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    lines["metrics"] = [_numbers(line) for line in lines["metrics"] if _has_step(line)]
    lines["results"] = [_numbers(line) for line in lines["results"] if _has_step(line)]
    return Record(
        path,
        config_yaml=text,
        config=parse_mapping(text) or {},
        versions=versions,
        status=_status(path / "status.json"),
        **lines,
    )


def _has_step(line: dict[str, Any]) -> bool:
    """Whether a run has written the line; other programs may have written to the file."""
    step = step_of(line)
    return step is not None and 0 <= step < 1 << 63


def _numbers(line: dict[str, Any]) -> dict[str, Any]:
    """The numbers of a line, and its intervals, which are pairs of numbers. Only what training
    measures may be infinite or NaN."""
    kept: dict[str, Any] = {}
    for name, value in line.items():
        if name.endswith("_interval"):
            is_usable = _is_interval(value)
        elif is_number(value):
            measured = name.startswith("train/") and name != "train/samples_per_second"
            is_usable = measured or math.isfinite(value)
        else:
            is_usable = False
        if is_usable:
            kept[name] = value
    return kept


def _is_interval(value: Any) -> bool:
    is_pair = isinstance(value, list) and len(value) == 2
    return is_pair and all(is_number(end) and math.isfinite(end) for end in value)


def is_number(value: Any) -> bool:
    """An int or a float that a drawing can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return not abs(value) > 1e300 or value in (math.inf, -math.inf)


def _status(path: Path) -> dict[str, Any]:
    try:
        return usable_status(json.loads(_text(path) or "{}"))
    except (ValueError, TypeError, RecursionError):
        return {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error}") from error


def settings(config: dict[str, Any], name: str) -> dict[str, Any]:
    """A part of the config, such as `optim`; empty where there is none."""
    part = config.get(name)
    return part if isinstance(part, dict) else {}


@dataclass(frozen=True)
class Score:
    """One metric of one evaluation; low, high: its 95 % interval, where it has one."""

    step: int
    value: float
    low: float | None = None
    high: float | None = None


SetScores = dict[str, list[Score]]
"""Metric -> its values, oldest first."""


def scores_of(results: Lines) -> dict[str, SetScores]:
    """Set -> metric -> values, of all lines of results.jsonl.

    A line has `<set>-<metric>`, and `<set>-<metric>_interval` beside it; every set tells
    `<set>-num_samples`, so its name is known even where it has hyphens.
    """
    out: dict[str, SetScores] = {}
    ending, suffix = "-num_samples", "_interval"
    for line in results:
        sets = sorted((k.removesuffix(ending) for k in line if k.endswith(ending)), key=len)
        for key, value in line.items():
            owners = [name for name in sets if key.startswith(f"{name}-")]
            if not owners or key.endswith(suffix) or not isinstance(value, int | float):
                continue
            metric = key.removeprefix(f"{owners[-1]}-")
            low, high = line.get(key + suffix) or (None, None)
            score = Score(int(line["step"]), float(value), low, high)
            out.setdefault(owners[-1], {}).setdefault(metric, []).append(score)
    return out
