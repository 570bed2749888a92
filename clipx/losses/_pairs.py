"""What the primitives have in common: masks of pairs, and the gradients of their products."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.losses._gradients import full_precision
from clipx.losses._streaming import Tile, Tiles, add_products
from clipx.types import Block, Candidates, Pool


@dataclass(frozen=True)
class Pairs:
    """Which pairs of rows and columns count.

    ids: (B, K) int64; a pair that has an id in common is masked, but for a row's own column
    own: whether a row's own column counts
    """

    pool: Pool
    ids: Tensor | None
    own: bool

    def share(self, columns: Tensor) -> Candidates:
        return self.pool.share(columns, *([] if self.ids is None else [self.ids]))

    def tiles(self, tiles: Tiles, queries: Tensor, block: Block) -> Iterator[Tile]:
        """Tiles whose logits are -inf where a pair does not count."""
        for tile in tiles.once(queries, self.ids, block):
            if not self.own:
                tile.positives(tile.logits).fill_(-torch.inf)
            yield tile


def at_least_float32(tensor: Tensor) -> Tensor:
    """At least float32: bfloat16 steps by 0.5 between 64 and 128."""
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def products(
    pairs: Pairs,
    tiles: Tiles,
    rows: Tensor,
    columns: Tensor,
    scale: Tensor,
    weigh: Callable[[Tile, Block], Tensor],
    more: tuple[Tensor, ...],
) -> tuple[Tensor, Tensor, Tensor, None]:
    """Gradients of rows, columns and scale by a second visit; what a rank computes for columns of
    another is added up on the rank that owns them.

    weigh: (r, c) derivative for the logits of a tile
    more: (B, ...) tensors of this rank's columns that `weigh` needs, last in the block's rows
    """
    plain = at_least_float32(rows)
    queries = plain * scale
    of_queries = torch.zeros_like(queries)

    def act(block: Block) -> tuple[Tensor, ...]:
        of_columns = torch.zeros_like(block.rows[0])
        for tile in pairs.tiles(tiles, queries, block):
            add_products(tile, weigh(tile, block), queries, of_queries, of_columns)
        return (of_columns,)

    with full_precision(rows.device.type):
        (of_columns,) = pairs.share(at_least_float32(columns)).visit(act, ("sum",), *more)
    # d logit / d scale is row @ column, and of_queries holds the sum of weight x column.
    of_scale = (of_queries * plain).sum()
    return (of_queries * scale).to(rows.dtype), of_columns.to(columns.dtype), of_scale, None
