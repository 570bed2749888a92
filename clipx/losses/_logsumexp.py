"""Log-sum-exp over all candidates, with its gradients; see `primitives`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.losses._pairs import NearestLogits, gradients_of_pairs
from clipx.losses._tiles import Columns, Own, Tile, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock, Pool


class LogSumExpFunction(torch.autograd.Function):
    """(row_lse (B,), column_lse (B,), own (B,), largest_other (B,)). The last two are logits and
    have no gradient; `own` is 0 unless own columns count."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
        log_row_weights: Tensor | None,
        log_column_weights: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        queries = at_least_float32(rows) * scale
        tiles = Tiles(queries, ids, own)
        shared = Columns(at_least_float32(columns), column_ids, log_column_weights, pool)
        row_lse = queries.new_full((len(rows),), -torch.inf)
        nearest = NearestLogits(queries, own)

        def compute(block: CandidateBlock, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
            column_lse = queries.new_full((len(block.rows[0]),), -torch.inf)
            weights = tensors.get("weights")
            for tile in tiles.first(block, tensors.get("ids")):
                scratch = tiles.scratch(tile)
                nearest.update(tile)
                # Tiles that are kept for backward must not change, so weights go to a copy.
                of_rows = of_columns = tile.logits
                if weights is not None:
                    of_rows = tile.logits + weights[tile.columns]
                if log_row_weights is not None:
                    of_columns = tile.logits + log_row_weights[tile.rows, None]
                _add_logsumexp(row_lse[tile.rows], of_rows, 1, scratch)
                _add_logsumexp(column_lse[tile.columns], of_columns, 0, scratch)
            return (column_lse,)

        with full_precision(rows.device.type):
            (column_lse,) = shared.visit(compute, ("logsumexp",))
        tiles.release()
        ctx.save_for_backward(rows, scale, row_lse, column_lse)
        # Gathered columns are kept until backward, so that they need not travel again.
        ctx.tiles = tiles
        ctx.shared = shared
        ctx.log_row_weights = log_row_weights
        ctx.columns_dtype = columns.dtype
        ctx.mark_non_differentiable(nearest.own, nearest.largest_other)
        ctx.set_materialize_grads(False)
        return row_lse, column_lse, nearest.own, nearest.largest_other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_row_lse: Tensor | None, grad_column_lse: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        rows, scale, row_lse, column_lse = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        log_row_weights: Tensor | None = ctx.log_row_weights
        extra: dict[str, Tensor] = {}
        if grad_column_lse is not None:
            extra = {"lse": column_lse, "grad": grad_column_lse}

        def weigh(tile: Tile, tensors: dict[str, Tensor]) -> Tensor:
            # d lse_i / d logit_ij is the softmax over row i; the same for columns.
            weights = tiles.scratch(tile).zero_()
            if grad_row_lse is not None:
                over_row = _softmax(tile, row_lse[tile.rows, None], weights)
                if "weights" in tensors:
                    over_row *= tensors["weights"][tile.columns].exp()
                over_row *= grad_row_lse[tile.rows, None]
            if grad_column_lse is not None:
                second = tiles.scratch(tile, "second")
                over_column = _softmax(tile, tensors["lse"][tile.columns], second)
                if log_row_weights is not None:
                    over_column *= log_row_weights[tile.rows, None].exp()
                weights.addcmul_(over_column, tensors["grad"][tile.columns])
            return weights

        return (*gradients_of_pairs(ctx, rows, scale, weigh, **extra), *[None] * 6)


def _add_logsumexp(total: Tensor, logits: Tensor, dim: int, scratch: Tensor) -> None:
    """total = log(exp(total) + sum of exp(logits) over dim), in place."""
    # Without the maximum taken out, logits of 100 overflow float32 and those of -110 vanish. The
    # clamp keeps a row whose logits are all -inf at -inf, where -inf - -inf would be NaN.
    largest = logits.amax(dim).clamp(min=torch.finfo(logits.dtype).min)
    torch.sub(logits, largest.unsqueeze(dim), out=scratch).exp_()
    torch.logaddexp(total, scratch.sum(dim).log_().add_(largest), out=total)


def _softmax(tile: Tile, lse: Tensor, out: Tensor) -> Tensor:
    """exp(logits - lse) into `out`; 0 where nothing counts and lse is -inf."""
    lse = lse.clamp(min=torch.finfo(lse.dtype).min)
    return torch.sub(tile.logits, lse, out=out).exp_()
