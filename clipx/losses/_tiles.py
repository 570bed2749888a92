"""Tiles of the (B, N) matrix of logits, on which the primitives compute.

The matrix of this rank's rows against all candidates is never held. A tile of it is small enough
for the cache of a processor, and the next tile overwrites it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from clipx.types import CandidateBlock, Pool, Reduce

Own = Literal["counts", "left out", "absent"]
"""How a row's own column (column i of the rank that has row i) is treated: it counts, whatever its
ids are; it is left out, as the row itself in SimCLR; or columns belong to no row."""

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
    """This rank's columns with their ids and weights, shared with all ranks.

    columns: (B, D); ids: (B, K) int64, or None; weights: (B,), or None
    pool: None for columns that are the same on all ranks, or that only this rank needs
    """

    def __init__(
        self, columns: Tensor, ids: Tensor | None, weights: Tensor | None, pool: Pool | None
    ) -> None:
        named = {"columns": columns, "ids": ids, "weights": weights}
        present = {name: tensor for name, tensor in named.items() if tensor is not None}
        self._names = list(present)
        rows = tuple(present.values())
        # A pool decides which rows it keeps, so they are held here only without one.
        self._rows = rows if pool is None else ()
        self._candidates = None if pool is None else pool.share(*rows)

    def visit(
        self,
        compute: Callable[[CandidateBlock, dict[str, Tensor]], tuple[Tensor, ...]],
        reduce: tuple[Reduce, ...],
        **extra: Tensor,
    ) -> tuple[Tensor, ...]:
        """As `Candidates.visit`. `compute` also gets the block's tensors by name: columns, ids and
        weights if they are shared, and `extra`."""
        names = [*self._names, *extra]

        def compute_by_name(block: CandidateBlock) -> tuple[Tensor, ...]:
            return compute(block, dict(zip(names, block.rows, strict=True)))

        if self._candidates is None:
            rows = (*self._rows, *extra.values())
            return compute_by_name(CandidateBlock(rows, range(len(rows[0])), 0))
        return self._candidates.visit(compute_by_name, reduce, *extra.values())


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

    @property
    def own_rows(self) -> slice:
        """`own`, counted from the first of the rank's rows."""
        return slice(self.rows.start + self.own.start, self.rows.start + self.own.stop)

    def add_gradients(
        self, weights: Tensor, queries: Tensor, of_queries: Tensor, of_columns: Tensor
    ) -> None:
        """Add a tile's share of the gradients of queries and columns, in place.

        weights: (r, c) derivative for the logits; queries, of_queries: (B, D); of_columns: (n, D)
        """
        of_queries[self.rows].addmm_(weights, self.candidates)
        of_columns[self.columns].addmm_(weights.T, queries[self.rows])


class Tiles:
    """The tiles of logits of some queries, in buffers that are reused."""

    def __init__(self, queries: Tensor, ids: Tensor | None, own: Own) -> None:
        """queries: (B, D), the rows times the scale; ids: (B, K) int64, or None"""
        self.queries = queries
        self._ids = ids
        self._own = own
        tile_bytes = CPU_TILE_BYTES if queries.device.type == "cpu" else GPU_TILE_BYTES
        self._height = min(len(queries), TILE_ROWS)
        self._width = max(1, tile_bytes // (self._height * queries.element_size()))
        self._budget = KEPT_TILES * tile_bytes
        self._kept: list[Tensor] = []
        self._buffers: dict[str, Tensor] = {}

    def first(self, block: CandidateBlock, ids: Tensor | None) -> Iterator[Tile]:
        """All pairs of the queries and a block's columns. Rows change fastest, so that a stretch of
        columns is finished before the next begins.

        ids: (n, K) of the columns
        """
        return self._tiles(block, ids, self._make_and_keep)

    def again(self, block: CandidateBlock, ids: Tensor | None) -> Iterator[Tile]:
        """The same tiles, for blocks in the same order as `first`."""
        return self._tiles(block, ids, self._recall)

    def scratch(self, tile: Tile, name: str = "scratch") -> Tensor:
        """(r, c), uninitialized; overwritten by the next call with this name."""
        return self._buffer(name, *tile.logits.shape)

    def release(self) -> None:
        """Free the buffers, not the kept tiles."""
        self._buffers.clear()

    def _buffer(self, name: str, rows: int, columns: int) -> Tensor:
        size = rows * columns
        if name not in self._buffers or self._buffers[name].numel() < size:
            self._buffers[name] = self.queries.new_empty(size)
        return self._buffers[name][:size].view(rows, columns)

    def _tiles(
        self,
        block: CandidateBlock,
        column_ids: Tensor | None,
        make: Callable[[Tensor, Tensor], Tensor],
    ) -> Iterator[Tile]:
        queries = self.queries
        columns = block.rows[0]
        height = self._height
        width = self._width
        own = block.own if self._own != "absent" else range(0)
        shift = block.at - own.start  # a row's own column, minus the row
        for left in range(0, len(columns), width):
            right = min(left + width, len(columns))
            candidates = columns[left:right].to(queries.dtype)
            for top in range(0, len(queries), height):
                bottom = min(top + height, len(queries))
                # Rows of this tile whose own column is also in it.
                first = max(top, own.start, left - shift)
                last = max(first, min(bottom, own.stop, right - shift))
                tile = Tile(
                    rows=slice(top, bottom),
                    columns=slice(left, right),
                    logits=make(queries[top:bottom], candidates),
                    candidates=candidates,
                    own=slice(first - top, last - top),
                    at=first + shift - left,
                )
                self._mask(tile, column_ids)
                yield tile

    def _mask(self, tile: Tile, column_ids: Tensor | None) -> None:
        """Set the logits of pairs that do not count to -inf."""
        if self._ids is not None and column_ids is not None:
            equal = _equal(self._ids[tile.rows], column_ids[tile.columns])
            tile.of_own(equal).fill_(False)
            tile.logits.masked_fill_(equal, -torch.inf)
        if self._own == "left out":
            tile.of_own(tile.logits).fill_(-torch.inf)

    def _make(self, queries: Tensor, candidates: Tensor) -> Tensor:
        out = self._buffer("logits", len(queries), len(candidates))
        return torch.mm(queries, candidates.T, out=out)

    def _make_and_keep(self, queries: Tensor, candidates: Tensor) -> Tensor:
        size_bytes = len(queries) * len(candidates) * queries.element_size()
        if size_bytes > self._budget:
            # From here on none is kept: `again` takes kept tiles in order, so they must be the
            # first ones.
            self._budget = 0
            return self._make(queries, candidates)
        self._budget -= size_bytes
        self._kept.append(queries @ candidates.T)
        return self._kept[-1]

    def _recall(self, queries: Tensor, candidates: Tensor) -> Tensor:
        return self._kept.pop(0) if self._kept else self._make(queries, candidates)


def _equal(ids: Tensor, column_ids: Tensor) -> Tensor:
    """(r, c) bool: pairs that agree in at least one of their K ids. ids: (r, K); column_ids:
    (c, K)"""
    equal = ids[:, :1] == column_ids[:, 0]
    for kind in range(1, ids.shape[1]):
        equal |= ids[:, kind, None] == column_ids[:, kind]
    return equal
