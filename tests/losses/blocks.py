"""A pool of one process whose rows come in blocks, as those of a pool of many ranks do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clipx.types import CandidateBlock


@dataclass
class BlockPool:
    """Own rows, `size` at a time, beginning with row `first`."""

    size: int
    first: int = 0

    def share(self, *rows: Tensor) -> _Blocks:
        return _Blocks(rows, self.size, self.first % len(rows[0]))

    def gather(self, rows: Tensor) -> Tensor:
        return rows


@dataclass
class _Blocks:
    rows: tuple[Tensor, ...]
    size: int
    first: int

    def visit(
        self,
        compute: Callable[[CandidateBlock], tuple[Tensor, ...]],
        reduce: tuple[str, ...],
        *extra: Tensor,
    ) -> tuple[Tensor, ...]:
        rows = (*self.rows, *extra)
        num_rows = len(rows[0])
        starts = list(range(self.first, num_rows, self.size))
        starts += list(range(0, self.first, self.size))
        results: list[tuple[int, tuple[Tensor, ...]]] = []
        for start in starts:
            stop = min(start + self.size, num_rows if start >= self.first else self.first)
            actual = compute(
                CandidateBlock(tuple(r[start:stop] for r in rows), range(start, stop), 0)
            )
            assert len(actual) == len(reduce)
            assert all(len(f) == stop - start for f in actual)
            results.append((start, actual))
        in_order = [actual for _, actual in sorted(results, key=lambda pair: pair[0])]
        return tuple(torch.cat(parts) for parts in zip(*in_order, strict=True))
