"""Any metric per slice of a set: which group of samples fares worst, and by how much."""

from __future__ import annotations

import csv
from pathlib import Path

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import component, config
from clipx.evaluators._means import add_mean, add_value
from clipx.types import Encoder, Evaluator, Result, Setting, UserError


@config
class Config:
    """Another evaluator, and a table that says which slice each of its samples belongs to."""

    of: component("clipx.evaluators")  # type: ignore[valid-type]
    """The evaluator, one that has a value for each sample, such as zero_shot or retrieval."""
    table: str
    """A CSV file whose column `key` has the samples' keys (`0.tar/000017` in shards,
    `class/image.jpg` in folders)."""
    column: str
    """The column that names the slices, such as skin_tone or region."""
    every: str | None = None

    def build(self) -> Fairness:
        return Fairness(self.of.build(), read_column(Path(self.table), self.column))


def read_column(path: Path, column: str) -> dict[str, str]:
    """Key -> value. Raises UserError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"table of slices {path} cannot be read: {error}") from error
    there = list(rows[0]) if rows else []
    for name in ("key", column):
        if name not in there:
            raise UserError(
                f"table of slices {path} has no column {name!r}, but {', '.join(there) or 'none'}"
            )
    return {row["key"]: row[column] for row in rows}


class Fairness:
    def __init__(self, inner: Evaluator, slices: dict[str, str]) -> None:
        self.inner, self.slices = inner, slices

    def evaluate(self, encoder: Encoder, setting: Setting) -> Result:
        whole = self.inner.evaluate(encoder, setting)
        if not whole.samples:
            raise UserError("fairness.of has no value for each sample to be sliced")
        missing = [key for key in whole.keys if key not in self.slices]
        if missing:
            raise UserError(
                f"the table of slices lacks {len(missing)} of {len(whole.keys)} samples, "
                f"first {missing[0]}"
            )
        slices = [self.slices[key] for key in whole.keys]
        if len(set(slices)) < 2:
            raise UserError(
                f"all {len(slices)} samples are in one slice, {slices[0]!r}: there is no other to "
                "compare it with; choose another column"
            )
        return slice_result(whole, slices)


def slice_result(whole: Result, slices: list[str]) -> Result:
    """slices: of each sample"""
    names = sorted(set(slices))
    number = torch.tensor([names.index(name) for name in slices])
    result = Result({"num_samples": len(slices), "num_slices": len(names)}, keys=whole.keys)
    table = []
    for metric, values in whole.samples.items():
        weights = whole.weights.get(metric)
        add_mean(result, metric, values, weights)
        groups = [_slice(values, weights, number == n) for n in range(len(names))]
        means = [metrics.weighted_mean(*group) for group in groups]
        for n in sorted(range(len(names)), key=means.__getitem__):
            row = {"metric": metric, "slice": names[n], "samples": len(groups[n][0])}
            interval = metrics.share_interval(*groups[n])
            table.append(row | {"value": means[n]} | metrics.ends(interval))

        # Selected among the slices by the samples it is measured on: the interval allows for that.
        add_value(result, f"{metric}-worst_slice", min(means), metrics.worst_interval(groups))

        # No interval: the best less the worst of equal slices is above 0 by noise alone.
        add_value(result, f"{metric}-slice_gap", max(means) - min(means))
    result.tables["slices"] = table
    return result


def _slice(values: Tensor, weights: Tensor | None, rows: Tensor) -> tuple[Tensor, Tensor | None]:
    return values[rows], None if weights is None else weights[rows]
