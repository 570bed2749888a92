"""The arithmetic that losses over many candidates share: similarities in tiles that stay in the
cache.

The (B, N) matrix of similarities is never held. It is made tile by tile, once for the normalizers
and once more for the gradients, which are formed at once; only the first few tiles are remembered
from one time to the other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clipx.types import Block, Pool

FalseNegatives = Literal["none", "caption", "image", "both"]
"""Which candidates are masked: those with the row's caption, its image, or either."""
ID_KINDS: dict[str, tuple[str, ...]] = {
    "none": (),
    "caption": ("caption",),
    "image": ("image",),
    "both": ("caption", "image"),
}

TILE_ROWS = 1024
CPU_TILE_BYTES = 4 << 20
"""Measured on 2 cores with 1 MiB of L2 each, D = 512: tiles of 1,024 rows and 1 to 16 MiB run
matmuls at 210 to 230 GFLOP/s, 128 rows x 16,384 columns at 160, all of (1,024, 16,384) at 170. Two
of 4 MiB stay in L3 beside the rows."""
GPU_TILE_BYTES = 64 << 20
"""Measured on an H100, 1,024 rows, D = 512: InfoNCE over 65,536 columns takes 21 ms in tiles of
8 MiB, 9.8 of 32, 7.5 of 64 and 7.2 of 128; all of it in one piece, as open_clip has it, 10.9."""
KEPT_TILES = 4
"""As many tiles' worth of similarities are kept from the first time to the second: all of them
where they are few, such as B = N = 2,048 in float32 on a CPU."""


@dataclass(frozen=True)
class Tile:
    """Some of this rank's rows against some columns of a block.

    rows, columns: which they are
    logits: (r, c), overwritten when the next tile is made; -inf where `masked`
    candidates: (c, D) the columns' rows
    masked: (r, c) bool, false negatives; None where the loss has none
    own: those of the r rows whose positive is in the tile too, at column `at` and on
    """

    rows: slice
    columns: slice
    logits: Tensor
    candidates: Tensor
    masked: Tensor | None
    own: slice
    at: int

    def positives(self, matrix: Tensor) -> Tensor:
        """View of the entries of an (r, c) matrix where rows meet their own positive."""
        size = self.own.stop - self.own.start
        return matrix[self.own, self.at : self.at + size].diagonal()

    @property
    def own_rows(self) -> slice:
        """`own`, counted among all of the rank's rows."""
        return slice(self.rows.start + self.own.start, self.rows.start + self.own.stop)

    def unmasked(self, matrix: Tensor) -> Tensor:
        """An (r, c) matrix with 0 where candidates are masked."""
        return matrix if self.masked is None else matrix.masked_fill(self.masked, 0)


class Tiles:
    """Makes similarities tile by tile, in buffers that are used again and again."""

    def __init__(self, like: Tensor) -> None:
        """like: has the dtype and device to compute with"""
        self._like = like
        self._tile_bytes = CPU_TILE_BYTES if like.device.type == "cpu" else GPU_TILE_BYTES
        self._budget = KEPT_TILES * self._tile_bytes
        self._kept: list[Tensor] = []
        self._buffers: dict[str, Tensor] = {}

    def first(self, rows: Tensor, ids: Tensor | None, block: Block) -> Iterator[Tile]:
        """All pairs of this rank's rows (B, D) and the block's first tensor (n, D), as tiles. Rows
        change fastest, so that a stretch of columns is done with before the next begins.

        ids: (B, K), or None; the block's second tensor has those of its columns
        """
        return self._tiles(rows, ids, block, self._make_and_keep)

    def again(self, rows: Tensor, ids: Tensor | None, block: Block) -> Iterator[Tile]:
        """The same tiles once more; to be called in the order in which `first` was."""
        return self._tiles(rows, ids, block, self._recall)

    def once(self, rows: Tensor, ids: Tensor | None, block: Block) -> Iterator[Tile]:
        """As `first`, for a loss that does not come again."""
        return self._tiles(rows, ids, block, self._make)

    def scratch(self, tile: Tile) -> Tensor:
        """(r, c) uninitialized; overwritten at the next call."""
        return self._buffer("scratch", *tile.logits.shape)

    def _buffer(self, name: str, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self._like.new_empty(size)
        return self._buffers[name][:size].view(rows, columns)

    def _tiles(
        self,
        rows: Tensor,
        ids: Tensor | None,
        block: Block,
        make: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[Tile]:
        columns = block.rows[0]
        height = min(len(rows), TILE_ROWS)
        width = max(1, self._tile_bytes // (height * self._like.element_size()))
        shift = block.at - block.own.start  # column of the positive, minus row
        for left in range(0, len(columns), width):
            right = min(left + width, len(columns))
            candidates = columns[left:right].to(self._like.dtype)
            for top in range(0, len(rows), height):
                bottom = min(top + height, len(rows))
                logits = make(rows[top:bottom], candidates)
                first = max(top, block.own.start, left - shift)
                last = max(first, min(bottom, block.own.stop, right - shift))
                tile = Tile(
                    rows=slice(top, bottom),
                    columns=slice(left, right),
                    logits=logits,
                    candidates=candidates,
                    masked=None
                    if ids is None
                    else _equal(ids[top:bottom], block.rows[1][left:right]),
                    own=slice(first - top, last - top),
                    at=first + shift - left,
                )
                if tile.masked is not None:
                    tile.positives(tile.masked).fill_(False)
                    logits.masked_fill_(tile.masked, -torch.inf)
                yield tile

    def _make(self, rows: Tensor, candidates: Tensor) -> Tensor:
        out = self._buffer("logits", len(rows), len(candidates))
        return torch.mm(rows, candidates.T, out=out)

    def _make_and_keep(self, rows: Tensor, candidates: Tensor) -> Tensor:
        size_bytes = len(rows) * len(candidates) * self._like.element_size()
        if size_bytes > self._budget:
            self._budget = 0  # those that are kept are the first
            return self._make(rows, candidates)
        self._budget -= size_bytes
        self._kept.append(rows @ candidates.T)
        return self._kept[-1]

    def _recall(self, rows: Tensor, candidates: Tensor) -> Tensor:
        return self._kept.pop(0) if self._kept else self._make(rows, candidates)


def _equal(ids: Tensor, column_ids: Tensor) -> Tensor:
    """(r, c) bool: which are equal in at least one of the K kinds of id. ids: (r, K); column_ids:
    (c, K)"""
    same = ids[:, :1] == column_ids[:, 0]
    for kind in range(1, ids.shape[1]):
        same |= ids[:, kind, None] == column_ids[:, kind]
    return same


def add_logsumexp(total: Tensor, matrix: Tensor, dim: int, top: Tensor, scratch: Tensor) -> None:
    """total = log(exp(total) + sum of exp(matrix) over dim), in place.

    top: maxima of the matrix over dim. They are taken out first: logits of 100 overflow float32,
    and those of -110 vanish.
    """
    top = top.clamp(min=torch.finfo(top.dtype).min)  # all -inf: log of a sum of zeros, not nan
    torch.sub(matrix, top.unsqueeze(dim), out=scratch).exp_()
    torch.logaddexp(total, scratch.sum(dim).log_().add_(top), out=total)


def add_products(
    tile: Tile, weights: Tensor, rows: Tensor, of_rows: Tensor, of_columns: Tensor
) -> None:
    """Add, in place, what a tile says of the gradients of its rows and columns.

    weights: (r, c) derivative of the loss for the logits; rows, of_rows: (B, D)
    of_columns: (n, D), not initialized before the tile of its first rows
    """
    of_rows[tile.rows].addmm_(weights, tile.candidates)
    beta = 0 if tile.rows.start == 0 else 1
    of_columns[tile.columns].addmm_(weights.T, rows[tile.rows], beta=beta)


def past_blocks(pool: Pool, ids: Tensor | None) -> list[Block]:
    """The images and the texts that the pool remembers, as a block each. None, if it has none or
    remembers them without the ids that are wanted now: who could say which are negatives?"""
    if pool.past is None:
        return []
    image, text, past_ids = pool.past
    if ids is None:
        return [Block((rows,), range(0), 0) for rows in (image, text)]
    if past_ids is None or past_ids.shape[1] != ids.shape[1]:
        return []
    return [Block((rows, past_ids), range(0), 0) for rows in (image, text)]


class Accuracy:
    """Share of rows whose positive is more similar than every other candidate. A tie is no success,
    so neither a collapsed model nor the order in which blocks come can look good.

    positive: (B,) logits of the positives that were seen so far
    """

    def __init__(self, rows: Tensor) -> None:
        self.positive = rows.new_zeros(len(rows))
        self._rivals = rows.new_full((len(rows),), -torch.inf)

    def see(self, tile: Tile) -> Tensor:
        """Returns (r,), the rows' maxima over the tile."""
        view = tile.positives(tile.logits)
        own = view.clone()
        view.fill_(-torch.inf)
        top = tile.logits.amax(1)
        view.copy_(own)
        torch.maximum(self._rivals[tile.rows], top, out=self._rivals[tile.rows])
        self.positive[tile.own_rows] = own
        top[tile.own] = torch.maximum(top[tile.own], own)
        return top

    def mean(self) -> Tensor:
        return (self.positive > self._rivals).float().mean()
