"""Collectives that carry gradient, and exact reductions."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

try:
    from torch.distributed import all_gather_single, reduce_scatter_single
except ImportError:  # before torch 2.14, which warns at every use of the old names
    from torch.distributed import all_gather_into_tensor as all_gather_single
    from torch.distributed import reduce_scatter_tensor as reduce_scatter_single


class _AllGather(torch.autograd.Function):
    """(B, ...) on each of R ranks -> (R * B, ...) on all. Backward sums over ranks what each says
    of my rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.num_rows = len(rows)
        out = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
        all_gather_single(out, rows.contiguous())
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # type: ignore[override]
        mine = grad.new_empty((ctx.num_rows, *grad.shape[1:]))
        reduce_scatter_single(mine, grad.contiguous())
        return mine


def all_gather(rows: Tensor) -> Tensor:
    """Rows of all ranks in rank order, with gradient. Every rank has equally many."""
    return _AllGather.apply(rows)
