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
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        queries = at_least_float32(rows) * scale
        tiles = Tiles(queries, ids, own)
        shared = Columns(at_least_float32(columns), column_ids, pool)
        row_lse = queries.new_full((len(rows),), -torch.inf)
        nearest = NearestLogits(queries, own)

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            column_lse = queries.new_full((len(block.rows[0]),), -torch.inf)
            for tile in tiles.of_block(block, ids):
                scratch = tiles.buffer("scratch", tile.logits.shape)
                nearest.update(tile)
                # One tile serves both directions: images against texts, and texts against images.
                _add_logsumexp(row_lse[tile.rows], tile.logits, 1, scratch)
                _add_logsumexp(column_lse[tile.columns], tile.logits, 0, scratch)
            return (column_lse,)

        with full_precision(rows.device.type):
            (column_lse,) = shared.visit(compute, ("logsumexp",))
        tiles.release()
        ctx.save_for_backward(rows, scale, row_lse, column_lse)
        # Gathered columns are kept until backward, so that they need not travel again.
        ctx.tiles = tiles
        ctx.shared = shared
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
        extra = () if grad_column_lse is None else (column_lse, grad_column_lse)

        def weigh(tile: Tile, *of_columns: Tensor) -> Tensor:
            # d lse_i / d logit_ij is the softmax over row i; the same for columns.
            weights = tiles.buffer("scratch", tile.logits.shape).zero_()
            if grad_row_lse is not None:
                _softmax(tile, row_lse[tile.rows, None], weights)
                weights *= grad_row_lse[tile.rows, None]
            if of_columns:
                lse, grad = of_columns
                second = tiles.buffer("second", tile.logits.shape)
                over_column = _softmax(tile, lse[tile.columns], second)
                weights.addcmul_(over_column, grad[tile.columns])
            return weights

        # The other inputs of `forward` have no gradient.
        return (*gradients_of_pairs(ctx, rows, scale, weigh, *extra), *[None] * 4)


def weighted_logsumexp(
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    row_weights: Tensor | None,
    column_weights: Tensor | None,
    pool: Pool | None,
    ids: Tensor | None,
    column_ids: Tensor | None,
    own: Own,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`LogSumExpFunction` with weights of the terms, as for `pairwise_logsumexp`."""
    # A weight of a term is a summand of its logit, which two further coordinates add. Each sum
    # then has its own row's (or column's) summand in all terms, and it is taken off again.
    of_row = _log_weights(row_weights, scale, len(rows))
    of_column = _log_weights(column_weights, scale, len(columns))
    summands = torch.stack([of_row, torch.ones_like(of_row)], 1)
    left = torch.cat([scale * rows, summands], 1)
    summands = torch.stack([torch.ones_like(of_column), of_column], 1)
    right = torch.cat([columns.to(scale.dtype), summands], 1)
    row_lse, column_lse, own_logits, largest_other = LogSumExpFunction.apply(
        left, right, torch.ones_like(scale), pool, ids, column_ids, own
    )
    return row_lse - of_row, column_lse - of_column, own_logits - of_row, largest_other - of_row


def _log_weights(weights: Tensor | None, scale: Tensor, count: int) -> Tensor:
    """(count,) logarithms of (count,) weights, 0 without them."""
    if weights is None:
        return scale.new_zeros(count)
    return weights.detach().to(scale.dtype).log()


def logaddexp(first: Tensor, second: Tensor) -> Tensor:
    """As torch's, but the gradient is 0 where both are -inf, not NaN."""
    # Rows without any candidate: replaced before the call, since NaN times 0 would stay NaN.
    empty = (first == -torch.inf) & (second == -torch.inf)
    total = torch.logaddexp(first.masked_fill(empty, 0), second.masked_fill(empty, 0))
    return total.masked_fill(empty, -torch.inf)


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
