"""How well a score tells positives from negatives."""

from __future__ import annotations

import torch
from torch import Tensor


def auroc(score: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the chance that a positive scores higher than a negative, ties
    counted half (Mann and Whitney, 1947).

    score: (N,) float; positive: (N,) bool, some of each
    """
    _, place, count = score.unique(return_inverse=True, return_counts=True)
    end = count.cumsum(0).double()
    rank = (end - (count - 1) / 2)[place]  # the mean of the ranks, from 1, that equal scores share
    num_positive = int(positive.sum())
    num_negative = len(positive) - num_positive
    above = rank[positive].sum().item() - num_positive * (num_positive + 1) / 2
    return above / (num_positive * num_negative)


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
