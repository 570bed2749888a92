"""Groups of embeddings found without labels, and how they agree with labels."""

from __future__ import annotations

import torch
from torch import Tensor


def k_means(rows: Tensor, clusters: int, *, seed: int = 0, restarts: int = 10) -> Tensor:
    """(N,) cluster of each of the (N, D) rows: Lloyd's algorithm from k-means++ centers, the best
    of some starts."""
    generator = torch.Generator().manual_seed(seed)
    found = [_lloyd(rows, _spread_out(rows, clusters, generator)) for _ in range(restarts)]
    return min(found, key=lambda pair: pair[1])[0]


def _spread_out(rows: Tensor, clusters: int, generator: torch.Generator) -> Tensor:
    """k-means++ (Arthur and Vassilvitskii, 2007): each next center is drawn by its squared distance
    to the nearest."""
    first = int(torch.randint(len(rows), (1,), generator=generator))
    centers = [rows[first]]
    nearest = (rows - rows[first]).square().sum(1)
    for _ in range(clusters - 1):
        weight = nearest if nearest.sum() > 0 else torch.ones_like(nearest)
        chosen = int(torch.multinomial(weight, 1, generator=generator))
        centers.append(rows[chosen])
        nearest = torch.minimum(nearest, (rows - rows[chosen]).square().sum(1))
    return torch.stack(centers)


def _lloyd(rows: Tensor, centers: Tensor, *, most_steps: int = 300) -> tuple[Tensor, float]:
    """(clusters, sum of squared distances)"""
    cluster = torch.full((len(rows),), -1)
    for _ in range(most_steps):
        distance = torch.cdist(rows, centers)
        closest = distance.argmin(1)
        if torch.equal(closest, cluster):
            break
        cluster = closest
        count = torch.bincount(cluster, minlength=len(centers))[:, None]
        total = torch.zeros_like(centers).index_add_(0, cluster, rows)
        centers = torch.where(count > 0, total / count.clamp(min=1), centers)
    best = torch.cdist(rows, centers).gather(1, cluster[:, None])
    return cluster, best.double().square().sum().item()


def normalized_mutual_information(first: Tensor, second: Tensor) -> float:
    """Of two groupings of N samples, in [0, 1]: mutual information over the mean of the two
    entropies, as scikit-learn has it. 1 where both are one group. first, second: (N,) int64"""
    joint = _table(first, second).double() / len(first)
    rows, columns = joint.sum(1, keepdim=True), joint.sum(0, keepdim=True)
    entropies = _entropy(rows), _entropy(columns)
    if max(entropies) == 0:
        return 1.0
    shared = joint[joint > 0] * (joint / (rows * columns))[joint > 0].log()
    return max(0.0, shared.sum().item()) / (sum(entropies) / 2)


def adjusted_rand_index(first: Tensor, second: Tensor) -> float:
    """Share of pairs on which two groupings agree, so shifted that chance is 0 and identity 1
    (Hubert and Arabie, 1985). first, second: (N,) int64"""
    table = _table(first, second)
    together = _pairs(table)
    rows, columns = _pairs(table.sum(1)), _pairs(table.sum(0))
    everything = len(first) * (len(first) - 1) / 2
    if rows == columns == together:
        return 1.0
    expected = rows * columns / everything
    return (together - expected) / ((rows + columns) / 2 - expected)


def _table(first: Tensor, second: Tensor) -> Tensor:
    """Contingencies (groups of first, groups of second)."""
    (_, one), (_, two) = (g.unique(return_inverse=True) for g in (first, second))
    rows, columns = int(one.max()) + 1, int(two.max()) + 1
    return torch.bincount(one * columns + two, minlength=rows * columns).view(rows, columns)


def _pairs(counts: Tensor) -> float:
    return float((counts * (counts - 1) // 2).sum())


def _entropy(share: Tensor) -> float:
    present = share[share > 0]
    return -(present * present.log()).sum().item()
