"""The passes of `resize`, compiled by numba: weighted sums of rows, whose inner loops become vector
instructions.

Sums are 32-bit integers, which contain 255 x 2^22 x 1.3 (the sum of the weights' absolute values).
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
    except RuntimeError:  # no folder to write the cache to: each process compiles for a second
        return numba.njit(function)


@_compiled
def rows(image: np.ndarray, first: np.ndarray, weights: np.ndarray, out: np.ndarray) -> None:
    """(L, M) uint8 -> `out`, (T, M) uint8: row t is the sum over k of row first[t] + k times
    weights[t, k] / 2^22."""
    sums = np.empty(image.shape[1], np.int32)
    last = image.shape[0] - 1
    for t in range(out.shape[0]):
        sums[:] = _HALF  # so that the shift below rounds to the nearest
        for k in range(0, weights.shape[1], 2):  # two rows at a time read `sums` half as often
            # Weights beyond the last row are 0: any row will do.
            row = image[min(first[t] + k, last)]
            next_row = image[min(first[t] + k + 1, last)]
            weight = weights[t, k]
            next_weight = weights[t, k + 1]
            for m in range(sums.shape[0]):
                sums[m] += np.int32(row[m]) * weight + np.int32(next_row[m]) * next_weight
        for m in range(sums.shape[0]):
            out[t, m] = min(max(sums[m] >> PRECISION, 0), 255)


@_compiled
def transpose(image: np.ndarray, out: np.ndarray) -> None:
    """(H, W) -> `out`, (W, H)"""
    height, width = image.shape
    whole = height - height % 8
    for top in range(0, whole, 8):  # eight rows: their pixels fill half a cache line of `out`
        for x in range(width):
            for y in range(8):
                out[x, top + y] = image[top + y, x]
    for y in range(whole, height):
        for x in range(width):
            out[x, y] = image[y, x]


@_compiled
def planes(words: np.ndarray, out: np.ndarray) -> None:
    """(H, W) packed pixels -> `out`, (3, H, W) uint8"""
    for channel in range(3):
        shift = 8 * channel  # red is the lowest byte: processors are little-endian
        for y in range(words.shape[0]):
            for x in range(words.shape[1]):  # a shift of many words at once is one instruction
                out[channel, y, x] = (words[y, x] >> shift) & 255
