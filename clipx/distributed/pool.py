"""Where a loss finds its candidates. Losses know arithmetic; pools know ranks.

With B rows on each of R ranks, all pools but the local one show the same R * B candidates, and
losses come out the same. They differ in what travels and in what a rank holds:
docs/distributed.md has the formulas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.distributed as dist
from pydantic import Field
from torch import Tensor

from clipx.config import config
from clipx.distributed.collectives import (
    EvenRows,
    all_gather,
    combine,
    pass_right,
    reduce_scatter,
)
from clipx.types import Block, Candidates, Pool, Reduce

Act = Callable[[Block], tuple[Tensor, ...]]


@config
class PoolConfig:
    """Which rows are contrasted with this rank's."""

    kind: Literal["auto", "local", "gathered", "chunked", "ring"] = "auto"
    """local: this rank's own. The others: those of all ranks; gathered holds all at once, chunked
    `chunk` rows of each rank at a time, ring those of one rank at a time. auto: gathered, or
    local where there is one rank."""
    chunk: int = Field(default=64, ge=1)
    """Rows of each rank that a chunked pool gathers at a time."""
    queue: int = Field(default=0, ge=0)
    """Rows of earlier steps, over all ranks, that serve as further negatives; 0: none."""


def build_pool(config: PoolConfig, *, world_size: int) -> Pool:
    pools: dict[str, Callable[[], Pool]] = {
        "auto": GatheredPool,
        "local": LocalPool,
        "gathered": GatheredPool,
        "chunked": lambda: ChunkedPool(config.chunk),
        "ring": RingPool,
    }
    pool = pools[config.kind]() if world_size > 1 else LocalPool()
    return QueuePool(pool, config.queue, world_size=world_size) if config.queue else pool


class _Memoryless:
    """What pools without a queue have in common."""

    @property
    def past(self) -> None:
        return None

    def push(self, image: Tensor, text: Tensor, ids: Tensor | None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert not state, "this pool remembers nothing"


class LocalPool(_Memoryless):
    """Candidates are this rank's own rows, in one block."""

    def share(self, *rows: Tensor) -> Candidates:
        return _Local(rows)


class GatheredPool(_Memoryless):
    """All rows are gathered once, and held until the loss is done: one block."""

    def __init__(self) -> None:
        self._check_even = EvenRows()

    def share(self, *rows: Tensor) -> Candidates:
        self._check_even(rows)
        return _Gathered(rows)


class ChunkedPool(_Memoryless):
    """`chunk` rows of each rank are gathered at a time: blocks of R * chunk candidates."""

    def __init__(self, chunk: int) -> None:
        self.chunk = chunk
        self._check_even = EvenRows()

    def share(self, *rows: Tensor) -> Candidates:
        self._check_even(rows)
        return _Chunked(rows, self.chunk)


class RingPool(_Memoryless):
    """Each rank's rows go once around the ring of ranks: R blocks of B candidates."""

    def __init__(self) -> None:
        self._check_even = EvenRows()

    def share(self, *rows: Tensor) -> Candidates:
        self._check_even(rows)
        return _Ring(rows)


class QueuePool:
    """Another pool's candidates, and rows of earlier steps as further negatives without gradient
    (arXiv:1912.06798; arXiv:1911.05722 without its second encoder).

    All ranks hold the same `size` newest rows, in the order in which one process would have
    met them, so that any of them can write the checkpoint.
    """

    def __init__(self, pool: Pool, size: int, *, world_size: int) -> None:
        self._pool, self._size = pool, size
        self._world_size = world_size
        self._rows: dict[str, Tensor] = {}

    def share(self, *rows: Tensor) -> Candidates:
        # a state that was loaded lies on the CPU
        self._rows = {name: past.to(rows[0].device) for name, past in self._rows.items()}
        return self._pool.share(*rows)

    @property
    def past(self) -> tuple[Tensor, Tensor, Tensor | None] | None:
        if not self._rows:
            return None
        return self._rows["image"], self._rows["text"], self._rows.get("ids")

    def push(self, image: Tensor, text: Tensor, ids: Tensor | None) -> None:
        """Rows that are not finite are not remembered: they would spoil many steps to come."""
        mine = {"image": image, "text": text} | ({} if ids is None else {"ids": ids})
        new = {name: self._everyones(rows.detach()) for name, rows in mine.items()}
        if not (new["image"].isfinite().all() & new["text"].isfinite().all()):
            return
        # A run that goes on with other kinds of ids than it has saved begins anew.
        shapes = [{n: rows.shape[1:] for n, rows in held.items()} for held in (self._rows, new)]
        fits = shapes[0] == shapes[1]
        old = self._rows if fits else {name: rows[:0] for name, rows in new.items()}
        self._rows = {n: torch.cat([old[n], rows])[-self._size :] for n, rows in new.items()}

    def _everyones(self, rows: Tensor) -> Tensor:
        """Ranks take a batch's positions in turns (see `data.order.batch_positions`)."""
        if self._world_size == 1:
            return rows
        return all_gather(rows).unflatten(0, (self._world_size, -1)).transpose(0, 1).flatten(0, 1)

    def state_dict(self) -> dict[str, Any]:
        return dict(self._rows)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._rows = {name: rows[-self._size :] for name, rows in state.items()}


class _Local:
    def __init__(self, rows: tuple[Tensor, ...]) -> None:
        self._rows = rows

    def visit(self, act: Act, reduce: tuple[Reduce, ...], *more: Tensor) -> tuple[Tensor, ...]:
        return act(Block((*self._rows, *more), range(len(self._rows[0])), 0))


class _Gathered:
    def __init__(self, rows: tuple[Tensor, ...]) -> None:
        self._size = len(rows[0])
        self._rows = [all_gather(r) for r in rows]

    def visit(self, act: Act, reduce: tuple[Reduce, ...], *more: Tensor) -> tuple[Tensor, ...]:
        rows = (*self._rows, *map(all_gather, more))
        found = act(Block(rows, range(self._size), dist.get_rank() * self._size))
        return tuple(map(reduce_scatter, found, reduce))


class _Chunked:
    def __init__(self, rows: tuple[Tensor, ...], chunk: int) -> None:
        self._rows, self._chunk = rows, chunk

    def visit(self, act: Act, reduce: tuple[Reduce, ...], *more: Tensor) -> tuple[Tensor, ...]:
        size = len(self._rows[0])
        home: list[tuple[Tensor, ...]] = []
        for start in range(0, size, self._chunk):
            own = range(start, min(start + self._chunk, size))
            rows = tuple(all_gather(r[own.start : own.stop]) for r in (*self._rows, *more))
            found = act(Block(rows, own, dist.get_rank() * len(own)))
            home.append(tuple(map(reduce_scatter, found, reduce)))
        return tuple(map(torch.cat, zip(*home, strict=True)))


class _Ring:
    def __init__(self, rows: tuple[Tensor, ...]) -> None:
        self._rows = rows

    def visit(self, act: Act, reduce: tuple[Reduce, ...], *more: Tensor) -> tuple[Tensor, ...]:
        """After `hop` steps this rank has the rows of rank - hop. The next come while `act` is at
        work on these. What was said of them follows one step behind, begun by the first stranger;
        the last one's right neighbor is the owner, who adds what it said itself.
        """
        size, last = len(self._rows[0]), dist.get_world_size() - 1
        rows = (*self._rows, *more)
        mine: tuple[Tensor, ...] = ()
        said: Callable[[], tuple[Tensor, ...]] | None = None
        for hop in range(last + 1):
            coming = pass_right(rows, tag=0) if hop < last else None
            found = act(Block(rows, range(size if hop == 0 else 0), 0))
            if said is not None:
                found = tuple(map(combine, found, said(), reduce))
            if hop == 0:
                mine = found
            else:
                said = pass_right(found, tag=1)
            rows = coming() if coming is not None else ()
        return mine if said is None else tuple(map(combine, mine, said(), reduce))
