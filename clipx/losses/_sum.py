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
        column_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        function, derivative, row_sums = functions
        queries = at_least_float32(rows) * scale
        tiles = Tiles(queries, ids, own)
        shared = Columns(at_least_float32(columns), column_ids, column_weights, pool)
        has_masks = ids is not None or own == "left out"

        sums = queries.new_zeros(len(rows))
        nearest = NearestLogits(queries, own)

        def compute(block: CandidateBlock, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
            for tile in tiles.first(block, tensors.get("ids")):
                nearest.update(tile)
                # A copy: tiles that are kept for backward must not change.
                logits = torch.add(tile.logits, bias, out=tiles.scratch(tile))
                if row_sums is not None and not has_masks and column_weights is None:
                    sums[tile.rows] += row_sums(logits)  # overwrites logits
                    continue
                # A function of -inf may be NaN, and so would 0 times its derivative be.
                excluded = logits == -torch.inf
                values = function(logits.masked_fill_(excluded, 0)).masked_fill(excluded, 0)
                if "weights" in tensors:
                    values = values * tensors["weights"][tile.columns]
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

        def slopes(tile: Tile) -> Tensor:
            """(r, c) derivative of the function; 0 for pairs that do not count."""
            logits = torch.add(tile.logits, bias, out=tiles.scratch(tile))
            if not ctx.has_masks:
                return ctx.derivative(logits)
            excluded = logits == -torch.inf
            return ctx.derivative(logits.masked_fill_(excluded, 0)).masked_fill(excluded, 0)

        def weigh(tile: Tile, tensors: dict[str, Tensor]) -> Tensor:
            second = tiles.scratch(tile, "second")
            weights = torch.mul(slopes(tile), grad_sums[tile.rows, None], out=second)
            if "weights" in tensors:
                weights *= tensors["weights"][tile.columns]
            of_bias.add_(weights.sum())
            return weights

        gradients = gradients_of_pairs(ctx, rows, scale, weigh)
        return (*gradients, of_bias, *[None] * 6)
