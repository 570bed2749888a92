"""What the primitives over pairs of rows and columns share: the nearest column of a row, and the
gradients of their products."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clipx.losses._tiles import Own, Tile, Tiles, at_least_float32, full_precision
from clipx.types import CandidateBlock


class NearestLogits:
    """own: (B,) logits of rows with their own columns, 0 unless these count
    largest_other: (B,) largest logit of each row among the columns that are not its own
    """

    def __init__(self, queries: Tensor, own: Own) -> None:
        self.own = queries.new_zeros(len(queries))
        self.largest_other = torch.full_like(self.own, -torch.inf)
        self._own_counts = own == "counts"

    def update(self, tile: Tile) -> None:
        """Take the logits of a tile into account; they stay as they are."""
        own_entries = tile.of_own(tile.logits)
        before = own_entries.clone()
        if self._own_counts:
            first = tile.rows.start + tile.own.start
            self.own[first : first + len(before)] = before
        # The row's own logit must not be its largest other one, so it is taken out meanwhile.
        own_entries.fill_(-torch.inf)
        largest = tile.logits.amax(1)
        own_entries.copy_(before)
        torch.maximum(self.largest_other[tile.rows], largest, out=self.largest_other[tile.rows])


def gradients_of_pairs(
    ctx: Any,
    rows: Tensor,
    scale: Tensor,
    weigh: Callable[..., Tensor],
    *extra: Tensor,
) -> tuple[Tensor, Tensor | None, Tensor]:
    """(gradient of rows, of columns, of scale) in the backward pass of a primitive. The gradient of
    columns is None if none is needed, and nothing is sent back then.

    ctx: with the `tiles`, `shared` columns and `columns_dtype` of the forward pass
    weigh: (tile, *extra of the tile's block) -> (r, c) derivative for the logits of the tile
    extra: (B,) further tensors of this rank's columns that `weigh` needs
    """
    tiles: Tiles = ctx.tiles
    needs_columns: bool = ctx.needs_input_grad[1]
    of_queries = torch.zeros_like(tiles.queries)

    def compute(block: CandidateBlock, ids: Tensor | None, *extra: Tensor) -> tuple[Tensor, ...]:
        of_columns = torch.zeros_like(block.rows[0])
        for tile in tiles.of_block(block, ids, again=True):
            # A logit is query @ column, so its derivative for the one is the other.
            weights = weigh(tile, *extra)
            of_queries[tile.rows].addmm_(weights, tile.candidates)
            if needs_columns:
                of_columns[tile.columns].addmm_(weights.T, tiles.queries[tile.rows])
        return (of_columns,) if needs_columns else ()

    with full_precision(rows.device.type):
        reduced = ctx.shared.visit(compute, ("sum",) if needs_columns else (), *extra)
    tiles.release()
    of_columns = reduced[0].to(ctx.columns_dtype) if needs_columns else None
    of_rows = (of_queries * scale).to(rows.dtype)
    # A logit is scale * row @ column, so its derivative for the scale is row @ column, and
    # of_queries has already summed weight * column.
    of_scale = (of_queries * at_least_float32(rows)).sum()
    return of_rows, of_columns, of_scale
