"""Nearest rows of a matrix by comparing all of them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BLOCK = 16_384  # rows that are compared, or added to an index, at a time
CONVERTED = 2048  # rows that become float32 at a time, which a core's cache holds
ROUNDING = 1e-5  # more than a float32 product of unit rows is off


def nearest_rows(
    queries: Tensor, rows: np.ndarray, k: int, *, among: np.ndarray | None = None
) -> tuple[Tensor, Tensor]:
    """((Q, k) similarities, (Q, k) int64 rows), best first; -inf and -1 if there are fewer. Of
    rows with equal similarities the first comes first.

    A product of matrices rounds an element by its place, so that equal rows may score differently.
    It only finds candidates here, whose similarities are then computed in float64, row by row.

    queries: (Q, D) float32 of unit norm; rows: (N, D) of unit norm
    among: (M,) int64, the only rows to compare, in ascending order; None compares all
    """
    candidates: list[list[Tensor]] = [[] for _ in queries]
    for first in range(0, len(rows) if among is None else len(among), BLOCK):
        numbers = None if among is None else among[first : first + BLOCK]
        compared = rows[first : first + BLOCK] if numbers is None else rows[numbers]
        scores = products(queries, compared)
        least = scores.topk(min(k, scores.shape[1]), dim=1).values[:, -1:]
        for found, is_near in zip(candidates, scores >= least - ROUNDING, strict=True):
            places = is_near.nonzero()[:, 0]
            found.append(places + first if numbers is None else torch.from_numpy(numbers)[places])
    values = torch.full((len(queries), k), -torch.inf)
    nearest = torch.full((len(queries), k), -1)
    for number, (query, found) in enumerate(zip(queries.double(), candidates, strict=True)):
        near = torch.cat(found) if found else torch.empty(0, dtype=torch.int64)
        exact = (torch.from_numpy(rows[near.numpy()]).double() * query).sum(1)
        order = exact.sort(descending=True, stable=True).indices[:k]
        values[number, : len(order)] = exact[order].float()
        nearest[number, : len(order)] = near[order]
    return values, nearest


def products(queries: Tensor, rows: np.ndarray) -> Tensor:
    """(Q, N) float32 inner products of (Q, D) float32 and (N, D) float16 or float32."""
    scores = torch.empty(len(queries), len(rows))
    for first in range(0, len(rows), CONVERTED):
        block = torch.from_numpy(rows[first : first + CONVERTED])
        scores[:, first : first + CONVERTED] = queries @ block.float().T
    return scores


def as_float32(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows, dtype=np.float32)
