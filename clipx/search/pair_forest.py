"""The groups that pairs of similar rows form, in memory that is linear in rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree

from clipx.search.similar_pairs import ROUNDING, Pairs

MAX_PAIRS = 8_000_000  # held before they are reduced, 160 MB


@dataclass(frozen=True)
class ThresholdCount:
    """pairs: of similarity `threshold` or more; groups: that they join rows to; joined: rows of
    these; largest: rows of the largest. One that is much larger than the others is a chain of rows
    that are not alike: the threshold is too low"""

    threshold: float
    pairs: int
    groups: int
    joined: int
    largest: int


class PairForest:
    """Pairs of `num_rows` rows, reduced to a maximum spanning forest: fewer than `num_rows` pairs
    that join the same groups at every threshold. So memory is linear in rows, however many pairs
    there are.

    thresholds: at which pairs are counted
    """

    def __init__(self, num_rows: int, thresholds: Sequence[float]) -> None:
        self.num_rows = num_rows
        self.thresholds = sorted(thresholds)
        self.num_pairs = np.zeros(len(self.thresholds), dtype=np.int64)
        self.later = np.zeros(num_rows, dtype=np.bool_)  # see `add`
        self._held: list[Pairs] = []
        self._num_held = 0
        self._is_reduced = False

    def add(self, pairs: Pairs, later_from: float | None = None) -> None:
        """later_from: marks in `later` the second of each pair of at least this similarity"""
        for number, threshold in enumerate(self.thresholds):
            is_counted = pairs.similarity >= threshold - ROUNDING
            self.num_pairs[number] += np.count_nonzero(is_counted)
        if later_from is not None:
            self.later[pairs.second[pairs.similarity >= later_from - ROUNDING]] = True
        self._held.append(pairs)
        self._is_reduced = False
        self._num_held += len(pairs.first)
        if self._num_held > MAX_PAIRS + self.num_rows:
            self._reduce()

    def labels(self, threshold: float) -> np.ndarray:
        """(N,) number of the group of each row, at one of the thresholds."""
        edges = self._reduce()
        is_joined = edges.similarity >= threshold - ROUNDING
        first = edges.first[is_joined]
        second = edges.second[is_joined]
        shape = (self.num_rows, self.num_rows)
        graph = coo_array((np.ones(len(first), dtype=np.int8), (first, second)), shape=shape)
        return connected_components(graph.tocsr(), directed=False)[1]

    def counts(self) -> list[ThresholdCount]:
        """From the lowest threshold to the highest."""
        counts = []
        for threshold, num_pairs in zip(self.thresholds, self.num_pairs.tolist(), strict=True):
            sizes = np.bincount(self.labels(threshold))
            sizes = sizes[sizes > 1]
            largest = int(sizes.max(initial=0))
            joined = int(sizes.sum())
            counts.append(ThresholdCount(threshold, num_pairs, len(sizes), joined, largest))
        return counts

    def _reduce(self) -> Pairs:
        """The forest of all pairs so far, which replaces them."""
        if self._is_reduced:
            return self._held[0]
        empty = np.empty(0, dtype=np.int64)
        first = np.concatenate([empty, *(pairs.first for pairs in self._held)])
        second = np.concatenate([empty, *(pairs.second for pairs in self._held)])
        similarity = np.concatenate([np.empty(0), *(pairs.similarity for pairs in self._held)])
        # An index finds most pairs from both sides, and a sparse matrix would add them up.
        lower = np.minimum(first, second)
        higher = np.maximum(first, second)
        _, once = np.unique(lower * self.num_rows + higher, return_index=True)
        # The spanning tree is that of least weights, and 0 means no edge.
        weight = 3.0 - similarity[once]
        shape = (self.num_rows, self.num_rows)
        graph = coo_array((weight, (lower[once], higher[once])), shape=shape)
        tree = coo_array(minimum_spanning_tree(graph.tocsr()))
        row, column = tree.coords
        edges = Pairs(row.astype(np.int64), column.astype(np.int64), 3.0 - tree.data)
        self._held = [edges]
        self._num_held = len(row)
        self._is_reduced = True
        return edges
