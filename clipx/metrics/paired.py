"""Whether two models differ on the same samples: tests, and the intervals that go with them.

A test and its interval are one procedure: the interval holds 0 exactly where p is not below LEVEL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from clipx.metrics.distributions import student_quantile
from clipx.metrics.intervals import Interval

LEVEL = 0.05
FEWEST = 20
"""Differing samples below which a mean of skewed differences is left without an interval: it would
cover at 90 %. The test is exact for any number of them."""
BLOCKS, DRAWS = 512, 9999
"""Samples are flipped in at most so many blocks, and by so many random patterns."""
EXACT = 12
"""Up to so many samples, all patterns are tried."""


@dataclass(frozen=True)
class PairedTest:
    """p: two-sided; interval: of the mean difference; None where too few samples differ"""

    p: float
    interval: Interval | None

    @property
    def distinguishable(self) -> bool:
        return self.p < LEVEL


def paired_test(first: Tensor, second: Tensor, weights: Tensor | None = None) -> PairedTest:
    """Of mean(second) - mean(first), over values of the same (N,) samples.

    weights: (N,) of the samples in the mean; None: equal
    """
    binary = all(bool(((values == 0) | (values == 1)).all()) for values in (first, second))
    alike = weights is None or bool((weights == weights[0]).all())
    if binary and alike:
        return _binary_test(first, second)
    weights = torch.ones(len(first)) if weights is None else weights
    return sign_flip_test(second.double() - first.double(), weights)


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (Psychometrika 1947): how probable so uneven a
    split is of the samples that one of two models alone gets right, were the two equally good."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count == 0:
        return 1.0
    k = torch.arange(fewer + 1, dtype=torch.float64)
    log_choose = math.lgamma(count + 1) - torch.lgamma(k + 1) - torch.lgamma(count - k + 1)
    return min(1.0, 2 * (log_choose - count * math.log(2)).exp().sum().item())


def _binary_test(first: Tensor, second: Tensor) -> PairedTest:
    only_first, only_second = int((first > second).sum()), int((second > first).sum())
    p = mcnemar(only_first, only_second)
    low, high = difference_interval(only_first, only_second, len(first))
    if p >= LEVEL:  # the exact test rejects less often than the interval's approximation does
        low, high = min(low, 0.0), max(high, 0.0)
    return PairedTest(p, (low, high))


def difference_interval(only_first: int, only_second: int, count: int) -> Interval:
    """Of the difference of two rates over the same samples: the normal interval after one more
    sample that each alone gets right (Bonett and Price, British Journal of Mathematical and
    Statistical Psychology 2012). It does not shrink to a point where the two agree everywhere."""
    count += 2
    more, less = (only_second + 1) / count, (only_first + 1) / count
    error = math.sqrt((more + less - (more - less) ** 2) / count)
    spread = student_quantile(math.inf) * error
    observed = (only_second - only_first) / (count - 2)
    low, high = more - less - spread, more - less + spread
    return max(-1.0, min(low, observed)), min(1.0, max(high, observed))


def sign_flip_test(difference: Tensor, weights: Tensor) -> PairedTest:
    """Of a weighted mean of paired differences: were the two models alike, the sign of each
    sample's difference would be a coin's. Exact in its level for any number of samples.

    Inverted, it is an interval: flipping a subset of the samples leads to a mean as far from a true
    difference exactly where that lies between the mean of the subset and the mean of the others
    (Hartigan, JASA 1969). p is the share of the subsets whose two means have 0 between them.

    difference, weights: (N,)
    """
    difference, weights = difference.double(), weights.double()
    if int(difference.count_nonzero()) == 0:
        return PairedTest(1.0, None)
    total, weight = _in_blocks(difference * weights), _in_blocks(weights)
    flipped = _patterns(len(total))  # (patterns, blocks), of zeros and ones
    flipped_sum, flipped_weight = flipped @ total, flipped @ weight
    kept_sum, kept_weight = total.sum() - flipped_sum, weight.sum() - flipped_weight
    one, other = flipped_sum / flipped_weight, kept_sum / kept_weight
    # A pattern that flips none or all of them is as far from every difference.
    trivial = (flipped_weight == 0) | (kept_weight == 0)
    rounding = 1e-12 * difference.abs().max()
    lows = torch.minimum(one, other).sub(rounding).masked_fill(trivial, -torch.inf).sort().values
    highs = torch.maximum(one, other).add(rounding).masked_fill(trivial, torch.inf).sort().values
    # Every pattern's two means have the observed difference between them, so one side decides.
    p = min((lows <= 0).double().mean().item(), (highs >= 0).double().mean().item())
    if int(difference.count_nonzero()) < FEWEST:
        return PairedTest(p, None)
    place = math.ceil(LEVEL * len(lows))
    low, high = lows[place - 1].item(), highs[-place].item()
    return PairedTest(p, (low, high) if math.isfinite(low + high) else None)


def _in_blocks(values: Tensor) -> Tensor:
    """(at most BLOCKS,) sums of every so many values: flipping whole blocks is still exact."""
    block = torch.arange(len(values)) % BLOCKS
    return torch.bincount(block, values)


@lru_cache(maxsize=2)
def _patterns(count: int) -> Tensor:
    """(patterns, count) float64 of zeros and ones: all of them, or random ones and that of zeros,
    which makes the test exact (Phipson and Smyth, 2010)."""
    if count <= EXACT:
        numbers = torch.arange(2**count)
        return (numbers[:, None] >> torch.arange(count) & 1).double()
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(2, (DRAWS, count), generator=generator)
    return torch.cat([torch.zeros(1, count), random.double()])
