"""The health of an embedding space. Features are (N, D) float32 of unit norm."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from clipx.metrics.distributions import student_quantile
from clipx.types import Interval


def not_unit(features: Tensor) -> list[int]:
    """Numbers of the rows that are not finite or not of unit norm."""
    error = (features.float().norm(dim=1) - 1).abs()
    is_unit = error < 0.01  # False for NaN
    return torch.nonzero(~is_unit).flatten().tolist()


def squared_distances(image: Tensor, text: Tensor) -> Tensor:
    """(N,) of matching rows, 0 to 4; their mean is the alignment (arXiv:2005.10242)."""
    difference = (image - text).double()
    return difference.square().sum(1)


def uniformity(features: Tensor, *, block: int = 4096) -> float:
    """Log of the mean over pairs of exp(-2 d^2) (arXiv:2005.10242): 0 if all rows are one point,
    near -4 if they are spread over the whole sphere."""
    total = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(features), block):
        similarity = features[start : start + block] @ features.T
        # Of unit rows, d^2 = 2 - 2 cos; rounding may give less than 0.
        squared = (2 - 2 * similarity).clamp_(min=0).double()
        rows = torch.arange(len(similarity))
        squared[rows, rows + start] = torch.inf  # a row is no pair with itself
        total += (-2 * squared).exp().sum()
    num_pairs = len(features) * (len(features) - 1)
    return (total / num_pairs).log().item()


def effective_rank(features: Tensor) -> float:
    """Number of dimensions in use, 1 to D: the exponential of the entropy of the singular values'
    shares (Roy and Vetterli, 2007), of centered features."""
    features = features.double()
    singular = torch.linalg.svdvals(features - features.mean(0))
    total = singular.sum()
    if total < 1e-9:  # all rows are one point
        return 1.0
    # 0 log 0 is 0, which floats do not know.
    share = singular[singular > 1e-12 * total] / total
    entropy = -(share * share.log()).sum()
    return entropy.exp().item()


def modality_gap(image: Tensor, text: Tensor) -> float:
    """Distance of the two means, 0 to 2 (arXiv:2203.02053)."""
    gap = image.double().mean(0) - text.double().mean(0)
    return gap.norm().item()


def modality_gap_interval(image: Tensor, text: Tensor) -> Interval | None:
    """Student's t of the pairs' differences along the gap.

    The noise of the means makes their distance too long (by half its variance across the distance,
    over the distance). The interval is of the distance without that, and reaches to the value
    itself. None for a distance of less than three times the noise.
    """
    difference = image.double() - text.double()
    count = len(difference)
    mean = difference.mean(0)
    gap = mean.norm().item()
    if count < 10 or gap == 0:
        return None
    along = difference @ (mean / gap)
    # Variances of the mean. The total over all directions is that along the gap and the rest.
    variance_along = along.var().item() / count
    variance_across = difference.var(0).sum().item() / count - variance_along
    if gap < 3 * math.sqrt(variance_along + variance_across):
        return None
    center = gap - variance_across / (2 * gap)
    reach = student_quantile(count - 1) * math.sqrt(variance_along)
    return max(0.0, center - reach), max(gap, center + reach)


def mean_norm(features: Tensor) -> float:
    """Norm of the mean row: 0 if directions cancel out, 1 if all are the same."""
    return features.double().mean(0).norm().item()


def dead_dimensions(features: Tensor) -> float:
    """Share of the dimensions that vary by less than 1 % of 1 / sqrt(D), the deviation of rows that
    are spread evenly."""
    even = features.shape[1] ** -0.5
    deviation = features.double().std(0, correction=0)
    is_dead = deviation < 0.01 * even
    return is_dead.double().mean().item()


def hubness(neighbors: Tensor, num_candidates: int) -> float:
    """Skewness of how often a candidate is among the k nearest (Radovanovic et al., JMLR 2010):
    about 0 if all are equally frequent, large if a few are neighbors of most queries.

    neighbors: (N, k) int64 candidates
    """
    count = torch.bincount(neighbors.flatten(), minlength=num_candidates).double()
    deviation = count.std(correction=0)
    if deviation == 0:
        return 0.0
    standardized = (count - count.mean()) / deviation
    return standardized.pow(3).mean().item()
