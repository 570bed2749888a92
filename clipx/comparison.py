"""`clipx compare`: whether two models differ on the same samples, by the results of evaluators."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clipx import metrics
from clipx.results import CLUSTERS, WEIGHTS, read_samples
from clipx.types import UserError


@dataclass(frozen=True)
class Difference:
    """Two values of one metric over the samples that both have. `distinguishable`, p and the
    interval come from one test: the interval holds 0 exactly if the two are not distinguishable.

    low, high: 95 % of the difference second - first, None if too few samples differ
    p: of McNemar's exact test if all samples are right or wrong, else of sign flips
    num_clusters: of the samples; None if they are independent
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
    num_clusters: int | None


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
    clusters = _of_both(
        CLUSTERS,
        first,
        second,
        f"set {name} has other clusters in one of the two: evaluate both with one cluster_by",
    )
    differences = []
    for metric in first:
        if metric in ("keys", CLUSTERS) or metric.startswith(WEIGHTS) or metric not in second:
            continue
        weights = _of_both(
            WEIGHTS + metric,
            first,
            second,
            f"set {name} has other numbers of captions an image in one of the two: they were not "
            "evaluated on the same test set",
        )
        values = (torch.from_numpy(first[metric]), torch.from_numpy(second[metric]))
        differences.append(difference(name, metric, *values, weights, clusters))
    return differences


def _of_both(
    key: str, first: dict[str, np.ndarray], second: dict[str, np.ndarray], fault: str
) -> Tensor | None:
    """An array that is equal in both, or that one of them has: results of an older clipx lack some.
    Raises UserError with the message `fault` if the two differ."""
    array = first.get(key, second.get(key))
    if array is None:
        return None
    if not np.array_equal(array, second.get(key, array)):
        raise UserError(fault)
    return torch.from_numpy(array)


def difference(
    name: str,
    metric: str,
    first: Tensor,
    second: Tensor,
    weights: Tensor | None = None,
    clusters: Tensor | None = None,
) -> Difference:
    """first, second: (N,) values of the same samples; weights: (N,) of the samples in the mean;
    clusters: (N,) int64, equal for samples that are not independent"""
    first_independent, weights_independent = metrics.by_cluster(first, weights, clusters)
    second_independent, _ = metrics.by_cluster(second, weights, clusters)
    # One procedure for p and interval, so that they never contradict each other.
    test = metrics.paired_test(first_independent, second_independent, weights_independent)
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
        num_clusters=None if clusters is None else len(clusters.unique()),
    )
