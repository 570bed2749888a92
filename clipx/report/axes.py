"""Axes of charts: from values to pixels, and round ticks with short labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from clipx.report.formats import exact_text

LOG_RATIO = 50  # positive numbers that span more than this get a logarithmic axis


@dataclass(frozen=True)
class Axis:
    """A linear or logarithmic map from the values [low, high] to the pixels [start, stop]."""

    low: float
    high: float
    start: float
    stop: float
    log: bool = False

    def pixel(self, value: float) -> float:
        if self.log:
            ratio = max(value, self.low) / self.low
            share = math.log(ratio) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)


def value_axis(
    values: Sequence[float], start: float, stop: float, *, from_zero: bool = False
) -> Axis:
    """An axis with a little room on both sides of the values."""
    low = min(values)
    high = max(values)
    if low > 0 and high > LOG_RATIO * low and not from_zero:
        return Axis(low / 1.15, high * 1.15, start, stop, log=True)
    if from_zero:
        low = min(low, 0.0)
    # A single value has no span, but the axis needs one.
    room = (high - low) * 0.06 or abs(high) * 0.1 or 1.0
    # Room below a value just above 0 would lead into negative numbers, which it cannot take.
    if not from_zero and not 0 <= low < room:
        low -= room
    return Axis(low, high + room, start, stop)


def labeled_ticks(axis: Axis, *, percent: bool = False) -> list[tuple[float, str]]:
    """(pixel, label) of each tick."""
    if axis.log:
        # Labels of one unit, as on a linear axis, would make the small ones 0.
        return [(axis.pixel(tick), exact_text(tick)) for tick in log_ticks(axis.low, axis.high)]
    scale = 100 if percent else 1
    suffix = "%" if percent else ""
    ticks = linear_ticks(scale * axis.low, scale * axis.high)
    labeled = []
    for tick, label in zip(ticks, tick_labels(ticks), strict=True):
        labeled.append((axis.pixel(tick / scale), label + suffix))
    return labeled


def linear_ticks(low: float, high: float) -> list[float]:
    """About five multiples of 1, 2 or 5 times a power of ten in [low, high]."""
    rough_step = (high - low) / 5
    # Rounding up to the next round number gives two to six ticks.
    power = 10.0 ** math.floor(math.log10(rough_step))
    step = 10 * power
    for multiple in (5, 2, 1):
        if multiple * power >= rough_step * 0.999:
            step = multiple * power
    # The ends themselves may be ticks, despite rounding errors.
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times the powers of ten in [low, high], the powers alone if these are many."""
    powers = []
    ticks = []
    first = math.floor(math.log10(low))
    last = math.ceil(math.log10(high))
    for exponent in range(first, last + 1):
        power = 10.0**exponent
        if low <= power <= high:
            powers.append(power)
        for tick in (power, 2 * power, 5 * power):
            if low * 0.999 <= tick <= high * 1.001:
                ticks.append(tick)
    return ticks if len(ticks) <= 6 else powers


def tick_labels(ticks: Sequence[float]) -> list[str]:
    """Labels with as many digits as they need to differ; thousands as k and millions as M."""
    if len(ticks) < 2:
        return [exact_text(tick) for tick in ticks]
    step = ticks[1] - ticks[0]
    largest = max(map(abs, ticks))
    unit = 1.0
    suffix = ""
    if largest >= 1e4:  # 2,000 is as short as 2k
        unit = 1e3
        suffix = "k"
    if largest >= 1e6:
        unit = 1e6
        suffix = "M"
    if largest >= 1e9:
        unit = 1e9
        suffix = "G"
    if largest < 1e-3:  # 1e-05 is shorter than 0.00001
        digits = 1 + math.ceil(math.log10(largest / step) + 1e-9)
        return [f"{tick:.{digits}g}" for tick in ticks]
    decimals = max(0, -math.floor(math.log10(step / unit) + 1e-9))
    return [f"{tick / unit:,.{decimals}f}{suffix}" if tick else "0" for tick in ticks]
