"""`clipx compare`: whether two models differ on the same samples, by the results of evaluators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx import metrics
from clipx.results import WEIGHTS, read_samples
from clipx.types import UserError


@dataclass(frozen=True)
class Difference:
    """Two values of one metric over the samples that both have. `distinguishable`, p and the
    interval come from one test: the interval holds 0 exactly if the two are not distinguishable.

    low, high: 95 % of the difference second - first, None if too few samples differ
    p: of McNemar's exact test if all samples are right or wrong, else of sign flips
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
    """All metrics of all sets that both folders have. Raises UserError."""
    sets_first = read_samples(first)
    sets_second = read_samples(second)
    shared = [name for name in sets_first if name in sets_second]
    if not shared:
        raise UserError(
            f"{first} and {second} have no set in common: {', '.join(sets_first)} and "
            f"{', '.join(sets_second)}"
        )
    differences = []
    for name in shared:
        differences += _compare_set(name, sets_first[name], sets_second[name])
    return differences


def _compare_set(
    name: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray]
) -> list[Difference]:
    # Pair by key: a copy of the set may have its samples in another order.
    sizes = (len(first["keys"]), len(second["keys"]))
    keys, rows_first, rows_second = np.intersect1d(
        first["keys"], second["keys"], return_indices=True
    )
    if len(keys) < max(sizes):
        raise UserError(
            f"set {name} has {sizes[0]} and {sizes[1]} samples, of which {len(keys)} are the same: "
            "the two were not evaluated on the same test set"
        )
    first = {name: values[rows_first] for name, values in first.items()}
    second = {name: values[rows_second] for name, values in second.items()}
    differences = []
    for metric in first:
        if metric == "keys" or metric.startswith(WEIGHTS) or metric not in second:
            continue
        weights = first.get(WEIGHTS + metric)
        weights_second = second.get(WEIGHTS + metric, weights)
        if weights is None:
            weights = weights_second  # results of an older clipx have none
        elif weights_second is not None and not np.array_equal(weights, weights_second):
            raise UserError(
                f"set {name} has other numbers of captions an image in one of the two: they were "
                "not evaluated on the same test set"
            )
        values = (torch.from_numpy(first[metric]), torch.from_numpy(second[metric]))
        weight_tensor = None if weights is None else torch.from_numpy(weights)
        differences.append(difference(name, metric, *values, weight_tensor))
    return differences


def difference(
    name: str, metric: str, first: Tensor, second: Tensor, weights: Tensor | None = None
) -> Difference:
    """first, second: (N,) values of the same samples; weights: (N,) of the samples in the mean"""
    # One procedure for p and interval, so that they never contradict each other.
    test = metrics.paired_test(first, second, weights)
    low, high = test.interval or (None, None)
    return Difference(
        set=name,
        metric=metric,
        first=metrics.weighted_mean(first, weights),
        second=metrics.weighted_mean(second, weights),
        low=low,
        high=high,
        p=test.p,
        distinguishable=test.distinguishable,
        num_samples=len(first),
    )
