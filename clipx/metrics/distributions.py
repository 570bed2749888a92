"""Quantiles of the binomial and of Student's distribution in plain Python, without scipy."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

TAIL = 0.025
"""Probability that an interval of 95 % leaves out on either side."""


def incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), for a and b above 0."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - incomplete_beta(1 - x, b, a)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    return front / _continued_fraction(x, a, b)


def _continued_fraction(x: float, a: float, b: float) -> float:
    """1 + d1 / (1 + d2 / (1 + ...)) by Lentz's method (Abramowitz and Stegun 26.5.8)."""
    tiny = 1e-300
    value, c, d = 1.0, 1.0, 0.0
    for step in range(1, 20_000):
        m = step // 2
        if step % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / ((1 + term * d) or tiny)
        c = (1 + term / c) or tiny
        value *= c * d
        if abs(c * d - 1) < 1e-13:
            break
    return value


OBSERVED_SHARE = 0.6
"""Part of the observed count's own probability that each tail of `binomial_interval` has.

With the whole of it (Clopper and Pearson) an interval of 95 % covers at up to 99.8 %; with a half
(mid-P; Agresti and Gottard, Computational Statistics and Data Analysis 2007) at as little as 91.8 %
at rates near 0 and 1; Wilson's at 84 %. With 0.6 it is 93.5 % or more at every rate."""


@lru_cache(maxsize=100_000)
def binomial_interval(hits: float, count: float, tail: float = TAIL) -> tuple[float, float]:
    """The exact interval of a rate that was `hits` of `count`.

    hits, count: may be fractions, for an effective number of samples
    """

    def upper_tail(rate: float, observed_share: float) -> float:
        """P(more hits) + a share of P(as many hits), which grows with the rate."""
        log_choose = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
        equal = math.exp(log_choose + hits * math.log(rate) + (count - hits) * math.log1p(-rate))
        as_many = 1.0 if hits <= 0 else incomplete_beta(rate, hits, count - hits + 1)
        return as_many - (1 - observed_share) * equal

    low, high = 0.0, 1.0
    estimate = hits / count
    if hits > 0:
        low = _root(lambda rate: upper_tail(rate, OBSERVED_SHARE), tail, 0.0, estimate)
    if hits < count:
        high = _root(lambda rate: upper_tail(rate, 1 - OBSERVED_SHARE), 1 - tail, estimate, 1.0)
    return low, high


@lru_cache(maxsize=10_000)
def student_quantile(freedom: float, tail: float = TAIL) -> float:
    """What Student's t with so many degrees of freedom exceeds with the probability `tail`."""
    if freedom > 1e6:
        return NormalDist().inv_cdf(1 - tail)

    # x = freedom / (freedom + t^2) falls from 1 to 0 as t grows from 0.
    x = _root(lambda x: incomplete_beta(x, freedom / 2, 0.5) / 2, tail, 0.0, 1.0)
    return math.sqrt(freedom * (1 / x - 1))


def _root(function: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where a growing function has the value `wanted`, by bisection."""
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) < wanted:
            low = middle
        else:
            high = middle
        if high - low < 1e-12 * high:
            break
    return (low + high) / 2
