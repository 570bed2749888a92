"""Where a loss finds its candidates: this rank's rows, or those of all ranks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

from clipx.distributed.collectives import all_gather
from clipx.types import Pool


class LocalPool:
    """Candidates are this rank's own rows."""

    def gather(self, rows: Tensor) -> Tensor:
        return rows

    def offset(self, num_rows: int) -> int:
        return 0


class GatheredPool:
    """Candidates are the rows of all ranks, with gradient: N = R * B."""

    def gather(self, rows: Tensor) -> Tensor:
        return all_gather(rows)

    def offset(self, num_rows: int) -> int:
        return dist.get_rank() * num_rows


def build_pool(world_size: int) -> Pool:
    return LocalPool() if world_size == 1 else GatheredPool()
