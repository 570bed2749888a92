"""Near duplicates: groups of pictures that are similar, of which some are kept and others dropped.

`pairs`: pictures are joined wherever two of them are similar enough (single linkage). One of each
group is kept, and of a chain of pictures that are not all alike as many as represent the others.
`semdedup`: SemDeDup (arXiv:2303.09540) compares the pictures of each k-means
cluster alone, and drops each one that is similar to another which is farther from the center.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from clipx.progress import Advance
from clipx.search.clusters import assign, cluster_rows
from clipx.search.pair_forest import PairForest, ThresholdCount
from clipx.search.similar_pairs import (
    ROUNDING,
    all_pairs,
    pairs_within_clusters,
    proposed_pairs,
    unit_rows,
)
from clipx.search.vector_index import VectorIndex
from clipx.types import UserError

Method = Literal["pairs", "semdedup"]
THRESHOLDS = (0.85, 0.9, 0.925, 0.95, 0.975, 0.99, 1.0)
"""Of the table from which a person chooses."""
COVERED_ROWS = 256  # compared at a time with the kept ones
MAX_DISTANCE_BELOW = 0.1
"""Lower thresholds than this much below the chosen one are left out of the table: their many pairs
cost time."""


@dataclass(frozen=True)
class DuplicateGroup:
    """Rows of similar pictures. similarity: of each dropped row to the kept row that it is nearest
    to, `nearest`; of `semdedup` it may be below the threshold, where a dropped row joins them"""

    kept: Sequence[int]
    dropped: Sequence[int]
    nearest: Sequence[int]
    similarity: Sequence[float]

    @property
    def size(self) -> int:
        return len(self.kept) + len(self.dropped)


def check_threshold(threshold: float) -> None:
    """Raises UserError."""
    if not 0 < threshold <= 1:
        raise UserError(f"--threshold {threshold} is not in (0, 1]")


def table_thresholds(threshold: float) -> list[float]:
    """Those of the table, with the chosen one among them."""
    lowest = threshold - MAX_DISTANCE_BELOW
    return sorted({threshold, *(value for value in THRESHOLDS if value >= lowest)})


def keep_largest(
    rows: np.ndarray, labels: np.ndarray, area: np.ndarray, threshold: float
) -> np.ndarray:
    """(N,) bool: of each group the row of the largest picture, then the first. Of a group that is a
    chain, further rows in this order, until each dropped row is similar to a kept one.

    rows: (N, D); labels: (N,) group of each row; area: (N,) pixels
    """
    order = np.lexsort((np.arange(len(labels)), -area, labels))
    is_kept = np.bincount(labels)[labels] == 1
    for members in _members(labels, order):
        is_kept[_cover(rows, members, threshold)] = True
    return is_kept


def _cover(rows: np.ndarray, members: np.ndarray, threshold: float) -> np.ndarray:
    """Each member that is not similar to one before it that is in the result."""
    kept = np.empty(0, dtype=np.int64)
    kept_rows = np.empty((0, rows.shape[1]), dtype=np.float32)
    for start in range(0, len(members), COVERED_ROWS):
        block = members[start : start + COVERED_ROWS]
        vectors = unit_rows(rows[block])
        is_like_kept = (vectors @ kept_rows.T >= threshold - ROUNDING).any(axis=1)
        is_like = vectors @ vectors.T >= threshold - ROUNDING
        chosen: list[int] = []
        for place in np.flatnonzero(~is_like_kept).tolist():
            if not is_like[place, chosen].any():
                chosen.append(place)
        kept = np.concatenate([kept, block[chosen]])
        kept_rows = np.concatenate([kept_rows, vectors[chosen]])
    return kept


def duplicate_groups(
    rows: np.ndarray, labels: np.ndarray, is_kept: np.ndarray
) -> list[DuplicateGroup]:
    """Groups of several rows, the largest first, then by their first row. Each has a row that is
    kept.

    rows: (N, D); labels: (N,) group of each row; is_kept: (N,) bool
    """
    groups = []
    for members in _members(labels, np.argsort(labels, kind="stable")):
        kept = members[is_kept[members]]
        dropped = members[~is_kept[members]]
        place, similarity = assign(rows[dropped], unit_rows(rows[kept]))
        nearest = kept[place].tolist()
        groups.append(DuplicateGroup(kept.tolist(), dropped.tolist(), nearest, similarity.tolist()))
    groups.sort(key=lambda group: (-group.size, min(group.kept)))
    return groups


def _members(labels: np.ndarray, order: np.ndarray) -> list[np.ndarray]:
    """The rows of each group of several.

    labels: (N,) group of each row; order: (N,) all rows, those of a group together
    """
    order = order[np.bincount(labels)[labels[order]] > 1]  # most of millions of rows are alone
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    return np.split(order, starts[1:])[: len(starts)]


@dataclass(frozen=True)
class FoundDuplicates:
    """groups: the largest first; counts: by threshold
    is_approximate: pairs that an index has not proposed are missing, in groups and counts
    """

    groups: list[DuplicateGroup]
    counts: list[ThresholdCount]
    is_approximate: bool

    @property
    def num_dropped(self) -> int:
        return sum(len(group.dropped) for group in self.groups)


def find_duplicates(
    vectors: VectorIndex,
    area: np.ndarray,
    *,
    threshold: float,
    method: Method,
    num_clusters: int,
    advance: Advance,
) -> FoundDuplicates:
    """Duplicates among the pictures that are not removed. Raises UserError.

    vectors: of the pictures; area: (N,) pixels of each, of which `pairs` keeps the largest
    threshold: cosine similarity from which on two pictures are duplicates, in (0, 1]
    num_clusters: of `semdedup`
    """
    rows = vectors.rows
    check_threshold(threshold)
    numbers = np.flatnonzero(vectors.kept)
    if len(numbers) < 2:
        raise UserError(f"there is no other picture to compare with: the folder has {len(numbers)}")
    thresholds = table_thresholds(threshold)
    forest = PairForest(len(rows), thresholds)
    if method == "semdedup":
        clusters = cluster_rows(rows[numbers], num_clusters)
        found = pairs_within_clusters(
            rows, numbers, clusters.labels, clusters.similarity, thresholds[0], advance
        )
    elif vectors.spec.kind == "exact":
        found = all_pairs(rows, numbers, thresholds[0], advance)
    else:
        found = proposed_pairs(vectors, thresholds[0], advance)
    for pairs in found:
        forest.add(pairs, later_from=threshold)

    counts = forest.counts()
    is_approximate = method == "pairs" and vectors.spec.kind != "exact"
    if is_approximate:
        # A pair comes twice at most, from either row, so there are at least half as many.
        counts = [replace(count, pairs=-(-count.pairs // 2)) for count in counts]
    labels = forest.labels(threshold)
    if method == "semdedup":
        is_kept = ~forest.later
    else:
        is_kept = keep_largest(rows, labels, area, threshold)
    return FoundDuplicates(duplicate_groups(rows, labels, is_kept), counts, is_approximate)
