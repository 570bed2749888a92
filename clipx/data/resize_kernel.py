"""The passes of `resize`, compiled by numba: sums of weighted rows, a vector instruction for each
inner loop. Columns are the rows of the turned image.

Numbers are 32-bit integers, which 255 x 2^22 x 1.3 (the sum of the weights' absolutes) fits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

PRECISION = 22
_HALF = 1 << (PRECISION - 1)


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    try:
        return numba.njit(cache=True)(function)
    except RuntimeError:  # nowhere to write: compiled in each process, in a second
        return numba.njit(function)


@_compiled
def rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """(L, M) uint8 -> `out`, (T, M) uint8. Row t is the sum of weights[t, k] / 2^22 of row
    first[t] + k, two at a time; beyond the last row weights are 0."""
    sums = np.empty(image.shape[1], np.int32)
    last = image.shape[0] - 1
    for t in range(out.shape[0]):
        sums[:] = _HALF
        for k in range(0, weights.shape[1], 2):
            at = first[t] + k
            one, other = image[min(at, last)], image[min(at + 1, last)]
            weight, next_weight = weights[t, k], weights[t, k + 1]
            for m in range(sums.shape[0]):
                sums[m] += np.int32(one[m]) * weight + np.int32(other[m]) * next_weight
        for m in range(sums.shape[0]):
            out[t, m] = min(max(sums[m] >> PRECISION, 0), 255)


@_compiled
def turn(image: np.ndarray, out: np.ndarray) -> None:
    """(H, W) -> `out`, (W, H): eight rows at a time, whose pixels fill half a cache line."""
    height, width = image.shape
    whole = height - height % 8
    for top in range(0, whole, 8):
        for x in range(width):
            for y in range(8):
                out[x, top + y] = image[top + y, x]
    for y in range(whole, height):
        for x in range(width):
            out[x, y] = image[y, x]


@_compiled
def planes(pixels: np.ndarray, out: np.ndarray) -> None:
    """(H, W, 4) -> `out`, (3, H, W)"""
    for y in range(pixels.shape[0]):
        for x in range(pixels.shape[1]):
            for channel in range(3):
                out[channel, y, x] = pixels[y, x, channel]
