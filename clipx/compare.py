"""`clipx compare A B`: do two evaluations of the same samples differ by more than chance?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from clipx import metrics
from clipx.results import WEIGHTS, read_samples
from clipx.types import UserError


@dataclass(frozen=True)
class Difference:
    """Of one metric over the samples that both have. `distinguishable`, p and the interval come
    from one test: the interval holds 0 exactly where the two are not distinguishable.

    low, high: 95 % of the difference second - first, None where too few samples differ
    p: of McNemar's exact test where every sample is right or wrong, else of sign flips
    """

    set: str
    metric: str
    first: float
    second: float
    low: float | None
    high: float | None
    p: float
    distinguishable: bool
    num_samples: int


def compare(first: Path, second: Path) -> list[Difference]:
    """Every metric of every set that both folders have. Raises UserError."""
    of_first, of_second = read_samples(first), read_samples(second)
    sets = [name for name in of_first if name in of_second]
    if not sets:
        raise UserError(
            f"{first} and {second} have no set in common: {', '.join(of_first)} and "
            f"{', '.join(of_second)}"
        )
    return [found for name in sets for found in _of_set(name, of_first[name], of_second[name])]


def _of_set(
    name: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> Iterator[Difference]:
    _, rows_first, rows_second = np.intersect1d(first["keys"], second["keys"], return_indices=True)
    if len(rows_first) < max(len(first["keys"]), len(second["keys"])):
        raise UserError(
            f"set {name} has {len(first['keys'])} and {len(second['keys'])} samples, of which "
            f"{len(rows_first)} are the same: the two were not evaluated on the same test set"
        )
    for metric in first:
        if metric == "keys" or metric.startswith(WEIGHTS) or metric not in second:
            continue
        weights = _weights(first, metric, rows_first)
        other = _weights(second, metric, rows_second)
        if weights is not None and other is not None and not torch.equal(weights, other):
            raise UserError(
                f"set {name} has other numbers of captions an image in one of the two: they were "
                "not evaluated on the same test set"
            )
        yield difference(
            name,
            metric,
            torch.from_numpy(first[metric][rows_first]),
            torch.from_numpy(second[metric][rows_second]),
            # Results of an older clipx lack them.
            other if weights is None else weights,
        )


def _weights(arrays: dict[str, np.ndarray], metric: str, rows: np.ndarray) -> torch.Tensor | None:
    name = WEIGHTS + metric
    return torch.from_numpy(arrays[name][rows]) if name in arrays else None


def difference(
    name: str,
    metric: str,
    first: torch.Tensor,
    second: torch.Tensor,
    weights: torch.Tensor | None = None,
) -> Difference:
    """first, second: (N,) values of the same samples; weights: (N,) of the samples in the mean"""
    test = metrics.paired_test(first, second, weights)
    low, high = test.interval or (None, None)
    return Difference(
        name,
        metric,
        metrics.weighted_mean(first, weights),
        metrics.weighted_mean(second, weights),
        low,
        high,
        test.p,
        test.distinguishable,
        len(first),
    )


def print_comparison(found: list[Difference]) -> None:
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    table = Table("set", "metric", "samples", "A", "B", "B - A (95 %)", "p", "verdict")
    for one in found:
        verdict = "not distinguishable"
        if one.distinguishable:
            verdict = "B is higher" if one.second > one.first else "A is higher"
        shown = f"{one.second - one.first:+.2%}"
        if one.low is not None and one.high is not None:
            shown += f" ({one.low:+.2%} to {one.high:+.2%})"
        table.add_row(
            one.set,
            one.metric,
            f"{one.num_samples:,}",
            f"{one.first:.2%}",
            f"{one.second:.2%}",
            shown,
            f"{one.p:.2g}",
            verdict,
        )
    console.print(table)


def as_records(found: list[Difference]) -> list[dict[str, Any]]:
    return [vars(one) for one in found]
