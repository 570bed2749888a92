"""Any metric per slice of a set: which group of samples fares worst, and by how much."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx import metrics
from clipx.config import component, config
from clipx.durations import DurationText
from clipx.types import Evaluator, ImageTextEncoder, Result, Setting, UserError


@config
class Config:
    """Another evaluator, and a table with the slice of each of its samples."""

    of: component("clipx.evaluators")  # type: ignore[valid-type]
    """The evaluator, one that has a value for each sample, such as zero_shot or retrieval."""
    table: str
    """A CSV file whose column `key` has the samples' keys (`0.tar/000017` in shards,
    `class/image.jpg` in folders)."""
    column: str
    """The column that names the slices, such as skin_tone or region."""
    every: DurationText | None = None
    """Interval in training, as a duration; null: at the end only."""

    def build(self) -> Fairness:
        slices = read_column(Path(self.table), self.column)
        return Fairness(self.of.build(), slices)


def read_column(path: Path, column: str) -> dict[str, str]:
    """Key -> value. Raises UserError."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"table of slices {path} cannot be read: {error}") from error
    columns = list(rows[0]) if rows else []
    for name in ("key", column):
        if name not in columns:
            raise UserError(
                f"table of slices {path} has no column {name!r}, but {', '.join(columns) or 'none'}"
            )
    return {row["key"]: row[column] for row in rows}


class Fairness:
    def __init__(self, inner: Evaluator, slices: dict[str, str]) -> None:
        """slices: key of a sample -> its slice"""
        self.inner = inner
        self.slices = slices

    def evaluate(self, encoder: ImageTextEncoder, setting: Setting) -> Result:
        whole = self.inner.evaluate(encoder, setting)
        if not whole.samples:
            raise UserError("fairness.of has no value for each sample to be sliced")
        slices = []
        missing = []
        for key in whole.keys:
            if key in self.slices:
                slices.append(self.slices[key])
            else:
                missing.append(key)
        if missing:
            raise UserError(
                f"the table of slices lacks {len(missing)} of {len(whole.keys)} samples, "
                f"first {missing[0]}"
            )
        if len(set(slices)) < 2:
            raise UserError(
                f"all {len(slices)} samples are in one slice, {slices[0]!r}: there is no other to "
                "compare it with; choose another column"
            )
        return slice_result(whole, slices)


def slice_result(whole: Result, slices: list[str]) -> Result:
    """slices: of each sample"""
    # Slice names in alphabetical order, and the number of each sample's slice.
    names, inverse = np.unique(slices, return_inverse=True)
    slice_of = torch.from_numpy(inverse)
    clusters = whole.clusters
    result = Result(keys=whole.keys, clusters=clusters)
    result.tables["slices"] = []
    for metric, values in whole.samples.items():
        weights = whole.weights.get(metric)
        metrics.add_rate(result, metric, values, weights)

        groups = []
        rows: list[dict[str, Any]] = []
        for number, name in enumerate(names.tolist()):
            members = slice_of == number
            if weights is not None and not weights[members].any():
                continue  # its captions are equal to ones of other slices, and count there
            group = metrics.by_cluster(
                values[members],
                None if weights is None else weights[members],
                None if clusters is None else clusters[members],
            )
            groups.append(group)
            row = {"metric": metric, "slice": name, "samples": int(members.sum())}
            rows.append(row | metrics.rate_row("value", *group))
        rows.sort(key=lambda row: row["value"])
        result.tables["slices"] += rows

        # The worst slice is selected by the samples it is measured on: the interval allows for it.
        worst = rows[0]["value"]
        result.add(f"{metric}-worst_slice", worst, metrics.worst_interval(groups))
        # No interval: the best less the worst of equal slices is above 0 by noise alone.
        result.add(f"{metric}-slice_gap", rows[-1]["value"] - worst)
    result.add("num_samples", len(slices))
    result.add("num_slices", len(names))
    return result
