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
from clipx.engine.results import read_samples
from clipx.types import UserError

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """Of one metric over the samples that both have.

    low, high: 95 % of the difference second - first, by a paired bootstrap
    p: of McNemar's exact test where every sample is right or wrong, else None
    """

    set: str
    metric: str
    first: float
    second: float
    low: float
    high: float
    p: float | None
    num_samples: int

    @property
    def distinguishable(self) -> bool:
        if self.p is not None:
            return self.p < LEVEL
        return self.low > 0 or self.high < 0


def compare(first: Path, second: Path) -> list[Difference]:
    """Every metric of every set that both folders have. Raises UserError."""
    ours, theirs = read_samples(first), read_samples(second)
    sets = [name for name in ours if name in theirs]
    if not sets:
        raise UserError(
            f"{first} and {second} have no set in common: {', '.join(ours)} and {', '.join(theirs)}"
        )
    return [found for name in sets for found in _of_set(name, ours[name], theirs[name])]


def _of_set(
    name: str, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> Iterator[Difference]:
    _, mine, yours = np.intersect1d(ours["keys"], theirs["keys"], return_indices=True)
    if len(mine) < max(len(ours["keys"]), len(theirs["keys"])):
        raise UserError(
            f"set {name} has {len(ours['keys'])} and {len(theirs['keys'])} samples, of which "
            f"{len(mine)} are the same: the two were not evaluated on the same test set"
        )
    for metric in ours:
        if metric == "keys" or metric not in theirs:
            continue
        yield difference(
            name,
            metric,
            torch.from_numpy(ours[metric][mine]),
            torch.from_numpy(theirs[metric][yours]),
        )


def difference(name: str, metric: str, first: torch.Tensor, second: torch.Tensor) -> Difference:
    """first, second: (N,) values of the same samples"""
    binary = bool(((first == 0) | (first == 1)).all() and ((second == 0) | (second == 1)).all())
    low, high = metrics.paired_bootstrap(first, second)
    return Difference(
        name,
        metric,
        first.mean().item(),
        second.mean().item(),
        low,
        high,
        metrics.mcnemar(int((first > second).sum()), int((second > first).sum()))
        if binary
        else None,
        len(first),
    )


def print_comparison(found: list[Difference]) -> None:
    console = Console(highlight=False, width=None if Console().is_terminal else 140)
    table = Table("set", "metric", "samples", "A", "B", "B - A (95 %)", "p", "verdict")
    for one in found:
        verdict = "not distinguishable"
        if one.distinguishable:
            verdict = "B is higher" if one.second > one.first else "A is higher"
        table.add_row(
            one.set,
            one.metric,
            f"{one.num_samples:,}",
            f"{one.first:.2%}",
            f"{one.second:.2%}",
            f"{one.second - one.first:+.2%} ({one.low:+.2%} to {one.high:+.2%})",
            "" if one.p is None else f"{one.p:.2g}",
            verdict,
        )
    console.print(table)


def as_records(found: list[Difference]) -> list[dict[str, Any]]:
    return [vars(one) | {"distinguishable": one.distinguishable} for one in found]
