"""Sums of a function of each pair over all candidates, with their gradients; see `primitives`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from clipx.losses._pairs import NearestLogits, gradients_of_pairs
from clipx.losses._tiles import Columns, Match, Own, Tile, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock, Negatives, Pool


class Elementwise(NamedTuple):
    """A function of logits and its derivative; row_sums: (r, c) -> (r,), if there is a faster way
    than `function(logits).sum(1)`."""

    function: Callable[[Tensor], Tensor]
    derivative: Callable[[Tensor], Tensor]
    row_sums: Callable[[Tensor], Tensor] | None


def derivative_of(function: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """By autograd, elementwise."""

    def derivative(logits: Tensor) -> Tensor:
        # Backward of a custom function runs without a graph, so a graph of its own is needed here.
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            (slopes,) = torch.autograd.grad(function(logits).sum(), logits)
        return slopes

    return derivative


class Pairs:
    """The function at the pairs of this rank's rows with the columns of all ranks."""

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        of_logit: Elementwise,
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
        *,
        match: Match = "different",
        keep: bool = True,
    ) -> None:
        """match, keep: as for `Tiles`; the others: as for `pairwise_sum`"""
        self.queries = at_least_float32(rows) * scale
        self.tiles = Tiles(self.queries, ids, own, match=match, keep=keep)
        self.shared = Columns(at_least_float32(columns), column_ids, pool)
        self._of_logit = of_logit
        self._bias = bias
        # Pairs that do not count have logits of -inf.
        self._has_masks = ids is not None or own == "left out"

    def row_sums(self, tile: Tile) -> Tensor:
        """(r,)"""
        logits = self._with_bias(tile)
        if self._of_logit.row_sums is not None and not self._has_masks:
            return self._of_logit.row_sums(logits)
        # A function of -inf may be NaN, and so would 0 times its derivative be.
        excluded = logits == -torch.inf
        values = self._of_logit.function(logits.masked_fill_(excluded, 0))
        return values.masked_fill(excluded, 0).sum(1)

    def slopes(self, tile: Tile) -> Tensor:
        """(r, c) derivative at each pair, 0 for pairs that do not count."""
        logits = self._with_bias(tile)
        if not self._has_masks:
            return self._of_logit.derivative(logits)
        excluded = logits == -torch.inf
        return self._of_logit.derivative(logits.masked_fill_(excluded, 0)).masked_fill(excluded, 0)

    def _with_bias(self, tile: Tile) -> Tensor:
        """A copy, which may be overwritten: tiles that are kept for backward must not change."""
        logits = self.tiles.buffer("scratch", tile.logits.shape)
        return torch.add(tile.logits, self._bias, out=logits)


class SumFunction(torch.autograd.Function):
    """(sums (B,), own (B,), largest_other (B,)); the last two as for `LogSumExpFunction`."""

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        of_logit: Elementwise,
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
        match: Match,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = Pairs(rows, columns, scale, bias, of_logit, pool, ids, column_ids, own, match=match)
        sums = pairs.queries.new_zeros(len(rows))
        nearest = NearestLogits(pairs.queries, own)

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            for tile in pairs.tiles.of_block(block, ids):
                nearest.update(tile)
                sums[tile.rows] += pairs.row_sums(tile)
            return ()

        with full_precision(rows.device.type):
            pairs.shared.visit(compute, ())
        pairs.tiles.release()
        ctx.save_for_backward(rows, scale, bias)
        ctx.tiles = pairs.tiles
        ctx.shared = pairs.shared
        ctx.pairs = pairs
        ctx.columns_dtype = columns.dtype
        ctx.mark_non_differentiable(nearest.own, nearest.largest_other)
        return sums, nearest.own, nearest.largest_other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_sums: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows, scale, bias = ctx.saved_tensors
        of_bias = torch.zeros_like(bias)

        def weigh(tile: Tile) -> Tensor:
            second = ctx.tiles.buffer("second", tile.logits.shape)
            weights = torch.mul(ctx.pairs.slopes(tile), grad_sums[tile.rows, None], out=second)
            of_bias.add_(weights.sum())
            return weights

        # The other inputs of `forward` have no gradient.
        return (*gradients_of_pairs(ctx, rows, scale, weigh), of_bias, *[None] * 6)


class TotalFunction(torch.autograd.Function):
    """(total (), own (B,), largest_other (B,)): the sum over all rows too.

    All pairs have the same part in it, so gradients are computed with the total, up to the factor
    that backward brings: three matmuls, where the sums of rows take four.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        bias: Tensor,
        of_logit: Elementwise,
        pool: Pool | None,
        ids: Tensor | None,
        column_ids: Tensor | None,
        own: Own,
        needs_gradients: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        pairs = Pairs(rows, columns, scale, bias, of_logit, pool, ids, column_ids, own, keep=False)
        queries = pairs.queries
        sums = queries.new_zeros(len(rows))
        nearest = NearestLogits(queries, own)
        of_queries = torch.zeros_like(queries)
        of_bias = torch.zeros_like(bias)
        # The columns of a locked tower have no gradient, which saves one of three matmuls.
        needs_columns = needs_gradients and columns.requires_grad

        def compute(block: CandidateBlock, ids: Tensor | None) -> tuple[Tensor, ...]:
            of_columns = torch.zeros_like(block.rows[0])
            for tile in pairs.tiles.of_block(block, ids):
                nearest.update(tile)
                sums[tile.rows] += pairs.row_sums(tile)
                if not needs_gradients:
                    continue
                slopes = pairs.slopes(tile)
                of_bias.add_(slopes.sum())
                of_queries[tile.rows].addmm_(slopes, tile.candidates)
                if needs_columns:
                    of_columns[tile.columns].addmm_(slopes.T, queries[tile.rows])
            return (of_columns,) if needs_columns else ()

        with full_precision(rows.device.type):
            reduced = pairs.shared.visit(compute, ("sum",) if needs_columns else ())
        of_columns = reduced[0].to(columns.dtype) if needs_columns else None
        of_rows = (of_queries * scale).to(rows.dtype)
        of_scale = (of_queries * at_least_float32(rows)).sum()
        ctx.save_for_backward(of_rows, of_columns, of_scale, of_bias)
        ctx.mark_non_differentiable(nearest.own, nearest.largest_other)
        return sums.sum(), nearest.own, nearest.largest_other

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_total: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        of_rows, of_columns, of_scale, of_bias = ctx.saved_tensors
        gradients = []
        for gradient in (of_rows, of_columns, of_scale, of_bias):
            gradients.append(None if gradient is None else gradient * grad_total)
        return (*gradients, *[None] * 6)


def sums_with_negatives(
    of_pairs: type[SumFunction | TotalFunction],
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    bias: Tensor,
    functions: Elementwise,
    pool: Pool | None,
    ids: Tensor | None,
    column_ids: Tensor | None,
    own: Own,
    option: Match | bool,
    negatives: Negatives | None,
) -> tuple[Tensor, Tensor]:
    """(sums of `of_pairs`, own_is_nearest), with further negatives as for `pairwise_sum`.

    option: the last argument of `of_pairs`
    """
    sums, own_logits, largest_other = of_pairs.apply(
        rows, columns, scale, bias, functions, pool, ids, column_ids, own, option
    )
    if negatives is not None:
        others = (scale, bias, functions, None, ids, negatives.ids, "absent", option)
        for_rows = of_pairs.apply(rows, negatives.columns, *others)
        for_columns = of_pairs.apply(columns, negatives.rows, *others)
        # Past pairs are negatives of both directions: this image with past texts, and this text
        # with past images.
        sums = sums + for_rows[0] + for_columns[0]
        largest_other = torch.maximum(largest_other, for_rows[2])
    return sums, own_logits > largest_other
