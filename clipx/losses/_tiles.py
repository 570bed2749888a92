"""Tiles of the (B, N) matrix of logits, on which the primitives compute.

The matrix of this rank's rows against all candidates is never held. A tile of it is small enough
for the cache of a processor, and the next tile overwrites it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clipx.types import CandidateBlock, Pool, Reduce

Own = Literal["counts", "left out", "absent"]
"""How a row's own column (column i of the rank that has row i) is treated: it counts, whatever its
ids are; it is left out, as the row itself in SimCLR; or columns belong to no row."""

Match = Literal["different", "equal"]
"""Which pairs count: those without an id in common, or those with one. A row and its own column
belong together, whatever their ids are."""

TILE_ROWS = 1024
CPU_TILE_BYTES = 4 << 20
"""Measured on 2 cores with 1 MiB of L2 each, D = 512: tiles of 1,024 rows and 1 to 16 MiB run
matmuls at 210 to 230 GFLOP/s, 128 rows x 16,384 columns at 160, all of (1,024, 16,384) at 170. Two
tiles of 4 MiB stay in L3 beside the rows."""
GPU_TILE_BYTES = 64 << 20
"""Measured on an H100, 1,024 rows, D = 512: InfoNCE over 65,536 columns takes 21 ms in tiles of
8 MiB, 9.8 of 32, 7.5 of 64 and 7.2 of 128; in one piece, as open_clip computes it, 10.9."""
KEPT_TILES = 4
"""Tiles kept from forward to backward, which saves one of four matmuls where these are all: 2,048
rows and columns of float32 on a CPU."""


def at_least_float32(tensor: Tensor) -> Tensor:
    """bfloat16 steps by 0.5 between 64 and 128, and logits reach 100. float64 stays."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


@contextlib.contextmanager
def full_precision(device_type: str) -> Iterator[None]:
    """Matmuls of float32 in float32: without autocast, TF32 (10 bits of mantissa, so that logits
    near 100 step by 0.06) and bfloat16 in oneDNN. The settings are restored afterwards."""
    cuda: Any = torch.backends.cuda.matmul
    backends: list[Any] = [cuda]
    setting = "allow_tf32"
    value = False
    if hasattr(cuda, "fp32_precision"):
        # torch 2.9 has a second setting, and raises where both are read after one was set. A
        # value that was set by the old name is restored with the new one.
        backends.append(torch.backends.mkldnn.matmul)  # type: ignore[missing-attribute]
        setting = "fp32_precision"
        value = "ieee"
    before = [getattr(backend, setting) for backend in backends]
    try:
        for backend in backends:
            setattr(backend, setting, value)
        with torch.autocast(device_type, enabled=False):
            yield
    finally:
        for backend, old in zip(backends, before, strict=True):
            setattr(backend, setting, old)


class Columns:
    """This rank's columns and their ids, shared with all ranks.

    columns: (B, D); ids: (B, K) int64, or None
    pool: None for columns that are the same on all ranks
    """

    def __init__(self, columns: Tensor, ids: Tensor | None, pool: Pool | None) -> None:
        rows = (columns,) if ids is None else (columns, ids)
        self._num_shared = len(rows)
        # A pool decides which rows it keeps, so they are held here only without one.
        self._rows = rows if pool is None else ()
        self._candidates = None if pool is None else pool.share(*rows)

    def visit(
        self,
        compute: Callable[..., tuple[Tensor, ...]],
        reduce: tuple[Reduce, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `Candidates.visit`, but calls compute(block, ids of the block or None, *extra)."""

        def compute_block(block: CandidateBlock) -> tuple[Tensor, ...]:
            ids = block.rows[1] if self._num_shared == 2 else None
            return compute(block, ids, *block.rows[self._num_shared :])

        if self._candidates is None:
            # Every rank has all of these columns, so there is nothing to exchange or to reduce.
            rows = (*self._rows, *extra)
            return compute_block(CandidateBlock(rows, range(len(rows[0])), 0))
        return self._candidates.visit(compute_block, reduce, *extra)


@dataclass(frozen=True)
class Tile:
    """Some of this rank's rows against some columns of a block.

    rows, columns: slices of the rank's rows and of the block's columns
    logits: (r, c), overwritten by the next tile; -inf for pairs that do not count
    candidates: (c, D), the columns
    own: slice of the r rows whose own column is in the tile, at column `at` and after it
    """

    rows: slice
    columns: slice
    logits: Tensor
    candidates: Tensor
    own: slice
    at: int

    def of_own(self, matrix: Tensor) -> Tensor:
        """View of the entries of an (r, c) matrix where rows meet their own column."""
        size = self.own.stop - self.own.start
        return matrix[self.own, self.at : self.at + size].diagonal()


class Tiles:
    """The tiles of logits of some queries, in buffers that are reused."""

    def __init__(
        self,
        queries: Tensor,
        ids: Tensor | None,
        own: Own,
        *,
        match: Match = "different",
        keep: bool = True,
    ) -> None:
        """queries: (B, D), the rows times the scale; ids: (B, K) int64, or None
        keep: the first tiles for backward
        """
        self.queries = queries
        self._ids = ids
        self._own = own
        self._match = match
        tile_bytes = CPU_TILE_BYTES if queries.device.type == "cpu" else GPU_TILE_BYTES
        self._height = min(len(queries), TILE_ROWS)
        self._width = max(1, tile_bytes // (self._height * queries.element_size()))
        self._budget = KEPT_TILES * tile_bytes if keep else 0
        self._kept: list[Tensor] = []
        self._buffers: dict[str, Tensor] = {}

    def of_block(
        self, block: CandidateBlock, column_ids: Tensor | None, *, again: bool = False
    ) -> Iterator[Tile]:
        """All pairs of the queries and a block's columns, tile by tile.

        column_ids: (n, K), or None
        again: in backward, for blocks in the same order as before; tiles that were kept are reused
        """
        queries = self.queries
        columns = block.rows[0]
        own = block.own if self._own != "absent" else range(0)
        shift = block.at - own.start  # a row's own column, minus the row
        # Rows change fastest, so that a stretch of columns is finished before the next begins.
        for left in range(0, len(columns), self._width):
            right = min(left + self._width, len(columns))
            candidates = columns[left:right].to(queries.dtype)
            for top in range(0, len(queries), self._height):
                bottom = min(top + self._height, len(queries))
                # Rows of this tile whose own column is also in it.
                first = max(top, own.start, left - shift)
                last = max(first, min(bottom, own.stop, right - shift))
                tile = Tile(
                    rows=slice(top, bottom),
                    columns=slice(left, right),
                    logits=self._logits(queries[top:bottom], candidates, again=again),
                    candidates=candidates,
                    own=slice(first - top, last - top),
                    at=first + shift - left,
                )
                self._mask(tile, column_ids)
                yield tile

    def buffer(self, name: str, shape: Sequence[int]) -> Tensor:
        """(r, c), uninitialized; overwritten by the next call with this name."""
        size = math.prod(shape)
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self.queries.new_empty(size)
        return self._buffers[name][:size].view(*shape)

    def release(self) -> None:
        """Free the buffers, not the kept tiles."""
        self._buffers.clear()

    def _logits(self, queries: Tensor, candidates: Tensor, *, again: bool) -> Tensor:
        if again and self._kept:
            return self._kept.pop(0)
        size_bytes = len(queries) * len(candidates) * queries.element_size()
        if not again and size_bytes <= self._budget:
            self._budget -= size_bytes
            self._kept.append(queries @ candidates.T)
            return self._kept[-1]
        # From here on none is kept: `again` takes kept tiles in order, so they must be the first.
        self._budget = 0
        out = self.buffer("logits", (len(queries), len(candidates)))
        return torch.mm(queries, candidates.T, out=out)

    def _mask(self, tile: Tile, column_ids: Tensor | None) -> None:
        """Set the logits of pairs that do not count to -inf."""
        if self._ids is not None and column_ids is not None:
            ids = self._ids[tile.rows]
            others = column_ids[tile.columns]
            # Pairs that agree in at least one of their K ids. One (r, c) matrix at a time: all K
            # together would take K times the memory of a tile.
            equal = ids[:, :1] == others[:, 0]
            for kind in range(1, ids.shape[1]):
                equal |= ids[:, kind, None] == others[:, kind]
            # The positive counts, whatever its ids are.
            if self._match == "different":
                tile.of_own(equal).fill_(False)
                tile.logits.masked_fill_(equal, -torch.inf)
            else:
                tile.of_own(equal).fill_(True)
                tile.logits.masked_fill_(~equal, -torch.inf)
        if self._own == "left out":
            tile.of_own(tile.logits).fill_(-torch.inf)
