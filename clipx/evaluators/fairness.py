"""Any metric per slice of a set: which group of samples fares worst, and by how much."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clipx import metrics
from clipx.config import component, config
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
        return slice_result(whole, [self.slices[key] for key in whole.keys])


def slice_result(whole: Result, slices: list[str]) -> Result:
    """slices: of each sample"""
    names = sorted(set(slices))
    number = torch.tensor([names.index(name) for name in slices])
    values: dict[str, float] = {"num_samples": len(slices), "num_slices": len(names)}
    intervals, table = {}, []
    for metric, per_sample in whole.samples.items():
        rows = [_row(metric, name, per_sample[number == n]) for n, name in enumerate(names)]
        table += sorted(rows, key=lambda row: row["value"])
        worst = min(rows, key=lambda row: row["value"])
        values |= {
            metric: per_sample.mean().item(),
            f"{metric}-worst_slice": worst["value"],
            f"{metric}-slice_gap": _gap(per_sample, number, len(names)),
        }
        intervals |= {
            metric: metrics.mean_interval(per_sample),
            f"{metric}-worst_slice": (worst["low"], worst["high"]),
            f"{metric}-slice_gap": _gap_interval(per_sample, number, len(names)),
        }
    return Result(values, intervals, whole.keys, whole.samples, {"slices": table})


def _row(metric: str, name: str, values: Tensor) -> dict[str, Any]:
    low, high = metrics.mean_interval(values)
    mean = values.double().mean().item()
    row: dict[str, Any] = {"metric": metric, "slice": name, "samples": len(values)}
    return row | {"value": mean, "low": low, "high": high}


def _gap(values: Tensor, number: Tensor, num_slices: int) -> float:
    """The best slice's mean less the worst's."""
    total = torch.zeros(num_slices, dtype=torch.float64).index_add_(0, number, values.double())
    mean = total / torch.bincount(number, minlength=num_slices)
    return (mean.max() - mean.min()).item()


def _gap_interval(values: Tensor, number: Tensor, num_slices: int) -> tuple[float, float]:
    """Each slice is drawn separately, so that none is empty. The gap of the best to the worst is
    biased upward by noise: an interval that begins well above 0 may still come from equal slices
    where these are many and small."""
    order = number.argsort(stable=True)
    count = torch.bincount(number, minlength=num_slices)
    first = (count.cumsum(0) - count)[number[order]]
    size = count[number[order]]
    generator = torch.Generator().manual_seed(0)

    def one(_: Tensor) -> float:
        drawn = (
            first + (torch.rand(len(order), generator=generator, dtype=torch.float64) * size).long()
        )
        return _gap(values[order[drawn]], number[order], num_slices)

    return metrics.bootstrap_interval(one, 1)
