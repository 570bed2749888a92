"""How well a score tells positives from negatives."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipx.metrics.distributions import binomial_interval, student_quantile
from clipx.metrics.intervals import Interval

FEWEST = 20
"""Independent positives, or negatives, without which their scatter cannot be estimated."""
TRIALS = 8
"""Trials that a sample of the rarer kind is worth where no scatter is seen: found by simulation
over normal scores and such as are right but for a few outliers."""


def auroc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties
    counted half (Mann and Whitney, 1947).

    score: (N,) float; positive: (N,) bool, some of each
    """
    higher, _ = _components(score, positive)
    return higher.mean().item()


def _components(score: Tensor, positive: Tensor) -> tuple[Tensor, Tensor]:
    """(share of the negatives below each positive, share of the positives above each negative), the
    structural components of DeLong et al. (Biometrics 1988)."""
    among_all = _ranks(score)
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    higher = (among_all[positive] - _ranks(score[positive])) / num_negative
    lower = 1 - (among_all[~positive] - _ranks(score[~positive])) / num_positive
    return higher, lower


def _ranks(score: Tensor) -> Tensor:
    """(N,) from 1, in float64; equal scores share the mean of their ranks."""
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    end = count.cumsum(0).double()
    return (end - (count - 1) / 2)[place]


def auroc_interval(score: Tensor, positive: Tensor, group: Tensor | None = None) -> Interval | None:
    """Of the area under the ROC curve: Student's t of its logit, with DeLong's variance
    (Obuchowski's, Biometrics 1997, where samples come in groups). None with fewer than FEWEST
    independent positives or negatives, or equal scores.

    group: (N,) int64, samples of one group are not independent; None: all are
    """
    higher, lower = _components(score, positive)
    group = torch.arange(len(score)) if group is None else group
    area = higher.mean().item()
    parts = [
        _mean_variance(component - area, group[chosen])
        for component, chosen in ((higher, positive), (lower, ~positive))
    ]
    fewest = min(count for _, count in parts)
    variance = sum(part for part, _ in parts)
    if fewest < FEWEST or (variance == 0 and 0 < area < 1):
        return None
    # One of `fewest` trials could not vary more, whatever the scores are like (van Dantzig, 1951).
    low, high = binomial_interval(area * fewest, fewest)
    if variance == 0:
        return low, high
    freedom = variance**2 / sum(part**2 / (count - 1) for part, count in parts)  # Satterthwaite's
    spread = area * (1 - area)
    variance += spread / fewest**2  # few samples are likely to miss the tails that scatter most
    # Near 0 and 1 few pairs are in the wrong order, and their scatter is hardly known.
    unseen = math.exp(-TRIALS * fewest * spread)
    error = math.sqrt((1 - unseen) * variance + unseen * spread / (TRIALS * fewest)) / spread
    logit = math.log(area / (1 - area))
    reach = student_quantile(freedom) * error
    return max(low, _sigmoid(logit - reach)), min(high, _sigmoid(logit + reach))


def _mean_variance(deviation: Tensor, group: Tensor) -> tuple[float, int]:
    """(variance of the mean of deviations from it, number of groups)"""
    _, member = group.unique(return_inverse=True)
    total = torch.bincount(member, deviation)
    count = len(total)
    variance = total.square().sum().item() / len(deviation) ** 2
    return variance * count / max(1, count - 1), count


def _sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


def nearest_neighbors(
    query: Tensor, candidate: Tensor, k: int, *, skip_self: bool = False, block: int = 4096
) -> tuple[Tensor, Tensor]:
    """(similarity, index), (N, k) each, best first, without the whole matrix.

    query: (N, D); candidate: (M, D); skip_self: row i of both is one sample, no neighbor of itself
    """
    parts = []
    for start in range(0, len(query), block):
        scores = query[start : start + block] @ candidate.T
        if skip_self:
            rows = torch.arange(len(scores))
            scores[rows, rows + start] = -torch.inf
        parts.append(scores.topk(k, dim=1))
    return torch.cat([p.values for p in parts]), torch.cat([p.indices for p in parts])
