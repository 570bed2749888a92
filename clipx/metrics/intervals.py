"""How far a number can be trusted. Intervals are of 95 %; None where none can be had.

docs/evaluation.md has the coverage of each, as benchmarks/interval_coverage.py simulates it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipx.metrics.distributions import TAIL, binomial_interval, student_quantile

Interval = tuple[float, float]
FEWEST = 10
"""Deviating values without which an interval by Student's t would rest on next to nothing."""


def ends(interval: Interval | None) -> dict[str, Any]:
    """`low` and `high` of a row of a table."""
    low, high = interval or (None, None)
    return {"low": low, "high": high}


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Mean of (N,) values, by (N,) weights where they differ; the same bits in any order."""
    if weights is None:
        return math.fsum(values.tolist()) / len(values)
    weights = weights.double()
    return math.fsum((weights * values.double()).tolist()) / math.fsum(weights.tolist())


def by_group(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """((G,) mean of each group's values, (G,) size of each group), to be weighted by.

    values: (N,); group: (N,) int64, any numbers
    """
    _, member = group.unique(return_inverse=True)
    size = torch.bincount(member)
    return torch.bincount(member, values.double()) / size, size


def share_interval(
    values: Tensor, weights: Tensor | None = None, *, tail: float = TAIL
) -> Interval | None:
    """Of the mean of (N,) independent values in [0, 1]; None where some are not.

    Of zeros and ones it is the exact binomial interval. Others have that of the number of samples
    of zeros and ones that would have the variance of this mean (Korn and Graubard, Survey
    Methodology 1998).

    weights: (N,) how many equal parts each value is the mean of, such as the captions of an image
    """
    values = values.double()
    count = len(values)
    if values.min() < 0 or values.max() > 1:
        return None
    weights = torch.ones_like(values) if weights is None else weights.double()
    mean = weighted_mean(values, weights)
    alike = bool((weights == weights[0]).all())
    if alike and bool(((values == 0) | (values == 1)).all()):
        return binomial_interval(float(values.sum()), float(count), tail)
    if count < 2:
        return None
    total = weights.sum()
    deviation = weights * (values - mean) / total
    variance = deviation.square().sum().item() * count / (count - 1)
    independent = (total.square() / weights.square().sum()).item()
    # Half a sample at 0 and half a one at 1: of 100 images of which 3 fail altogether, a set often
    # shows none that does. Without these halves that covers at 91 %, with them at 95 %.
    variance += (mean**2 + (1 - mean) ** 2) / 2 / independent**2
    return effective_interval(mean, variance, independent, count - 1, tail=tail)


def effective_interval(
    rate: float, variance: float, independent: float, freedom: float, *, tail: float = TAIL
) -> Interval:
    """Of a rate whose estimate has a variance that was estimated with some degrees of freedom.

    independent: trials that the rate is worth at least. Near 0 and 1 the estimated variance means
        nothing: 50 images with all their captions found have none. Then these trials count instead.
    """
    spread = rate * (1 - rate)
    # The chance that these trials would all have been alike, and so have shown no variance.
    unseen = math.exp(-independent * spread)
    wider = student_quantile(freedom, tail) / student_quantile(math.inf, tail)
    seen = (1 - unseen) * variance * wider**2 / spread if spread > 0 else 0.0
    count = 1 / (seen + unseen / independent)
    return binomial_interval(min(1.0, rate) * count, count, tail)


def class_mean_interval(hits: Tensor, label: Tensor) -> Interval | None:
    """Of the mean of the classes' rates, for other images of the same classes.

    A class with one image shows no variance, and one with a few not much. So each class's variance
    is shrunk toward that of all images together, as if by one more image: that is too large rather
    than too small, since classes differ.

    hits: (N,) bool; label: (N,) int64
    """
    _, label, size = label.unique(return_inverse=True, return_counts=True)
    size, num_classes = size.double(), len(size)
    rate = torch.bincount(label, hits.double()) / size
    mean = rate.mean().item()
    scatter = size * rate * (1 - rate)  # the sum of squared deviations, of size - 1 free ones
    by_class = (scatter + mean * (1 - mean)) / size
    parts = by_class / size / num_classes**2
    variance = parts.sum().item()
    freedom = variance**2 / (parts.square() / size).sum().item() if variance else math.inf
    independent = num_classes**2 / (1 / size).sum().item()
    return effective_interval(mean, variance, independent, freedom)


def worst_interval(groups: Sequence[tuple[Tensor, Tensor | None]]) -> Interval | None:
    """Of the lowest mean among groups of (values, weights), corrected for the selection of it.

    The lowest of the groups' lower ends is below the truth wherever that of the worst group is. For
    the upper end, all groups' ends must hold at once: their tails are divided by the number of
    groups (Bonferroni).
    """
    lows = [share_interval(values, weights) for values, weights in groups]
    divided = TAIL / len(groups)
    highs = [share_interval(values, weights, tail=divided) for values, weights in groups]
    known = [interval for interval in (*lows, *highs) if interval is not None]
    if len(known) < 2 * len(groups):
        return None
    return min(low for low, _ in known[: len(groups)]), min(
        high for _, high in known[len(groups) :]
    )


def best_interval(groups: Sequence[tuple[Tensor, Tensor | None]]) -> Interval | None:
    """Of the highest mean among groups of (values, weights) in [0, 1], as of the lowest."""
    found = worst_interval([(1 - values.double(), weights) for values, weights in groups])
    return None if found is None else (1 - found[1], 1 - found[0])


def student_interval(values: Tensor) -> Interval | None:
    """Of the mean of (N,) independent values that may be any numbers, by Student's t. None where
    fewer than FEWEST of them deviate from the most frequent one."""
    values = values.double()
    count = len(values)
    if count - int(values.unique(return_counts=True)[1].max()) < FEWEST:
        return None
    mean = values.mean().item()
    spread = student_quantile(count - 1) * values.std().item() / math.sqrt(count)
    return mean - spread, mean + spread


def ratio_interval(numerator: Tensor, denominator: Tensor) -> Interval | None:
    """Of mean(numerator) / mean(denominator), where that is at most 1, over the same (N,) samples.

    numerator: values in [0, 1]; denominator: of zeros and ones
    """
    numerator, denominator = numerator.double(), denominator.double()
    total, count = denominator.sum().item(), len(denominator)
    ratio = numerator.sum().item() / total if total else math.inf
    if ratio > 1 or count < 2:
        return None
    deviation = numerator - ratio * denominator
    variance = deviation.square().sum().item() / total**2 * count / (count - 1)
    return effective_interval(ratio, variance, total, count - 1)


def median_interval(values: Tensor, owner: Tensor) -> Interval | None:
    """Of the median of (M,) values, which may be spread in any way: the values where their
    cumulative share enters and leaves the interval of one half (Woodruff, JASA 1952).

    owner: (M,) int64, which of the independent images each value belongs to
    """
    values = values.double()
    size = torch.bincount(owner).double()
    num_images, num_values = len(size), len(values)
    if num_images < FEWEST:
        return None
    ordered = values.sort().values
    below = (values <= ordered.quantile(0.5)).double()
    share = below.mean().item()
    error = 0.5 / math.sqrt(num_images)
    if share < 1 and num_values > num_images:
        # Values of one image may be alike: the error of the share below the median shows how much.
        by_image = torch.bincount(owner, below - share)
        clustered = by_image.square().sum().item() / num_values**2
        error = 0.5 * math.sqrt(clustered / (share * (1 - share)))
    outside = num_values * (0.5 - student_quantile(num_images - 1) * error)
    first = max(1, math.ceil(outside))
    return ordered[first - 1].item(), ordered[num_values - first].item()
