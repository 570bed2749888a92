"""Pairs of rows whose cosine similarity reaches a threshold: among all, among those that an index
proposes, or within clusters. They come in blocks, so that memory does not grow with their number.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from clipx.progress import Advance
from clipx.search.vector_index import VectorIndex

BLOCK = 2048  # rows, and columns, of the matrix of similarities that is held at a time
ROUNDING = 1e-6  # a float32 product of unit rows is off by less, so equal rows reach 1
FIRST_CANDIDATES = 32
MAX_CANDIDATES = 2048
"""An index proposes that many for a row at most; a row with more near duplicates is connected to
the others through those."""
QUERIES = 1024  # rows that are looked up at a time


@dataclass(frozen=True)
class Pairs:
    """Rows that are similar; first[i] < second[i], unless stated otherwise.

    first, second: (P,) int64; similarity: (P,) float32
    """

    first: np.ndarray
    second: np.ndarray
    similarity: np.ndarray


def unit_rows(rows: np.ndarray) -> np.ndarray:
    """(n, D) float32 of unit norm: rows that were stored as float16 are off by 1e-4."""
    rows = np.asarray(rows, dtype=np.float32)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.maximum(norms, 1e-12)


def all_pairs(
    rows: np.ndarray, numbers: np.ndarray, floor: float, advance: Advance
) -> Iterator[Pairs]:
    """Every pair of similarity `floor` or more, once. `first` is the one that comes first in
    `numbers`.

    rows: (N, D); numbers: (n,) int64 of the rows that are compared
    advance: called with the number of rows that are done
    """
    for start in range(0, len(numbers), BLOCK):
        block = unit_rows(rows[numbers[start : start + BLOCK]])
        for other in range(start, len(numbers), BLOCK):
            columns = block
            if other > start:
                columns = unit_rows(rows[numbers[other : other + BLOCK]])
            scores = block @ columns.T
            is_pair = scores >= floor - ROUNDING
            if other == start:
                is_pair = np.triu(is_pair, k=1)  # each pair once, and no row with itself
            first, second = np.nonzero(is_pair)
            similarity = scores[first, second]
            yield Pairs(numbers[first + start], numbers[second + other], similarity)
        advance(len(block))


def proposed_pairs(index: VectorIndex, floor: float, advance: Advance) -> Iterator[Pairs]:
    """Pairs of similarity `floor` or more among the candidates of an index, which are compared by
    their whole vectors. Most are there twice, once from each of the two rows; those that the index
    misses from both are missing. Removed rows have no pairs.

    index: approximate
    """
    rows = index.rows
    numbers = np.flatnonzero(index.kept)
    for start in range(0, len(numbers), QUERIES):
        pending = numbers[start : start + QUERIES]
        num_rows = len(pending)
        num_candidates = FIRST_CANDIDATES
        while len(pending):
            vectors = torch.from_numpy(unit_rows(rows[pending]))
            candidates = index.search(vectors, num_candidates)[1].numpy()
            scores = _similarities(rows, pending, candidates)
            is_pair = scores >= floor - ROUNDING
            # Where all candidates are near duplicates, there may be more.
            is_full = np.all(is_pair, axis=1, keepdims=True)
            if num_candidates >= min(MAX_CANDIDATES, len(rows)):
                is_full = np.zeros_like(is_full)
            is_pair &= (candidates != pending[:, None]) & ~is_full
            number, place = np.nonzero(is_pair)
            mine = pending[number]
            other = candidates[number, place]
            lower = np.minimum(mine, other)
            yield Pairs(lower, np.maximum(mine, other), scores[number, place])
            pending = pending[is_full[:, 0]]
            num_candidates *= 4
        advance(num_rows)


def _similarities(rows: np.ndarray, queries: np.ndarray, candidates: np.ndarray) -> np.ndarray:
    """(Q, k) cosine similarities, -inf where a candidate is -1.

    queries: (Q,) row numbers; candidates: (Q, k) row numbers
    """
    scores = np.full(candidates.shape, -np.inf, dtype=np.float32)
    vectors = unit_rows(rows[queries])
    for number, found in enumerate(candidates):
        there = found >= 0
        scores[number, there] = unit_rows(rows[found[there]]) @ vectors[number]
    return scores


def pairs_within_clusters(
    rows: np.ndarray,
    numbers: np.ndarray,
    labels: np.ndarray,
    centrality: np.ndarray,
    floor: float,
    advance: Advance,
) -> Iterator[Pairs]:
    """Every pair of one cluster of similarity `floor` or more, once. `first` is the row that is
    farther from its center, or of equally far ones the one that comes first.

    numbers: (n,) int64 of the rows that are compared
    labels: (n,) int64 cluster of each; centrality: (n,) similarity to its center
    """
    # By cluster, and within a cluster the farthest from the center first.
    order = np.lexsort((np.arange(len(labels)), centrality, labels))
    starts = np.flatnonzero(np.diff(labels[order], prepend=-1))
    for members in np.split(order, starts[1:]):
        yield from all_pairs(rows, numbers[members], floor, advance)
