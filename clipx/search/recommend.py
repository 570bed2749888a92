"""Recommendation from examples that are liked and disliked, by the two strategies that Qdrant
defines as `average_vector` and `best_score`:
https://api.qdrant.tech/api-reference/search/recommend-points (RecommendStrategy)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from clipx.embed import Picture
from clipx.search.filters import passing
from clipx.search.similar_pairs import unit_rows
from clipx.types import UserError

if TYPE_CHECKING:
    from clipx.search.query import Index

Strategy = Literal["average", "best"]
BLOCK = 65_536  # rows that are scored at a time
SAME_PICTURE = 0.999
"""Cosine similarity from which on an example is the sample itself: of equal pictures it is off from
1 by the precision of the towers, 2e-4 for bfloat16."""


def recommended(
    index: Index,
    likes: Sequence[Picture | int],
    dislikes: Sequence[Picture | int],
    *,
    strategy: Strategy,
    k: int,
    where: str | None,
) -> list[tuple[int, float]]:
    """(row, score) of the k best, see `Index.recommend`. Raises UserError."""
    if k < 1:
        raise UserError(f"k {k} is below 1")
    if not likes and not dislikes:
        raise UserError("a recommendation needs an example: a picture, or a sample of the corpus")
    liked = _vectors(index, likes)
    disliked = _vectors(index, dislikes)
    excluded = {example for example in (*likes, *dislikes) if isinstance(example, int)}
    is_file = [not isinstance(example, int) for example in (*likes, *dislikes)]
    excluded |= {*same_pictures(index.rows, np.concatenate([liked, disliked])[is_file]).tolist()}

    if strategy == "average":
        query = torch.from_numpy(average_vector(liked, disliked))
        found = index.nearest(query, k + len(excluded), where=where)
        return [(row, score) for row, score in found if row not in excluded][:k]

    # Each row is scored, since no index finds the best of such a score.
    scores = best_scores(index.rows, liked, disliked)
    candidates = index.kept
    if where is not None:
        candidates = np.intersect1d(candidates, passing(where, index.metadata))
    candidates = np.setdiff1d(candidates, np.fromiter(excluded, dtype=np.int64))
    order = np.lexsort((candidates, -scores[candidates]))[:k]
    best = candidates[order]
    return list(zip(best.tolist(), scores[best].tolist(), strict=True))


def _vectors(index: Index, examples: Sequence[Picture | int]) -> np.ndarray:
    """(E, D) float32 of unit norm. Raises UserError."""
    vectors = [np.empty((0, index.rows.shape[1]), dtype=np.float32)]
    for example in examples:
        if isinstance(example, int):
            if not 0 <= example < len(index.rows):
                raise UserError(
                    f"{index.folder} has rows 0 to {len(index.rows) - 1:,}, not {example}"
                )
            vectors.append(unit_rows(index.rows[example : example + 1]))
        else:
            turns = index.manifest.exif_orientation
            vectors.append(index.encoder.encode_image(example, exif_orientation=turns).numpy())
    return np.concatenate(vectors)


def average_vector(likes: np.ndarray, dislikes: np.ndarray) -> np.ndarray:
    """(D,) mean of the likes, plus mean of the likes minus mean of the dislikes. Raises UserError
    without likes, or where they cancel each other out.

    likes: (L, D); dislikes: (M, D), of unit norm
    """
    if not len(likes):
        raise UserError("the strategy average needs an example to like; or use --strategy best")
    liked = likes.mean(axis=0)
    query = liked
    if len(dislikes):
        query = liked + (liked - dislikes.mean(axis=0))
    if np.linalg.norm(query) < 1e-6:
        raise UserError("the examples cancel each other out; change one, or use --strategy best")
    return query


def best_scores(rows: np.ndarray, likes: np.ndarray, dislikes: np.ndarray) -> np.ndarray:
    """(N,) float32: the similarity to the most similar like where that exceeds the similarity to
    the most similar dislike, else minus the square of the latter.

    rows: (N, D); likes: (L, D), dislikes: (M, D), of unit norm, not both empty
    """
    assert len(likes) + len(dislikes), "there are no examples"
    scores = []
    for start in range(0, len(rows), BLOCK):
        block = unit_rows(rows[start : start + BLOCK])
        nearest_like = _most_similar(block, likes)
        nearest_dislike = _most_similar(block, dislikes)
        is_liked = nearest_like > nearest_dislike
        scores.append(np.where(is_liked, nearest_like, -(nearest_dislike**2)))
    return np.concatenate(scores)


def _most_similar(block: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """(n,) -inf without examples."""
    if not len(examples):
        return np.full(len(block), -np.inf, dtype=np.float32)
    return (block @ examples.T).max(axis=1)


def same_pictures(rows: np.ndarray, examples: np.ndarray) -> np.ndarray:
    """Numbers of the rows that are the same picture as an example.

    rows: (N, D); examples: (E, D) of unit norm
    """
    if not len(examples):
        return np.empty(0, dtype=np.int64)
    found = []
    for start in range(0, len(rows), BLOCK):
        nearest = _most_similar(unit_rows(rows[start : start + BLOCK]), examples)
        found.append(np.flatnonzero(nearest >= SAME_PICTURE) + start)
    return np.concatenate(found)
