"""What a run wrote down, as far as it is there."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from clipx.trackers.jsonl import read_lines
from clipx.types import UserError

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
        config = yaml.safe_load(text) or {}
    except yaml.YAMLError:
        config = {}
    names = ("metrics", "results", "quarantine", "nonfinite")
    lines = {name: read_lines(path / f"{name}.jsonl") for name in names}
    return Record(
        path,
        config_yaml=text,
        config=config if isinstance(config, dict) else {},
        versions=read_lines(path / "version.json"),
        status=_object(path / "status.json"),
        **lines,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(_text(path) or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error


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
