"""Intervals of 95 %; None if the samples are too few or too alike for one.

docs/evaluation.md has the coverage of each, simulated by benchmarks/interval_coverage.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clipx.metrics.clusters import by_cluster, cluster_sums
from clipx.metrics.distributions import TAIL, binomial_interval, student_quantile
from clipx.types import Interval, Result

MIN_DEVIATING = 10  # values that differ from the most frequent one, for Student's t


def weighted_mean(values: Tensor, weights: Tensor | None = None) -> float:
    """Mean of (N,) values with (N,) weights; the same bits in any order of the samples."""
    if weights is None:
        return math.fsum(values.tolist()) / len(values)
    products = weights.double() * values.double()
    return math.fsum(products.tolist()) / math.fsum(weights.tolist())


def add_rate(result: Result, name: str, values: Tensor, weights: Tensor | None = None) -> None:
    """Add the mean of (N,) values in [0, 1] with its interval, by the clusters of the result, and
    the values themselves, which `compare` and `fairness` need."""
    result.samples[name] = values.double()
    if weights is not None:
        result.weights[name] = weights.double()
    interval = rate_interval(*by_cluster(values, weights, result.clusters))
    result.add(name, weighted_mean(values, weights), interval)


def rate_row(
    name: str, values: Tensor, weights: Tensor | None = None, clusters: Tensor | None = None
) -> dict[str, Any]:
    """The mean of (N,) values under `name`, with `low` and `high`, for a row of a table.

    clusters: see metrics.by_cluster
    """
    low, high = rate_interval(*by_cluster(values, weights, clusters)) or (None, None)
    return {name: weighted_mean(values, weights), "low": low, "high": high}


def rate_interval(
    values: Tensor, weights: Tensor | None = None, *, tail: float = TAIL
) -> Interval | None:
    """Interval of the mean of (N,) independent values in [0, 1]; None if some are outside.

    Zeros and ones have the exact binomial interval. Other values have that of as many zeros and
    ones as would give the variance of this mean (Korn and Graubard, Survey Methodology 1998).

    weights: (N,) number of equal parts each value is the mean of, such as the captions of an image;
        those of weight 0 are no samples
    """
    if weights is not None:
        values = values[weights > 0]
        weights = weights[weights > 0]
    values = values.double()
    count = len(values)
    if values.min() < 0 or values.max() > 1:
        return None
    weights = torch.ones_like(values) if weights is None else weights.double()
    is_binary = (values == 0) | (values == 1)
    if is_binary.all() and (weights == weights[0]).all():
        return binomial_interval(float(values.sum()), float(count), tail)
    if count < 2:
        return None

    mean = weighted_mean(values, weights)
    total = weights.sum()
    # A weighted mean is a ratio of sums; this is its variance by linearization.
    deviation = weights * (values - mean) / total
    variance = deviation.square().sum().item() * count / (count - 1)
    # Kish's effective number of samples: few large weights count as few samples.
    trials = (total.square() / weights.square().sum()).item()
    # Half a sample at 0 and half a one at 1: of 100 images of which 3 fail altogether, a set often
    # has none that does. Without these halves that covers at 91 %, with them at 95 %.
    variance += (mean**2 + (1 - mean) ** 2) / 2 / trials**2
    return effective_interval(mean, variance, trials, count - 1, tail=tail)


def effective_interval(
    rate: float, variance: float, trials: float, freedom: float, *, tail: float = TAIL
) -> Interval:
    """Interval of a rate with an estimated variance.

    trials: number of binomial trials that the rate is worth at least. Near 0 and 1 the estimated
        variance means nothing: 50 images with all their captions found have none. Then these trials
        count instead.
    freedom: degrees of freedom of the variance
    """
    spread = rate * (1 - rate)
    # The probability that these trials would all have been alike, and so have shown no variance.
    unseen = math.exp(-trials * spread)
    # Student's quantile exceeds the normal one as much as an interval must be wider.
    wider = student_quantile(freedom, tail) / student_quantile(math.inf, tail)
    # 1 / trials is the variance of a binomial rate over its spread: add both on that scale.
    seen = (1 - unseen) * variance * wider**2 / spread if spread > 0 else 0.0
    count = 1 / (seen + unseen / trials)
    return binomial_interval(min(1.0, rate) * count, count, tail)


def class_mean_interval(
    hits: Tensor, label: Tensor, clusters: Tensor | None = None
) -> Interval | None:
    """Interval of the mean of the classes' rates, for other images of the same classes.

    hits: (N,) bool; label: (N,) int64
    clusters: (N,) int64 of samples that are drawn together; one with images of several classes
        counts as one in each of them
    """
    _, label, count = label.unique(return_inverse=True, return_counts=True)
    num_classes = len(count)
    rate = torch.bincount(label, hits.double()) / count
    mean = rate.mean().item()

    # What is drawn again: images, or the parts of clusters in a class.
    size = count.double()
    squares = size * rate * (1 - rate)
    if clusters is not None:
        _, member = clusters.unique(return_inverse=True)
        numbers, part = (member * num_classes + label).unique(return_inverse=True)
        label_of_part = numbers % num_classes
        total_of_part = torch.bincount(part, hits.double() - rate[label])
        size_of_part = torch.bincount(part).double()
        # Kish's effective number of them in each class, and as many times their variance.
        weight = torch.bincount(label_of_part, size_of_part.square())
        size = count.square() / weight
        squares = size * torch.bincount(label_of_part, total_of_part.square()) / weight

    # A class with one image shows no variance, and one with a few not much. So each variance is
    # shrunk toward that of all images, as if by one more image: too large rather than too small.
    variance_of_class = (squares + mean * (1 - mean)) / size
    parts = variance_of_class / size / num_classes**2
    variance = parts.sum().item()
    # Satterthwaite's degrees of freedom of a sum of variances.
    freedom = math.inf
    if variance > 0:
        freedom = variance**2 / (parts.square() / size).sum().item()
    trials = num_classes**2 / (1 / size).sum().item()
    return effective_interval(mean, variance, trials, freedom)


def worst_interval(groups: Sequence[tuple[Tensor, Tensor | None]]) -> Interval | None:
    """Interval of the lowest mean among groups of (values, weights), corrected for selection."""
    lows = []
    highs = []
    for values, weights in groups:
        alone = rate_interval(values, weights)
        # All groups' upper ends must hold at once, so each has a part of the tail (Bonferroni).
        simultaneous = rate_interval(values, weights, tail=TAIL / len(groups))
        if alone is None or simultaneous is None:
            return None
        # The lowest of the lower ends is below the truth wherever that of the worst group is.
        lows.append(alone[0])
        highs.append(simultaneous[1])
    return min(lows), min(highs)


def best_interval(groups: Sequence[tuple[Tensor, Tensor | None]]) -> Interval | None:
    """Interval of the highest mean among groups of (values, weights) in [0, 1], corrected alike."""
    # The best rate of hits is one less the worst rate of misses.
    misses = worst_interval([(1 - values.double(), weights) for values, weights in groups])
    if misses is None:
        return None
    low, high = misses
    return 1 - high, 1 - low


def student_interval(values: Tensor, clusters: Tensor | None = None) -> Interval | None:
    """Interval of the mean of (N,) values of any size, by Student's t. None if fewer than
    MIN_DEVIATING of them, or of the means of clusters, differ from the most frequent one.

    clusters: (N,) int64 of values that are not independent; by default all are
    """
    values = values.double()
    independent, _ = by_cluster(values, None, clusters)
    count = len(independent)
    _, frequency = independent.unique(return_counts=True)
    if count - int(frequency.max()) < MIN_DEVIATING:
        return None
    mean = values.mean().item()
    squares = cluster_sums(values - mean, clusters).square().sum().item()
    error = math.sqrt(squares * count / (count - 1)) / len(values)
    reach = student_quantile(count - 1) * error
    return mean - reach, mean + reach


def ratio_interval(
    numerator: Tensor, denominator: Tensor, clusters: Tensor | None = None
) -> Interval | None:
    """Interval of mean(numerator) / mean(denominator) by the delta method; None above 1.

    numerator: (N,) in [0, 1]; denominator: (N,) zeros and ones of the same samples
    clusters: (N,) int64 of samples that are not independent; by default all are
    """
    numerator = cluster_sums(numerator, clusters)
    denominator = cluster_sums(denominator, clusters)
    count = len(denominator)
    total = denominator.sum().item()
    if total == 0 or count < 2:
        return None
    ratio = numerator.sum().item() / total
    if ratio > 1:  # more right under corruption than on clean pictures: no binomial rate
        return None
    deviation = numerator - ratio * denominator
    variance = deviation.square().sum().item() / total**2 * count / (count - 1)
    trials = total**2 / denominator.square().sum().item()
    return effective_interval(ratio, variance, trials, count - 1)


def median_interval(values: Tensor, owner: Tensor) -> Interval | None:
    """Interval of the median of (M,) values of any distribution: the values at which their
    cumulative share enters and leaves the interval of one half (Woodruff, JASA 1952).

    owner: (M,) int64 number of the independent image of each value
    """
    values = values.double()
    num_images = int(owner.max()) + 1
    num_values = len(values)
    if num_images < 10:
        return None
    ordered = values.sort().values
    below = (values <= ordered.quantile(0.5)).double()
    share = below.mean().item()
    error = 0.5 / math.sqrt(num_images)
    if share < 1 and num_values > num_images:
        # Values of one image may be alike: take the error of the share below the median instead.
        by_image = torch.bincount(owner, below - share)
        clustered = by_image.square().sum().item() / num_values**2
        error = 0.5 * math.sqrt(clustered / (share * (1 - share)))
    # As many values are left out at each end.
    num_outside = num_values * (0.5 - student_quantile(num_images - 1) * error)
    first = max(1, math.ceil(num_outside))
    return ordered[first - 1].item(), ordered[num_values - first].item()
