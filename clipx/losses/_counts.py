"""How many candidates a pool has, and how many of them have a row's id."""

from __future__ import annotations

import torch
from torch import Tensor

from clipx.types import CandidateBlock, Pool


def num_candidates(rows: Tensor, pool: Pool) -> int:
    """The number of columns that each of this rank's rows meets. rows: (B, D)"""
    total = 0

    def compute(block: CandidateBlock) -> tuple[Tensor, ...]:
        nonlocal total
        total += len(block.rows[0])
        return ()

    # One coordinate of each row, because the pool shares tensors, not numbers.
    pool.share(rows.detach()[:, :1].contiguous()).visit(compute, ())
    return total


def num_equal(ids: Tensor, pool: Pool) -> Tensor:
    """(B, 1) ids -> (B,) how many candidates have each, with the row's own column."""
    counts = torch.zeros_like(ids[:, 0])

    def compute(block: CandidateBlock) -> tuple[Tensor, ...]:
        counts.add_(num_equal_among(ids, block.rows[0]))
        return ()

    pool.share(ids).visit(compute, ())
    return counts


def num_equal_among(ids: Tensor, others: Tensor) -> Tensor:
    """(B, 1) ids -> (B,) how many of the (N, 1) others equal each."""
    # In order, equal ids are neighbors: this takes memory of N, where a comparison takes B x N.
    ordered = others[:, 0].sort().values
    wanted = ids[:, 0].contiguous()
    first = torch.searchsorted(ordered, wanted)
    after_last = torch.searchsorted(ordered, wanted, right=True)
    return after_last - first
