"""Expectations of logits under a teacher's softmax over all candidates, with their gradients; see
`primitives`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clipx.losses._pairs import gradients_of_pairs
from clipx.losses._tiles import Columns, Tile, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock, Pool


class ExpectationFunction(torch.autograd.Function):
    """(of rows (B,), of columns (B,)): the expectation of a logit minus the teacher's logit.

    The difference is summed rather than each of the two, because it is small where the student
    resembles the teacher, and logits of 100 would leave float32 no digits for it.
    """

    @staticmethod
    def forward(
        ctx: Any,
        rows: Tensor,
        columns: Tensor,
        scale: Tensor,
        pool: Pool | None,
        teacher_queries: Tensor,
        teacher_columns: Tensor,
        teacher_row_lse: Tensor,
        teacher_column_lse: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """teacher_queries: its rows times its scale; the last two: log-sum-exps of its logits"""
        queries = at_least_float32(rows) * scale
        tiles = Tiles(queries, None, "counts")
        shared = Columns(at_least_float32(columns), None, pool)
        teacher = Teacher(tiles, teacher_queries, teacher_row_lse)
        of_rows = queries.new_zeros(len(rows))

        def compute(
            block: CandidateBlock, ids: None, teacher_columns: Tensor, column_lse: Tensor
        ) -> tuple[Tensor, ...]:
            of_columns = queries.new_zeros(len(block.rows[0]))
            for tile in tiles.of_block(block, None):
                logits = teacher.logits(tile, teacher_columns)
                difference = torch.sub(
                    tile.logits, logits, out=tiles.buffer("difference", logits.shape)
                )
                over_row = teacher.over_row(tile, logits)
                of_rows[tile.rows] += over_row.mul_(difference).sum(1)
                over_column = teacher.over_column(tile, logits, column_lse)
                of_columns[tile.columns] += over_column.mul_(difference).sum(0)
            return (of_columns,)

        extra = (at_least_float32(teacher_columns), teacher_column_lse)
        with full_precision(rows.device.type):
            (of_columns,) = shared.visit(compute, ("sum",), *extra)
        tiles.release()
        ctx.save_for_backward(rows, scale, *extra)
        ctx.tiles = tiles
        ctx.shared = shared
        ctx.teacher = teacher
        ctx.columns_dtype = columns.dtype
        return of_rows, of_columns

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, grad_of_rows: Tensor, grad_of_columns: Tensor
    ) -> tuple[Tensor | None, ...]:
        rows, scale, *extra = ctx.saved_tensors
        teacher: Teacher = ctx.teacher

        def weigh(tile: Tile, teacher_columns: Tensor, column_lse: Tensor, grad: Tensor) -> Tensor:
            # An expectation is linear in the logits, with the teacher's softmax as weights.
            logits = teacher.logits(tile, teacher_columns)
            weights = teacher.over_row(tile, logits).mul_(grad_of_rows[tile.rows, None])
            over_column = teacher.over_column(tile, logits, column_lse)
            return weights.add_(over_column.mul_(grad[tile.columns]))

        gradients = gradients_of_pairs(ctx, rows, scale, weigh, *extra, grad_of_columns)
        # The other inputs of `forward` have no gradient.
        return (*gradients, *[None] * 5)


class Teacher:
    """The teacher's logits and softmax at the pairs of a tile. Results are overwritten by the next
    tile, and those of `over_column` overwrite the logits."""

    def __init__(self, tiles: Tiles, queries: Tensor, row_lse: Tensor) -> None:
        self._tiles = tiles
        self._queries = queries
        self._row_lse = row_lse

    def logits(self, tile: Tile, columns: Tensor) -> Tensor:
        """(r, c). columns: (n, T) of the block"""
        out = self._tiles.buffer("teacher", tile.logits.shape)
        return torch.mm(self._queries[tile.rows], columns[tile.columns].T, out=out)

    def over_row(self, tile: Tile, logits: Tensor) -> Tensor:
        """(r, c) softmax over all candidates of a row"""
        out = self._tiles.buffer("over_row", logits.shape)
        return torch.sub(logits, self._row_lse[tile.rows, None], out=out).exp_()

    def over_column(self, tile: Tile, logits: Tensor, column_lse: Tensor) -> Tensor:
        """(r, c) softmax over all candidates of a column. column_lse: (n,) of the block"""
        return logits.sub_(column_lse[tile.columns]).exp_()
