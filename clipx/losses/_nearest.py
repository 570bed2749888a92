"""Largest products over all candidates, with their gradients; see `primitives`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.losses._tiles import Columns, Own, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock, Pool


class NearestFunction(torch.autograd.Function):
    """(B, k) largest products, largest first."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        k: int,
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
    ) -> Tensor:
        queries = at_least_float32(rows)
        tiles = Tiles(queries, ids, own)
        shared = Columns(at_least_float32(columns), column_ids, pool)
        best = queries.new_full((len(rows), k), -torch.inf)
        # Numbers of the best candidates, counted over all blocks.
        place = torch.full((len(rows), k), -1, device=rows.device)
        num_seen = 0

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            nonlocal num_seen
            for tile in tiles.of_block(block, ids):
                # The best k of a row so far, and of this tile: the best k of both together.
                in_tile = tile.logits.topk(min(k, tile.logits.shape[1]), dim=1)
                first_place = num_seen + tile.columns.start
                values = torch.cat([best[tile.rows], in_tile.values], 1)
                places = torch.cat([place[tile.rows], in_tile.indices + first_place], 1)
                top = values.topk(k, dim=1)
                best[tile.rows] = top.values
                place[tile.rows] = places.gather(1, top.indices)
            num_seen += len(block.rows[0])
            return ()

        with full_precision(rows.device.type):
            shared.visit(compute, ())
        ctx.save_for_backward(rows, place.masked_fill(best == -torch.inf, -1))
        ctx.shared = shared
        ctx.columns_dtype = columns.dtype
        return best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_best: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, place = ctx.saved_tensors
        queries = at_least_float32(rows)
        of_queries = torch.zeros_like(queries)
        num_seen = 0

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            # Blocks come in the same order as in forward, so that places mean the same.
            nonlocal num_seen
            columns = block.rows[0]
            of_columns = torch.zeros_like(columns)
            # Only k entries of a row have a gradient, so backward needs no matmul.
            in_block = (place >= num_seen) & (place < num_seen + len(columns))
            row, entry = in_block.nonzero().T
            column = place[row, entry] - num_seen
            weight = grad_best[row, entry, None]
            of_queries.index_add_(0, row, weight * columns[column])
            of_columns.index_add_(0, column, weight * queries[row])
            num_seen += len(columns)
            return (of_columns,)

        with full_precision(rows.device.type):
            (of_columns,) = ctx.shared.visit(compute, ("sum",))
        return of_queries.to(rows.dtype), of_columns.to(ctx.columns_dtype), *[None] * 5
