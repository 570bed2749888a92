"""Metrics as pure functions on tensors. Rates are fractions in [0, 1]."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def top_k_accuracy(scores: Tensor, label: Tensor, k: int) -> float:
    """Fraction of rows whose label is among the k highest scores; every class counts where there
    are fewer than k.

    scores: (N, C) float; label: (N,) int64
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return (best == label[:, None]).any(1).float().mean().item()


def mean_per_class_recall(predicted: Tensor, label: Tensor, num_classes: int) -> float:
    """Recall averaged over the classes that occur. predicted, label: (N,) int64"""
    total = torch.bincount(label, minlength=num_classes)
    right = torch.bincount(label[predicted == label], minlength=num_classes)
    seen = total > 0
    return (right[seen] / total[seen]).mean().item()


def recall_at_k(scores: Tensor, match: Tensor, k: int) -> float:
    """Fraction of queries whose best k candidates contain a match.

    scores: (N, M) float, higher is closer; match: (N, M) bool, at least one True per row
    """
    best = scores.topk(min(k, scores.shape[1]), dim=1).indices
    return match.gather(1, best).any(1).float().mean().item()


def median_rank(scores: Tensor, match: Tensor) -> float:
    """Median over queries of the rank, from 1, of the best-placed match; ties count against it.

    scores: (N, M) float; match: (N, M) bool, at least one True per row
    """
    best = scores.masked_fill(~match, -torch.inf).amax(1, keepdim=True)
    rank = ((scores >= best) & ~match).sum(1) + 1
    return rank.double().quantile(0.5).item()


def wilson_interval(rate: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Interval of a rate over `count` independent trials, 95 % by default (Wilson, JASA 1927)."""
    center = rate + z * z / (2 * count)
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)
