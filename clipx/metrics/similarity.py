"""Similarities in which equal rows have equal scores, bit by bit.

A product of matrices rounds an element by its place: the same two rows, at another place or in a
block of another shape, may score 1e-7 more or less. A tie would then be won or lost by chance.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def row_ids(features: Tensor) -> Tensor:
    """(N,) int64: the number of the first row that equals each of the (N, D) rows."""
    rows = (features.detach().cpu() + 0.0).contiguous().numpy()  # + 0.0 turns -0.0 into 0.0
    first: dict[bytes, int] = {}
    ids = []
    # Digests take 16 bytes a row, where the rows of a large set would fill the memory.
    for number, row in enumerate(rows):
        digest = hashlib.blake2b(row, digest_size=16).digest()
        ids.append(first.setdefault(digest, number))
    return torch.tensor(ids, dtype=torch.int64)


def similarities(rows: Tensor, columns: Tensor, column_ids: Tensor | None = None) -> Tensor:
    """(N, M) products of (N, D) rows with (M, D) columns. Equal columns have equal scores.

    column_ids: `row_ids(columns)` if known
    """
    ids = row_ids(columns) if column_ids is None else column_ids
    scores = rows @ columns.T
    is_repeated = ids != torch.arange(len(ids))
    if is_repeated.any():  # copy the column of the first of each kind; rare, so most pay nothing
        scores = scores[:, ids.to(scores.device)]
    return scores


def nearest_neighbors(
    query: Tensor, candidate: Tensor, k: int, *, block: int = 4096
) -> tuple[Tensor, Tensor]:
    """((N, k) similarities, (N, k) int64 candidates), best first, without the whole matrix.

    query: (N, D); candidate: (M, D)
    """
    values = []
    indices = []
    for rows in query.split(block):
        best = (rows @ candidate.T).topk(k, dim=1)
        values.append(best.values)
        indices.append(best.indices)
    return torch.cat(values), torch.cat(indices)
