"""Nearest rows of a matrix by comparing all of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 16_384  # rows that are compared, or added to an index, at a time
ROUNDING = 1e-5  # more than a float32 product of unit rows is off


def nearest_rows(
    queries: Tensor, rows: np.ndarray, k: int, *, kept: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """((Q, k) similarities, (Q, k) int64 rows), best first; -inf and -1 if there are fewer. Of
    rows with equal similarities the first comes first.

    A product of matrices rounds an element by its place, so that equal rows may score differently.
    It only finds candidates here, whose similarities are then computed in float64, row by row.

    queries: (Q, D) float32 of unit norm; rows: (N, D) of unit norm
    kept: (N,) bool, False for rows that are not found
    """
    if kept is not None and kept.all():
        kept = None
    candidates: list[list[Tensor]] = [[] for _ in queries]
    for first in range(0, len(rows), BLOCK):
        scores = queries @ torch.from_numpy(as_float32(rows[first : first + BLOCK])).T
        if kept is not None:
            removed = torch.from_numpy(~kept[first : first + BLOCK])
            scores.masked_fill_(removed, -torch.inf)
        least = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
        # Where fewer rows are kept than are wanted, the least is that of a removed one.
        is_candidate = (scores >= least - ROUNDING) & (scores > -torch.inf)
        for found, block in zip(candidates, is_candidate, strict=True):
            found.append(block.nonzero()[:, 0] + first)
    values = torch.full((len(queries), k), -torch.inf)
    numbers = torch.full((len(queries), k), -1)
    for number, (query, found) in enumerate(zip(queries.double(), candidates, strict=True)):
        places = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
        exact = (torch.from_numpy(rows[places.numpy()]).double() * query).sum(1)
        order = exact.sort(descending=True, stable=True).indices[:k]
        values[number, : len(order)] = exact[order].float()
        numbers[number, : len(order)] = places[order]
    return values, numbers


def as_float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, dtype=np.float32)
