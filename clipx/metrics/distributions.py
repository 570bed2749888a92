"""Quantiles of the binomial and of Student's distribution."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

from scipy.special import betainc, ndtri, stdtrit

TAIL = 0.025  # probability that an interval of 95 % leaves out on either side

# Share of the observed count's own probability in each tail of `binomial_interval`. With all of it
# (Clopper and Pearson) an interval of 95 % covers at up to 99.8 %; with a half (mid-P; Agresti and
# Gottard, Computational Statistics and Data Analysis 2007) at as little as 91.8 % at rates near 0
# and 1; Wilson's at 84 %. With 0.6 it is 93.5 % or more at all rates.
OBSERVED_SHARE = 0.6


@lru_cache(maxsize=100_000)
def binomial_interval(hits: float, count: float, tail: float = TAIL) -> tuple[float, float]:
    """The exact interval of a rate, observed as `hits` of `count`.

    hits, count: may be fractions, for an effective number of samples
    """
    # The gamma function extends the binomial coefficient to fractions.
    log_choose = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)

    def upper_tail(rate: float, observed_share: float) -> float:
        """P(more hits) + a share of P(as many hits), which grows with the rate."""
        log_equal = log_choose + hits * math.log(rate) + (count - hits) * math.log1p(-rate)
        # The binomial sum as an incomplete beta function, which takes fractions too.
        at_least = float(betainc(hits, count - hits + 1, rate)) if hits > 0 else 1.0
        return at_least - (1 - observed_share) * math.exp(log_equal)

    # The low end is the rate at which so many hits or more have the probability `tail`, and the
    # high end that at which so few or fewer have it.
    low = 0.0
    high = 1.0
    estimate = hits / count
    if hits > 0:
        low = _root(lambda rate: upper_tail(rate, OBSERVED_SHARE), tail, 0.0, estimate)
    if hits < count:
        high = _root(lambda rate: upper_tail(rate, 1 - OBSERVED_SHARE), 1 - tail, estimate, 1.0)
    return low, high


def student_quantile(freedom: float, tail: float = TAIL) -> float:
    """The value that Student's t with these degrees of freedom exceeds at probability `tail`."""
    if math.isinf(freedom):  # the normal distribution
        return float(ndtri(1 - tail))
    return float(stdtrit(freedom, 1 - tail))


def _root(function: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """The argument at which a growing function has the value `wanted`, by bisection."""
    # Not SciPy's: it also evaluates the ends, where a rate of 0 or 1 has no logarithm.
    for _ in range(60):
        middle = (low + high) / 2
        if function(middle) < wanted:
            low = middle
        else:
            high = middle
        if high - low < 1e-12 * high:
            break
    return (low + high) / 2
