"""How well a score separates positives from negatives."""

from __future__ import annotations

import math

import torch
from scipy.special import expit
from torch import Tensor

from clipx.metrics.distributions import binomial_interval, student_quantile
from clipx.types import Interval

MIN_TRIALS = 20  # independent positives, and negatives, below which their scatter is not known
# Trials that a sample of the rarer kind is worth if no scatter is seen: found by simulation over
# normal scores, and over scores that are right but for a few outliers.
TRIALS_PER_SAMPLE = 8


def auroc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores higher than a negative, ties
    counted half (Mann and Whitney, 1947).

    score: (N,) float; positive: (N,) bool, some of each
    """
    higher, _ = _components(score, positive)
    return higher.mean().item()


def _components(score: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(share of the negatives below each positive, share of the positives above each negative), the
    structural components of DeLong et al. (Biometrics 1988), in O(N log N) by ranks."""
    rank = _ranks(score)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    # Rank among all less rank among its own kind: the number of the other kind below it.
    higher = (rank[positive] - _ranks(score[positive])) / num_negative
    lower = 1 - (rank[~positive] - _ranks(score[~positive])) / num_positive
    return higher, lower


def _ranks(score: Tensor) -> Tensor:
    """(N,) float64 from 1; equal scores share the mean of their ranks."""
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    last_rank = count.cumsum(0).double()
    mean_rank = last_rank - (count - 1) / 2
    return mean_rank[place]


def auroc_interval(score: Tensor, positive: Tensor, group: Tensor | None = None) -> Interval | None:
    """Student's t of the logit of the area under the ROC curve, with DeLong's variance, or that of
    Obuchowski (Biometrics 1997) for samples in groups. None with fewer than MIN_TRIALS independent
    positives or negatives, or with equal scores only.

    group: (N,) int64, samples of one group are not independent; by default all are
    """
    if group is None:
        group = torch.arange(len(score))
    higher, lower = _components(score, positive)
    area = higher.mean().item()
    variance_higher, num_positive = _mean_variance(higher - area, group[positive])
    variance_lower, num_negative = _mean_variance(lower - area, group[~positive])
    variance = variance_higher + variance_lower
    trials = min(num_positive, num_negative)
    if trials < MIN_TRIALS or (variance == 0 and 0 < area < 1):
        return None

    # The variance of `trials` binomial trials is the largest possible one (van Dantzig, 1951).
    low, high = binomial_interval(area * trials, trials)
    if variance == 0:
        return low, high

    # Welch and Satterthwaite's degrees of freedom of a sum of two estimated variances.
    freedom = variance**2 / (
        variance_higher**2 / (num_positive - 1) + variance_lower**2 / (num_negative - 1)
    )
    spread = area * (1 - area)
    variance += spread / trials**2  # few samples are likely to miss the tails that scatter most
    # Near 0 and 1 few pairs are in the wrong order, and their scatter is hardly known.
    unseen = math.exp(-TRIALS_PER_SAMPLE * trials * spread)
    unseen_variance = spread / (TRIALS_PER_SAMPLE * trials)
    variance = (1 - unseen) * variance + unseen * unseen_variance
    # The derivative of the logit is 1 / spread.
    error = math.sqrt(variance) / spread
    logit = math.log(area / (1 - area))
    reach = student_quantile(freedom) * error
    low = max(low, float(expit(logit - reach)))
    high = min(high, float(expit(logit + reach)))
    return low, high


def _mean_variance(deviation: Tensor, group: Tensor) -> tuple[float, int]:
    """(variance of the mean of these deviations from it, number of groups)"""
    _, member = group.unique(return_inverse=True)
    # Deviations within a group may go together, so the sums are the independent values.
    total = torch.bincount(member, deviation)
    num_groups = len(total)
    variance = total.square().sum().item() / len(deviation) ** 2
    return variance * num_groups / max(1, num_groups - 1), num_groups
