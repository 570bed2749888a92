"""Sum of a function of each pair over all candidates, with its gradients; see `primitives`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipx.losses._pairs import NearestLogits, gradients_of_pairs
from clipx.losses._tiles import Columns, Own, Tile, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock, Pool

Elementwise = Callable[[Tensor], Tensor]


class SumFunction(torch.autograd.Function):
    """(sums (B,), own (B,), largest_other (B,)); the last two as for `LogSumExpFunction`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        functions: tuple[Elementwise, Elementwise, Elementwise | None],
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
    ) -> tuple[Tensor, Tensor, Tensor]:
        function, derivative, row_sums = functions
        queries = at_least_float32(rows) * scale
        tiles = Tiles(queries, ids, own)
        shared = Columns(at_least_float32(columns), column_ids, pool)
        has_masks = ids is not None or own == "left out"

        sums = queries.new_zeros(len(rows))
        nearest = NearestLogits(queries, own)

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            for tile in tiles.of_block(block, ids):
                nearest.update(tile)
                # A copy: tiles that are kept for backward must not change.
                logits = tiles.buffer("scratch", tile.logits.shape)
                torch.add(tile.logits, bias, out=logits)
                if row_sums is not None and not has_masks:
                    sums[tile.rows] += row_sums(logits)  # overwrites logits
                    continue
                # A function of -inf may be NaN, and so would 0 times its derivative be.
                excluded = logits == -torch.inf
                values = function(logits.masked_fill_(excluded, 0)).masked_fill(excluded, 0)
                sums[tile.rows] += values.sum(1)
            return ()

        with full_precision(rows.device.type):
            shared.visit(compute, ())
        tiles.release()
        ctx.save_for_backward(rows, scale, bias)
        ctx.tiles = tiles
        ctx.shared = shared
        ctx.derivative = derivative
        ctx.has_masks = has_masks
        ctx.columns_dtype = columns.dtype
        ctx.mark_non_differentiable(nearest.own, nearest.largest_other)
        return sums, nearest.own, nearest.largest_other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, scale, bias = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        of_bias = torch.zeros_like(bias)

        def weigh(tile: Tile) -> Tensor:
            logits = tiles.buffer("scratch", tile.logits.shape)
            torch.add(tile.logits, bias, out=logits)
            if ctx.has_masks:
                # Pairs that do not count have a slope of 0, also where that of -inf is NaN.
                excluded = logits == -torch.inf
                slopes = ctx.derivative(logits.masked_fill_(excluded, 0)).masked_fill(excluded, 0)
            else:
                slopes = ctx.derivative(logits)
            second = tiles.buffer("second", tile.logits.shape)
            weights = torch.mul(slopes, grad_sums[tile.rows, None], out=second)
            of_bias.add_(weights.sum())
            return weights

        # The other inputs of `forward` have no gradient.
        return (*gradients_of_pairs(ctx, rows, scale, weigh), of_bias, *[None] * 5)
