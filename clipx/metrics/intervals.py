"""How far a number can be trusted, and whether two numbers differ. Intervals are of 95 %."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

RESAMPLES = 1000
Interval = tuple[float, float]


def wilson_interval(rate: float, count: int, z: float = 1.96) -> Interval:
    """Interval of a rate over `count` independent trials, 95 % by default (Wilson, JASA 1927)."""
    center = rate + z * z / (2 * count)
    spread = z * math.sqrt(rate * (1 - rate) / count + z * z / (4 * count * count))
    scale = 1 + z * z / count
    return max(0.0, (center - spread) / scale), min(1.0, (center + spread) / scale)


def bootstrap_interval(
    statistic: Callable[[Tensor], float],
    count: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Interval:
    """The middle 95 % of a statistic over resamples of the samples (Efron's percentile interval).

    statistic: of the samples whose (count,) indices it is given, with repetitions
    """
    generator = torch.Generator().manual_seed(seed)
    values = [
        statistic(torch.randint(count, (count,), generator=generator)) for _ in range(resamples)
    ]
    low, high = torch.tensor(values, dtype=torch.float64).quantile(_TAILS).tolist()
    return low, high


def mean_interval(values: Tensor) -> Interval:
    """Wilson's where each of the (N,) values is 0 or 1, else a bootstrap's."""
    values = values.double()
    if ((values == 0) | (values == 1)).all():
        return wilson_interval(values.mean().item(), len(values))
    return bootstrap_interval(lambda i: values[i].mean().item(), len(values))


def median_interval(values: Tensor, count: int, z: float = 1.96) -> Interval:
    """Of the median of (N,) values, by order statistics: no assumption on how they are spread.

    count: how many of the values are independent
    """
    spread = z * 0.5 / math.sqrt(count)
    places = torch.tensor([0.5 - spread, 0.5 + spread], dtype=torch.float64).clamp_(0, 1)
    low, high = values.double().quantile(places).tolist()
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (Psychometrika 1947): how probable so uneven a
    split is of the samples that one of two models alone gets right, were the two equally good."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count == 0:
        return 1.0
    k = torch.arange(fewer + 1, dtype=torch.float64)
    log_choose = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    return min(1.0, 2 * (log_choose - count * math.log(2)).exp().sum().item())


def paired_bootstrap(first: Tensor, second: Tensor) -> Interval:
    """Interval of mean(second) - mean(first) over the same (N,) samples."""
    difference = second.double() - first.double()
    return bootstrap_interval(lambda i: difference[i].mean().item(), len(difference))


_TAILS = torch.tensor([0.025, 0.975], dtype=torch.float64)
