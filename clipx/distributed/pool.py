"""Pools: the candidates of a loss, from this rank or from all. Losses know arithmetic; pools know
ranks.

With B rows on each of R ranks, all pools but the local one show the same R * B candidates and give
the same losses. They differ in communication and memory: docs/distributed.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.distributed.collectives import EvenRows, all_gather, combine, pass_right, reduce_scatter
from clipx.types import CandidateBlock, Candidates, Pool, Reduce

Kind = Literal["auto", "local", "gathered", "chunked", "ring"]
Compute = Callable[[CandidateBlock], tuple[Tensor, ...]]


@config
class PoolConfig:
    """Which rows are contrasted with this rank's."""

    kind: Kind = "auto"
    """local: this rank's own. The others: those of all ranks; gathered holds all at once, chunked
    `chunk` rows of each rank at a time, ring those of one rank at a time. auto: gathered, or
    local with a single rank."""
    chunk: int = Field(default=64, ge=1)
    """Rows of each rank that a chunked pool gathers at a time."""
    queue: int = Field(default=0, ge=0)
    """Rows of earlier steps, over all ranks, that serve as further negatives; 0: none."""


def build_pool(config: PoolConfig, *, world_size: int) -> Pool:
    # On one rank all kinds show the same rows, and the local one needs no collective.
    if world_size == 1 or config.kind == "local":
        return LocalPool(world_size)
    return GlobalPool(config.kind, config.chunk)


class LocalPool:
    """Candidates are this rank's own rows, in one block."""

    def __init__(self, world_size: int = 1) -> None:
        self._world_size = world_size

    def share(self, *rows: Tensor) -> Candidates:
        return _Local(rows)

    def gather(self, rows: Tensor) -> Tensor:
        # A queue holds the rows of all ranks even if the batch is contrasted on each rank alone.
        return rows.detach() if self._world_size == 1 else gather_batch(rows)


class GlobalPool:
    """Candidates are the rows of all ranks, visited in one of the ways of `PoolConfig`."""

    def __init__(self, kind: Kind, chunk: int = 64) -> None:
        self.kind = kind
        self.chunk = chunk
        self._check_even = EvenRows()

    def share(self, *rows: Tensor) -> Candidates:
        self._check_even(rows)
        if self.kind == "chunked":
            return _Chunked(rows, self.chunk)
        if self.kind == "ring":
            return _Ring(rows)
        # Gathered once and held until the loss is done, for forward and backward.
        return _Gathered(len(rows[0]), tuple(map(all_gather, rows)))

    def gather(self, rows: Tensor) -> Tensor:
        return gather_batch(rows)


def gather_batch(rows: Tensor) -> Tensor:
    """(G, ...) rows of all ranks in the order of their positions, without gradient: ranks take a
    batch's positions in turns (see `data.order.batch_positions`)."""
    # Rank r has the positions r, r + R, r + 2R ..., so (R, B, ...) transposed is in their order.
    by_rank = all_gather(rows.detach()).unflatten(0, (dist.get_world_size(), -1))
    return by_rank.transpose(0, 1).flatten(0, 1)


@dataclass(frozen=True)
class _Local:
    rows: tuple[Tensor, ...]

    def visit(
        self, compute: Compute, reduce: tuple[Reduce, ...], *extra: Tensor
    ) -> tuple[Tensor, ...]:
        return compute(CandidateBlock((*self.rows, *extra), range(len(self.rows[0])), 0))


@dataclass(frozen=True)
class _Gathered:
    """One block of all candidates. local_size: B; rows: (R * B, ...) each"""

    local_size: int
    rows: tuple[Tensor, ...]

    def visit(
        self, compute: Compute, reduce: tuple[Reduce, ...], *extra: Tensor
    ) -> tuple[Tensor, ...]:
        # What backward needs of each column travels with it; the columns are here already.
        rows = (*self.rows, *map(all_gather, extra))
        own = range(self.local_size)
        results = compute(CandidateBlock(rows, own, dist.get_rank() * self.local_size))
        return tuple(map(reduce_scatter, results, reduce))


@dataclass(frozen=True)
class _Chunked:
    """Blocks of R * chunk candidates: `chunk` rows of each rank. rows: (B, ...) each"""

    rows: tuple[Tensor, ...]
    chunk: int

    def visit(
        self, compute: Compute, reduce: tuple[Reduce, ...], *extra: Tensor
    ) -> tuple[Tensor, ...]:
        size = len(self.rows[0])
        reduced: list[tuple[Tensor, ...]] = []
        # A rank holds the rows of one chunk at a time, and its results are reduced before the next.
        for start in range(0, size, self.chunk):
            own = range(start, min(start + self.chunk, size))
            own_rows = [r[own.start : own.stop] for r in (*self.rows, *extra)]
            rows = tuple(map(all_gather, own_rows))
            results = compute(CandidateBlock(rows, own, dist.get_rank() * len(own)))
            reduced.append(tuple(map(reduce_scatter, results, reduce)))
        return tuple(map(torch.cat, zip(*reduced, strict=True)))


@dataclass(frozen=True)
class _Ring:
    """Each rank's rows go once around the ring of ranks: R blocks of B. rows: (B, ...) each"""

    rows: tuple[Tensor, ...]

    def visit(
        self, compute: Compute, reduce: tuple[Reduce, ...], *extra: Tensor
    ) -> tuple[Tensor, ...]:
        """After `hop` steps this rank has the rows of rank - hop. The next rows arrive while
        `compute` works on these. Results follow their rows one step behind: the first other rank
        starts them, each adds its own, and the last one's right neighbor is the owner.
        """
        num_ranks = dist.get_world_size()
        rows = (*self.rows, *extra)
        own = range(len(self.rows[0]))
        own_results: tuple[Tensor, ...] = ()
        arriving: Callable[[], tuple[Tensor, ...]] | None = None
        for hop in range(num_ranks):
            # The last block need not travel on: its owner has had it.
            next_rows = pass_right(rows, tag=0) if hop < num_ranks - 1 else None
            results = compute(CandidateBlock(rows, own if hop == 0 else range(0), 0))
            if arriving is not None:
                # Results of these rows from the ranks that had them before.
                results = tuple(map(combine, results, arriving(), reduce))
            if hop == 0:
                own_results = results
            else:
                arriving = pass_right(results, tag=1)
            if next_rows is not None:
                rows = next_rows()
        if arriving is None:
            return own_results
        return tuple(map(combine, own_results, arriving(), reduce))
