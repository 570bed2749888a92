"""Similarities in which equal rows have equal scores, bit by bit.

A product of matrices rounds an element by where it stands: the same two rows, at another place or
in a block of another shape, may score 1e-7 more or less. A tie would then be won or lost by chance.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor


def row_ids(features: Tensor) -> Tensor:
    """(N,) int64: the number of the first row that equals each of the (N, D) rows."""
    rows = (features.detach().cpu() + 0.0).contiguous().numpy()  # -0.0 becomes 0.0
    first: dict[bytes, int] = {}
    ids = [
        first.setdefault(hashlib.blake2b(row, digest_size=16).digest(), number)
        for number, row in enumerate(rows)
    ]
    return torch.tensor(ids, dtype=torch.int64)


def similarities(rows: Tensor, columns: Tensor, column_ids: Tensor | None = None) -> Tensor:
    """(N, M) products of (N, D) rows with (M, D) columns. Equal columns have equal scores.

    column_ids: `row_ids(columns)`, where it is known already
    """
    ids = row_ids(columns) if column_ids is None else column_ids
    scores = rows @ columns.T
    repeated = ids != torch.arange(len(ids))
    if repeated.any():
        scores = scores[:, ids.to(scores.device)]
    return scores
