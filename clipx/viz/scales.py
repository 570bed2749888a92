"""From numbers to pixels, and to the ticks and words of an axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

MANY_TIMES = 50
"""A series of positive numbers that spans more than this is shown on a logarithmic axis."""


@dataclass(frozen=True)
class Scale:
    """low, high: the ends of the axis; start, stop: their pixels"""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, low))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers in [low, high]: multiples of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(n * step, 12) for n in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high], powers alone where these are many."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    inside = [
        m * 10.0**p for p in powers for m in (1, 2, 5) if low * 0.999 <= m * 10.0**p <= high * 1.001
    ]
    return inside if len(inside) <= 6 else [10.0**p for p in powers if low <= 10.0**p <= high]


def axis_over(values: Sequence[float], start: float, stop: float, *, zero: bool = False) -> Scale:
    """An axis with a little room beyond the values; logarithmic where they span much.

    zero: the axis begins at 0
    """
    low, high = min(values), max(values)
    if low > 0 and high > MANY_TIMES * low and not zero:
        return Scale(low / 1.15, high * 1.15, start, stop, log=True)
    if zero:
        low = min(0.0, low)
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    floor = low if zero or 0 <= low < room else low - room
    return Scale(min(floor, 0.0) if zero else floor, high + room, start, stop)


def ticks_of(scale: Scale, count: int = 5) -> list[float]:
    if scale.log:
        return log_ticks(scale.low, scale.high)
    return nice_ticks(scale.low, scale.high, count)


def tick_text(value: float, ticks: Sequence[float]) -> str:
    """With as many decimals as the ticks need to differ, thousands as k and millions as M."""
    if value == 0:
        return "0"
    step = min((abs(b - a) for a, b in pairwise(ticks)), default=abs(value))
    largest = max(abs(t) for t in ticks)
    if largest < 1e-3:
        return f"{value:.2g}"
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if largest >= 10 * size or (largest >= size and step >= size / 10 and letter != "k"):
            return f"{value / size:.{_decimals(step / size)}f}{letter}"
    return f"{value:,.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    return max(0, -math.floor(math.log10(step) + 1e-9)) if step > 0 else 0


def percent_text(share: float) -> str:
    """12.3%, and 0.04% where there is little."""
    return f"{share:.2%}" if 0 < abs(share) < 0.01 else f"{share:.1%}"


def exact_text(value: float) -> str:
    """Four digits, as a person reads them: 1,234 rather than 1.234e+03."""
    if not math.isfinite(value):
        return str(value)
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
