"""Where two runs part, from their log files. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipx.config_diff import differences, setting_at
from clipx.trackers.jsonl import read_lines, step_of
from clipx.training.changeable import MAY_CHANGE, is_among
from clipx.types import UserError
from clipx.yaml_text import parse_mapping

SERIES = {
    "fingerprint": "samples and their order",
    "train/lr": "learning rate",
    "train/loss": "loss",
    "train/grad_norm": "gradient norm",
}
"""Entries of metrics.jsonl that are compared, in the order in which one causes the next."""
ROUNDING_SETTINGS = (
    "device",
    "precision",
    "micro_batch_size",
    "grad_checkpointing",
    "parallel",
    "compile",
    "pool.kind",
    "pool.chunk",
)
"""They change the order or the precision of sums, and little else."""
NO_EFFECT = tuple(
    name for name in MAY_CHANGE if name not in (*ROUNDING_SETTINGS, "data.skip", "duration")
)
"""Settings that change no number of a log line that is compared."""


@dataclass(frozen=True)
class RunLogs:
    """metrics: step -> line of metrics.jsonl; starts: lines of version.json; shards: lines of
    corpus.tsv; num_bad: lines of quarantine.jsonl"""

    path: Path
    config: dict[str, Any]
    starts: list[dict[str, Any]]
    metrics: dict[int, dict[str, Any]]
    shards: list[str]
    num_bad: int


@dataclass(frozen=True)
class Parting:
    """The first step in both logs at which an entry differs. last_equal: the one before, if any"""

    series: str
    step: int
    last_equal: int | None
    values: tuple[Any, Any]

    @property
    def relative(self) -> float | None:
        """Difference of two numbers, by the larger one."""
        a, b = self.values
        if not isinstance(a, int | float) or not isinstance(b, int | float) or a == b:
            return None
        return abs(a - b) / max(abs(a), abs(b))


@dataclass(frozen=True)
class RunDiff:
    """settings, versions: name -> the values of both
    harmless: settings that differ too, and change no number that is compared
    corpus: how the corpora differ; None if they do not
    num_common: steps that are in both logs; last_common: the last of them
    partings: of the entries that differ, in the order of SERIES
    """

    a: RunLogs
    b: RunLogs
    settings: dict[str, tuple[Any, Any]]
    harmless: list[str]
    versions: dict[str, tuple[Any, Any]]
    corpus: str | None
    num_common: int
    last_common: int | None
    partings: list[Parting]

    @property
    def first_partings(self) -> list[Parting]:
        """Those of the first step at which any entry differs."""
        first = min((parting.step for parting in self.partings), default=None)
        return [parting for parting in self.partings if parting.step == first]


def read_logs(path: Path) -> RunLogs:
    """Raises UserError."""
    config_file = path / "config.yaml"
    try:
        config = parse_mapping(config_file.read_text(encoding="utf-8", errors="replace"))
        metrics = {}
        for line in _lines(path / "metrics.jsonl"):
            step = step_of(line)
            if step is not None:
                metrics[step] = line
        table = path / "corpus.tsv"
        shards = table.read_text(errors="replace").splitlines() if table.exists() else []
        starts = _lines(path / "version.json")
        num_bad = len(_lines(path / "quarantine.jsonl"))
    except OSError as error:
        raise UserError(f"{path} is no run folder: {error}; give the run_dir of a run") from error
    if config is None:
        raise UserError(f"{config_file} is damaged, so the run cannot be compared")
    return RunLogs(path, config, starts, metrics, shards, num_bad)


def _lines(path: Path) -> list[dict[str, Any]]:
    return read_lines(path) if path.exists() else []


def compare(a: RunLogs, b: RunLogs) -> RunDiff:
    settings = {}
    harmless = []
    for name in differences(a.config, b.config):
        if is_among(name, NO_EFFECT):
            harmless.append(name)
        else:
            settings[name] = (setting_at(a.config, name), setting_at(b.config, name))
    # Of the newest start; a run that was continued elsewhere has several.
    versions = _changed(a.starts[-1] if a.starts else {}, b.starts[-1] if b.starts else {})
    common = sorted(a.metrics.keys() & b.metrics.keys())
    partings = []
    for series in SERIES:
        parting = _parting(series, a, b, common)
        if parting is not None:
            partings.append(parting)
    corpus = _corpus_difference(a, b)
    return RunDiff(
        a,
        b,
        settings,
        harmless,
        versions,
        corpus,
        num_common=len(common),
        last_common=common[-1] if common else None,
        partings=partings,
    )


def _changed(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """The entries that both have and that differ: an older version of clipx wrote fewer."""
    changed = {}
    for name in a.keys() & b.keys():
        if a[name] != b[name]:
            changed[name] = (a[name], b[name])
    return dict(sorted(changed.items()))


def _parting(series: str, a: RunLogs, b: RunLogs, common: list[int]) -> Parting | None:
    last_equal = None
    for step in common:
        values = (a.metrics[step].get(series), b.metrics[step].get(series))
        is_nan = values[0] != values[0] and values[1] != values[1]
        if values[0] != values[1] and not is_nan:
            return Parting(series, step, last_equal, values)
        last_equal = step
    return None


def _corpus_difference(a: RunLogs, b: RunLogs) -> str | None:
    """The shards that only one has, by name, size and digest."""
    if not a.shards or not b.shards or a.shards == b.shards:
        return None
    if sorted(a.shards) == sorted(b.shards):
        return "the same shards in another order"
    counts = []
    names = []
    for own, other in ((a.shards, b.shards), (b.shards, a.shards)):
        only = set(own) - set(other)
        counts.append(f"{len(only)} of {len(own)}")
        names += [line.split("\t")[0] for line in own if line in only]
    return f"{' / '.join(counts)} shards are not in the other, such as {names[0]}"
