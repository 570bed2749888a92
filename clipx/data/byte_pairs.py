"""Byte-pair merging of one token, however long it is."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from itertools import pairwise

_NO_ID = 1 << 32
_MERGED = -1
_SHORT = 64  # symbols up to which looking through all pairs is faster than a heap


def merge(ids: list[int], joined: Mapping[int, int]) -> list[int]:
    """The pair that was learned first becomes one symbol, wherever it stands, until no pair is
    known. One place at a time does the same, since no pair with the new symbol was learned before
    it.

    joined: ids of two symbols, `first << 16 | second` -> id of both as one
    """
    return _merge_short(ids, joined) if len(ids) <= _SHORT else _merge_long(ids, joined)


def _merge_short(ids: list[int], joined: Mapping[int, int]) -> list[int]:
    """O(n^2), with the smallest factor."""
    of = joined.get
    pairs = [of(a << 16 | b, _NO_ID) for a, b in pairwise(ids)]
    while pairs and (first := min(pairs)) != _NO_ID:
        i = pairs.index(first)
        ids[i] = first
        del ids[i + 1], pairs[i]
        if i < len(pairs):
            pairs[i] = of(first << 16 | ids[i + 1], _NO_ID)
        if i:
            pairs[i - 1] = of(ids[i - 1] << 16 | first, _NO_ID)
    return ids


def _merge_long(ids: list[int], joined: Mapping[int, int]) -> list[int]:
    """O(n log n): the same merges in the same order, the leftmost of a pair first."""
    count = len(ids)
    before = list(range(-1, count - 1))
    after = list(range(1, count + 1))
    heap = [
        (joined[pair], place)
        for place, (a, b) in enumerate(pairwise(ids))
        if (pair := a << 16 | b) in joined
    ]
    heapq.heapify(heap)

    def consider(left: int, right: int) -> None:
        new = joined.get(ids[left] << 16 | ids[right])
        if new is not None:
            heapq.heappush(heap, (new, left))

    while heap:
        new, left = heapq.heappop(heap)
        right = after[left]
        # A neighbor may have been merged since this pair was found.
        if ids[left] == _MERGED or right == count:
            continue
        if joined.get(ids[left] << 16 | ids[right]) != new:
            continue
        ids[left], ids[right] = new, _MERGED
        after[left] = after[right]
        if after[left] < count:
            before[after[left]] = left
            consider(left, after[left])
        if before[left] >= 0:
            consider(before[left], left)
    return [id_ for id_ in ids if id_ != _MERGED]
