"""Largest products over all candidates of a pool; see `primitives`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.losses._gradients import full_precision
from clipx.losses._pairs import Pairs, at_least_float32
from clipx.losses._streaming import Tiles
from clipx.types import Block, Pool


@torch.compiler.disable
def nearest_candidates(
    rows: Tensor, columns: Tensor, pool: Pool, k: int, *, ids: Tensor | None = None
) -> Tensor:
    """(B, k) largest products `rows @ columns.T` of each row over all candidates, largest first,
    its own column left out; -inf where fewer than k count. The gradient of an entry goes to its row
    and to the column that it was found at.

    rows, columns: (B, D); ids: (B, K) int64, or None
    """
    return _Nearest.apply(rows, columns, k, Pairs(pool, ids, own=False))


class _Nearest(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, k: int, pairs: Pairs) -> Tensor:
        queries = at_least_float32(rows)
        best = queries.new_full((len(rows), k), -torch.inf)
        place = torch.full((len(rows), k), -1, device=rows.device)
        tiles, seen = Tiles(queries), 0

        def act(block: Block) -> tuple[Tensor, ...]:
            nonlocal seen
            for tile in pairs.tiles(tiles, queries, block):
                here = tile.logits.topk(min(k, tile.logits.shape[1]), dim=1)
                values = torch.cat([best[tile.rows], here.values], 1)
                places = torch.cat([place[tile.rows], here.indices + seen + tile.columns.start], 1)
                top = values.topk(k, dim=1)
                best[tile.rows], place[tile.rows] = top.values, places.gather(1, top.indices)
            seen += len(block.rows[0])
            return ()

        with full_precision(rows.device.type):
            pairs.share(at_least_float32(columns)).visit(act, ())
        ctx.save_for_backward(rows, columns, place.masked_fill(best == -torch.inf, -1))
        ctx.pairs = pairs
        return best

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_best: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, columns, place = ctx.saved_tensors
        queries, seen = at_least_float32(rows), 0
        of_rows = torch.zeros_like(queries)

        def act(block: Block) -> tuple[Tensor, ...]:
            """The blocks come in the same order as in forward."""
            nonlocal seen
            candidates = block.rows[0]
            of_columns = torch.zeros_like(candidates)
            row, entry = ((place >= seen) & (place < seen + len(candidates))).nonzero().T
            column, weight = place[row, entry] - seen, of_best[row, entry, None]
            of_rows.index_add_(0, row, weight * candidates[column])
            of_columns.index_add_(0, column, weight * queries[row])
            seen += len(candidates)
            return (of_columns,)

        with full_precision(rows.device.type):
            (of_columns,) = ctx.pairs.share(at_least_float32(columns)).visit(act, ("sum",))
        return of_rows.to(rows.dtype), of_columns.to(columns.dtype), None, None
