"""A pool of one process whose rows come in blocks, as those of a pool of many ranks do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from clipx.types import Block


@dataclass
class BlockPool:
    """Own rows, `size` at a time, beginning with row `first`."""

    size: int
    first: int = 0
    past: tuple[Tensor, Tensor, Tensor | None] | None = None

    def share(self, *rows: Tensor) -> _Blocks:
        return _Blocks(rows, self.size, self.first % len(rows[0]))

    def push(self, image: Tensor, text: Tensor, ids: Tensor | None) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


@dataclass
class _Blocks:
    rows: tuple[Tensor, ...]
    size: int
    first: int

    def visit(
        self, act: Callable[[Block], tuple[Tensor, ...]], reduce: tuple[str, ...], *more: Tensor
    ) -> tuple[Tensor, ...]:
        rows = (*self.rows, *more)
        num_rows = len(rows[0])
        starts = list(range(self.first, num_rows, self.size))
        starts += list(range(0, self.first, self.size))
        said: list[tuple[int, tuple[Tensor, ...]]] = []
        for start in starts:
            stop = min(start + self.size, num_rows if start >= self.first else self.first)
            found = act(Block(tuple(r[start:stop] for r in rows), range(start, stop), 0))
            assert len(found) == len(reduce)
            assert all(len(f) == stop - start for f in found)
            said.append((start, found))
        in_order = [found for _, found in sorted(said, key=lambda pair: pair[0])]
        return tuple(torch.cat(parts) for parts in zip(*in_order, strict=True))
