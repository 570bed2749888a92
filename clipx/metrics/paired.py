"""Whether two models differ on the same samples: tests, and the intervals that go with them.

A test and its interval are one procedure: the interval holds 0 exactly if p is not below LEVEL.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from scipy.special import bdtr
from torch import Tensor

from clipx.metrics.distributions import student_quantile
from clipx.types import Interval

LEVEL = 0.05
# With fewer differing samples, an interval of a mean of skewed differences would cover at 90 %. The
# test is exact for any number of them.
MIN_DIFFERING = 20
MAX_BLOCKS = 512  # of samples, whose signs are flipped together
NUM_PATTERNS = 9999  # random ones
MAX_EXACT = 12  # samples up to which all patterns are tried


@dataclass(frozen=True)
class PairedTest:
    """p: two-sided; interval: of the mean difference, None if too few samples differ"""

    p: float
    interval: Interval | None

    @property
    def distinguishable(self) -> bool:
        return self.p < LEVEL


def paired_test(first: Tensor, second: Tensor, weights: Tensor | None = None) -> PairedTest:
    """Test of mean(second) - mean(first), over values of the same (N,) samples.

    weights: (N,) of the samples in the mean; equal by default
    """
    if weights is None:
        weights = torch.ones(len(first))
    values = torch.stack([first.double(), second.double()])
    is_binary = (values == 0) | (values == 1)
    if not is_binary.all() or not (weights == weights[0]).all():
        return sign_flip_test(values[1] - values[0], weights)

    only_first = int((first > second).sum())
    only_second = int((second > first).sum())
    p = mcnemar(only_first, only_second)
    low, high = difference_interval(only_first, only_second, len(first))
    if p >= LEVEL:
        # The exact test rejects less often than the interval's approximation: include 0.
        low = min(low, 0.0)
        high = max(high, 0.0)
    return PairedTest(p, (low, high))


def mcnemar(only_first: int, only_second: int) -> float:
    """Exact two-sided p-value of McNemar's test (Psychometrika 1947): the probability of so uneven
    a split of the samples that one model alone gets right, if the two were equally good."""
    tail = float(bdtr(min(only_first, only_second), only_first + only_second, 0.5))
    return min(1.0, 2 * tail)


def difference_interval(only_first: int, only_second: int, count: int) -> Interval:
    """Interval of the difference of two rates over the same samples: the normal one after adding a
    sample that the first alone gets right and one that the second alone does (Bonett and Price,
    British Journal of Mathematical and Statistical Psychology 2012). It does not shrink to a point
    if the two agree on all samples."""
    observed = (only_second - only_first) / count
    share_first = (only_first + 1) / (count + 2)
    share_second = (only_second + 1) / (count + 2)
    center = share_second - share_first
    error = math.sqrt((share_first + share_second - center**2) / (count + 2))
    reach = student_quantile(math.inf) * error
    low = min(center - reach, observed)
    high = max(center + reach, observed)
    return max(-1.0, low), min(1.0, high)


def sign_flip_test(difference: Tensor, weights: Tensor) -> PairedTest:
    """Test of a weighted mean of paired differences. If the two models were equal, the sign of each
    sample's difference would be that of a coin. Its level is exact for any number of samples.

    Inverted, it is an interval: flipping a subset of the samples gives a mean as far from a true
    difference exactly if that lies between the mean of the subset and the mean of the others
    (Hartigan, JASA 1969). p is the share of the subsets whose two means have 0 between them.

    difference, weights: (N,)
    """
    difference = difference.double()
    weights = weights.double()
    num_differing = int(difference.count_nonzero())
    if num_differing == 0:
        return PairedTest(1.0, None)

    # Flipping whole blocks of samples is still exact, and bounds the patterns' memory.
    block = torch.arange(len(weights)) % MAX_BLOCKS
    total = torch.bincount(block, difference * weights)
    weight = torch.bincount(block, weights)
    is_flipped = _patterns(len(total))
    flipped_weight = is_flipped @ weight
    kept_weight = weight.sum() - flipped_weight
    flipped_total = is_flipped @ total
    flipped_mean = flipped_total / flipped_weight
    kept_mean = (total.sum() - flipped_total) / kept_weight

    # A pattern that flips none or all of the samples is as far from all differences.
    trivial = (flipped_weight == 0) | (kept_weight == 0)
    # Patterns with equal means differ by rounding: count them as ties, toward a larger p.
    rounding = 1e-12 * difference.abs().max()
    lows = torch.minimum(flipped_mean, kept_mean) - rounding
    highs = torch.maximum(flipped_mean, kept_mean) + rounding
    lows = lows.masked_fill(trivial, -torch.inf).sort().values
    highs = highs.masked_fill(trivial, torch.inf).sort().values

    # The observed difference lies between the two means of any pattern, so one side decides.
    share_low = (lows <= 0).double().mean().item()
    share_high = (highs >= 0).double().mean().item()
    p = min(share_low, share_high)
    if num_differing < MIN_DIFFERING:
        return PairedTest(p, None)
    place = math.ceil(LEVEL * len(lows))
    low = lows[place - 1].item()
    high = highs[-place].item()
    if not (math.isfinite(low) and math.isfinite(high)):
        return PairedTest(p, None)
    return PairedTest(p, (low, high))


@lru_cache(maxsize=2)
def _patterns(count: int) -> Tensor:
    """(patterns, count) float64, 1 for a flipped sign: all patterns, or random ones and that of no
    flip, which makes the test exact (Phipson and Smyth, 2010)."""
    if count <= MAX_EXACT:
        # The bits of 0 ... 2^count - 1 are all patterns.
        numbers = torch.arange(2**count)
        bits = numbers[:, None] >> torch.arange(count) & 1
        return bits.double()
    generator = torch.Generator().manual_seed(0)
    random = torch.randint(2, (NUM_PATTERNS, count), generator=generator)
    return torch.cat([torch.zeros(1, count), random.double()])
