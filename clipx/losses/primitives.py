"""Differentiable sums and maxima over all candidates of a pool. A loss is plain PyTorch over these.

Each function visits the candidates of all ranks in tiles, never holds the (B, N) matrix of logits,
and computes the tiles again in backward. Gradients arrive at this rank's rows, at the columns of
the rank that owns them, and at scale and bias. Rows and columns are B rows a rank; row i of a rank
matches its column i, which is called its own.

With the mean over local rows as the loss, and gradients averaged over ranks as data-parallel
training does, R ranks with B rows give the gradient of one process with R * B rows.

Order of collectives: forward and backward visit the pool once each, in the order in which the
functions were called, and the reverse. A loss's backward ends before that of the towers begins,
so no collective of data-parallel buckets can come in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipx.losses._gradients import full_precision
from clipx.losses._nearest import nearest_candidates as nearest_candidates
from clipx.losses._pairs import Pairs, at_least_float32, products
from clipx.losses._streaming import Tile, Tiles, add_logsumexp
from clipx.types import Block, Pool


@torch.compiler.disable
def pairwise_logsumexp(
    rows: Tensor,
    columns: Tensor,
    pool: Pool,
    *,
    scale: Tensor | float = 1.0,
    ids: Tensor | None = None,
    own: bool = True,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of the logits `scale * rows @ columns.T` over all candidates, both ways.

    rows, columns: (B, D); scale: (); ids: (B, K) int64, or None
    own: False leaves each row's own column out

    Returns (B,) for this rank's rows over the columns of all ranks, and (B,) for this rank's
    columns over the rows of all ranks; -inf where nothing counts. One matmul forward, three
    backward.
    """
    pairs = Pairs(pool, ids, own)
    scale = torch.as_tensor(scale, device=rows.device, dtype=at_least_float32(rows).dtype)
    return _LogSumExp.apply(rows, columns, scale, pairs)


class _LogSumExp(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, columns: Tensor, scale: Tensor, pairs: Pairs
    ) -> tuple[Tensor, Tensor]:
        queries = at_least_float32(rows) * scale
        row_lse = queries.new_full((len(rows),), -torch.inf)
        tiles = Tiles(queries)

        def act(block: Block) -> tuple[Tensor, ...]:
            column_lse = queries.new_full((len(block.rows[0]),), -torch.inf)
            for tile in pairs.tiles(tiles, queries, block):
                logits, scratch = tile.logits, tiles.scratch(tile)
                for total, part, dim in ((row_lse, tile.rows, 1), (column_lse, tile.columns, 0)):
                    add_logsumexp(total[part], logits, dim, logits.amax(dim), scratch)
            return (column_lse,)

        with full_precision(rows.device.type):
            (column_lse,) = pairs.share(at_least_float32(columns)).visit(act, ("logsumexp",))
        ctx.save_for_backward(rows, columns, scale, row_lse, column_lse)
        ctx.pairs = pairs
        return row_lse, column_lse

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, of_row_lse: Tensor, of_column_lse: Tensor
    ) -> tuple[Any, ...]:
        rows, columns, scale, row_lse, column_lse = ctx.saved_tensors
        tiles = Tiles(at_least_float32(rows))

        def weigh(tile: Tile, block: Block) -> Tensor:
            """The derivative of the logits: softmax over the row, and over the column."""
            of_columns, lse = block.rows[-1], block.rows[-2]
            # exp(-inf - -inf) would be NaN where nothing counts.
            low = torch.finfo(lse.dtype).min
            scratch = torch.sub(
                tile.logits, row_lse[tile.rows, None].clamp(min=low), out=tiles.scratch(tile)
            )
            weights = scratch.exp_().mul_(of_row_lse[tile.rows, None])
            over_column = tile.logits.sub_(lse[tile.columns].clamp(min=low)).exp_()
            return weights.addcmul_(over_column, of_columns[tile.columns])

        more = (column_lse, of_column_lse.to(column_lse.dtype))
        return products(ctx.pairs, tiles, rows, columns, scale, weigh, more)


@torch.compiler.disable
def pairwise_sum(
    function: Callable[[Tensor], Tensor],
    rows: Tensor,
    columns: Tensor,
    pool: Pool,
    *,
    scale: Tensor | float = 1.0,
    bias: Tensor | float = 0.0,
    ids: Tensor | None = None,
    own: bool = True,
) -> Tensor:
    """(B,) sum over all candidates of `function(scale * row @ column + bias)`.

    function: elementwise and differentiable, for example `torch.nn.functional.softplus`
    rows, columns: (B, D); scale, bias: (); ids: (B, K) int64, or None
    own: False leaves each row's own column out
    """
    pairs = Pairs(pool, ids, own)
    dtype = at_least_float32(rows).dtype
    scale, bias = (torch.as_tensor(x, device=rows.device, dtype=dtype) for x in (scale, bias))
    return _Sum.apply(rows, columns, scale, bias, function, pairs)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        function: Callable[[Tensor], Tensor],
        pairs: Pairs,
    ) -> Tensor:
        queries = at_least_float32(rows) * scale
        sums = queries.new_zeros(len(rows))
        tiles = Tiles(queries)

        def act(block: Block) -> tuple[Tensor, ...]:
            for tile in pairs.tiles(tiles, queries, block):
                left_out = tile.logits == -torch.inf
                values = function(tile.logits.masked_fill_(left_out, 0).add_(bias))
                sums[tile.rows] += values.masked_fill(left_out, 0).sum(1)
            return ()

        with full_precision(rows.device.type):
            pairs.share(at_least_float32(columns)).visit(act, ())
        ctx.save_for_backward(rows, columns, scale, bias)
        ctx.function, ctx.pairs = function, pairs
        return sums

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, of_sums: Tensor) -> tuple[Any, ...]:  # type: ignore[override]
        rows, columns, scale, bias = ctx.saved_tensors
        tiles = Tiles(at_least_float32(rows))
        of_bias = torch.zeros_like(bias)

        def weigh(tile: Tile, block: Block) -> Tensor:
            left_out = tile.logits == -torch.inf
            with torch.enable_grad():
                logits = tile.logits.masked_fill(left_out, 0).add_(bias).requires_grad_()
                (slope,) = torch.autograd.grad(ctx.function(logits).sum(), logits)
            weights = slope.masked_fill(left_out, 0).mul_(of_sums[tile.rows, None])
            of_bias.add_(weights.sum())
            return weights

        of_rows, of_columns, of_scale, _ = products(
            ctx.pairs, tiles, rows, columns, scale, weigh, ()
        )
        return of_rows, of_columns, of_scale, of_bias, None, None
