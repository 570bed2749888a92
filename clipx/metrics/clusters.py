"""Samples that are not independent of one another, such as pictures of one product, as clusters
that are: the values of clusters take the place of the values of samples in intervals and tests.

The variance is then that of cluster-robust standard errors (arXiv:2411.00640, 2.2).
"""

from __future__ import annotations

import torch
from torch import Tensor


def by_group(values: Tensor, group: Tensor) -> tuple[Tensor, Tensor | None]:
    """((G,) mean of each group's values, (G,) size of each group or None if all are equal).

    values: (N,); group: (N,) int64, any numbers
    """
    _, member = group.unique(return_inverse=True)
    size = torch.bincount(member)
    mean = torch.bincount(member, values.double()) / size
    if (size == size[0]).all():
        return mean, None
    return mean, size


def by_cluster(
    values: Tensor, weights: Tensor | None, clusters: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """((G,) weighted mean of each cluster's values, (G,) sum of its weights or None if all are
    equal). Their weighted mean is that of the samples. Returns values and weights as they are if no
    cluster has two samples.

    values: (N,); weights: (N,) or None; clusters: (N,) int64, any numbers, or None
    """
    if clusters is None or len(clusters.unique()) == len(values):
        return values, weights
    if weights is None:
        return by_group(values, clusters)
    _, member = clusters.unique(return_inverse=True)
    weights = weights.double()
    size = torch.bincount(member, weights)
    total = torch.bincount(member, weights * values.double())
    # A cluster of weight 0, of which no sample counts, has the mean 0.
    mean = torch.where(size > 0, total / size.clamp(min=torch.finfo(torch.float64).tiny), 0.0)
    return mean, size


def cluster_sums(values: Tensor, clusters: Tensor | None) -> Tensor:
    """(G,) float64 sums over the clusters; of independent samples the values themselves.

    values: (N,); clusters: (N,) int64, any numbers, or None
    """
    if clusters is None:
        return values.double()
    _, member = clusters.unique(return_inverse=True)
    return torch.bincount(member, values.double())
