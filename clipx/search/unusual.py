"""Pictures that are unlike all others, and pictures whose captions do not fit.

The distance of a picture is the mean cosine distance to its k nearest neighbors, as in the
evaluator `anomaly` (Angiulli and Pizzuti, PKDD 2002; Ramaswamy et al., SIGMOD 2000, and deep
nearest neighbors, arXiv:2204.06507, take the k-th alone).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from clipx.progress import Advance
from clipx.search.similar_pairs import unit_rows
from clipx.search.vector_index import VectorIndex
from clipx.types import UserError

QUERIES = 1024  # rows whose neighbors are searched at a time
BLOCK = 16_384  # rows that they are compared with at a time: 64 MiB of similarities
ROUNDING = 5e-4  # an index compares rows as they are stored, as float16 of nearly unit norm
MAX_DISTANCE = 2.0  # of opposite rows


@dataclass(frozen=True)
class Unusual:
    """row: of the picture; score: what it is ranked by"""

    row: int
    score: float


def most_unusual(
    rows: np.ndarray,
    neighbors: VectorIndex,
    *,
    k: int,
    top: int,
    advance: Advance,
    ranked: np.ndarray | None = None,
) -> list[Unusual]:
    """The `top` rows that are farthest from their k nearest neighbors, farthest first; of equally
    far ones the first comes first. The result is that of exact search, whatever the index. Raises
    UserError.

    rows: (N, D)
    neighbors: over the rows among which neighbors are searched: `rows` themselves, so that each
        row is left out of its own neighbors, or others; removed ones are no neighbors
    ranked: (n,) rows that the result is chosen from; None for all
    advance: called with the number of rows that are done
    """
    leaves_out_self = neighbors.rows is rows
    num_others = neighbors.num_kept - int(leaves_out_self)
    if not 1 <= k <= num_others:
        raise UserError(f"-k {k} is not in 1 ... {num_others:,}, the number of other pictures")
    if top < 1:
        raise UserError(f"--top {top} is below 1")
    numbers = np.arange(len(rows)) if ranked is None else ranked
    if neighbors.spec.kind == "exact":
        distance = exact_distances(rows, numbers, neighbors, k, advance)
        return _farthest(numbers, distance, top)

    # An index may miss neighbors and never finds nearer ones than there are, so its distances are
    # bounds from above. Rows are compared exactly from the highest bound down, until the bounds of
    # all others are below the exact distances of the best.
    bound = _indexed_distances(rows, numbers, neighbors, k, advance)
    order = np.argsort(-bound, kind="stable")
    bound = bound[order]
    numbers = numbers[order]
    exact = np.empty(0)
    num_exact = 0
    while num_exact < len(numbers):
        chunk = numbers[num_exact : num_exact + max(top, QUERIES)]
        distance = exact_distances(rows, chunk, neighbors, k, lambda count: None)
        exact = np.concatenate([exact, distance])
        num_exact += len(chunk)
        if num_exact < len(numbers) and num_exact >= top:
            least = np.partition(exact, -top)[-top]
            if least > bound[num_exact] + ROUNDING:
                break
    return _farthest(numbers[:num_exact], exact, top)


def _farthest(numbers: np.ndarray, distance: np.ndarray, top: int) -> list[Unusual]:
    order = np.lexsort((numbers, -distance))[:top]
    return [Unusual(int(numbers[place]), float(distance[place])) for place in order]


def exact_distances(
    rows: np.ndarray, numbers: np.ndarray, neighbors: VectorIndex, k: int, advance: Advance
) -> np.ndarray:
    """(n,) float64 mean cosine distance of some rows to their k nearest among `neighbors.rows`
    that are kept.

    rows: (N, D); where `neighbors` has the same ones, each row is left out of its own neighbors
    numbers: (n,) of the rows
    """
    others = neighbors.rows
    distances = [np.empty(0)]
    for start in range(0, len(numbers), QUERIES):
        own = numbers[start : start + QUERIES]
        vectors = unit_rows(rows[own])
        nearest = np.full((len(own), k), -np.inf, dtype=np.float32)
        for first in range(0, len(others), BLOCK):
            scores = vectors @ unit_rows(others[first : first + BLOCK]).T
            scores[:, ~neighbors.kept[first : first + BLOCK]] = -np.inf
            if others is rows:
                is_here = (own >= first) & (own < first + BLOCK)
                scores[is_here, own[is_here] - first] = -np.inf
            if scores.shape[1] > k:
                scores = np.partition(scores, -k, axis=1)[:, -k:]
            nearest = np.partition(np.concatenate([nearest, scores], axis=1), -k, axis=1)[:, -k:]
        distances.append(1.0 - nearest.astype(np.float64).mean(axis=1))
        advance(len(own))
    return np.concatenate(distances)


def _indexed_distances(
    rows: np.ndarray, numbers: np.ndarray, neighbors: VectorIndex, k: int, advance: Advance
) -> np.ndarray:
    """As `exact_distances`, by an index: the exact ones or more."""
    distances = [np.empty(0)]
    for start in range(0, len(numbers), QUERIES):
        own = numbers[start : start + QUERIES]
        vectors = torch.from_numpy(unit_rows(rows[own]))
        scores, found = neighbors.search(vectors, k + 1)
        similarity = scores.numpy().copy()
        if neighbors.rows is rows:
            similarity[found.numpy() == own[:, None]] = -np.inf
        # The k best of k + 1 after its own row is gone; what the index has not found is far.
        nearest = np.sort(similarity, axis=1)[:, ::-1][:, :k]
        nearest = np.maximum(nearest, 1.0 - MAX_DISTANCE)
        distances.append(1.0 - nearest.astype(np.float64).mean(axis=1))
        advance(len(own))
    return np.concatenate(distances)


def worst_captions(
    images: np.ndarray, texts: np.ndarray, *, top: int, ranked: np.ndarray | None = None
) -> list[Unusual]:
    """The rows whose picture and caption have the lowest cosine similarity, lowest first: the score
    by which LAION (arXiv:2111.02114) was filtered. Rows without a caption are left out. Raises
    UserError.

    images, texts: (N, D); a row of zeros in `texts` is a sample without a caption
    ranked: (n,) rows that the result is chosen from; None for all
    """
    if top < 1:
        raise UserError(f"--top {top} is below 1")
    similarity = np.empty(len(images))
    for start in range(0, len(images), BLOCK):
        part = slice(start, start + BLOCK)
        similarity[part] = (unit_rows(images[part]) * unit_rows(texts[part])).sum(axis=1)
    numbers = np.flatnonzero(texts.any(axis=1))
    if ranked is not None:
        numbers = np.intersect1d(numbers, ranked)
    order = np.lexsort((numbers, similarity[numbers]))[:top]
    return [Unusual(int(row), float(similarity[row])) for row in numbers[order]]
