"""Rows that travel between ranks. Every rank brings equally many, and no call has a gradient:
losses say themselves what goes home."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from clipx.types import Reduce

try:
    from torch.distributed import all_gather_single, reduce_scatter_single
except ImportError:  # before torch 2.14, which warns at every use of the old names
    from torch.distributed import all_gather_into_tensor as all_gather_single
    from torch.distributed import reduce_scatter_tensor as reduce_scatter_single


def all_gather(rows: Tensor) -> Tensor:
    """(B, ...) on each of R ranks -> (R * B, ...) on all, in rank order."""
    out = rows.new_empty((dist.get_world_size() * len(rows), *rows.shape[1:]))
    all_gather_single(out, rows.contiguous())
    return out


def reduce_scatter(rows: Tensor, reduce: Reduce) -> Tensor:
    """(R * B, ...) on each of R ranks -> (B, ...): this rank's rows, reduced over what all ranks
    have there."""
    size = len(rows) // dist.get_world_size()
    mine = rows.new_empty((size, *rows.shape[1:]))
    if reduce == "sum":
        reduce_scatter_single(mine, rows.contiguous())
        return mine
    top = rows.clone()
    dist.all_reduce(top, dist.ReduceOp.MAX)
    top.clamp_(min=torch.finfo(rows.dtype).min)  # all -inf: log of a sum of zeros, not nan
    reduce_scatter_single(mine, (rows - top).exp_())
    return mine.log_().add_(top[dist.get_rank() * size :][:size])


def combine(mine: Tensor, theirs: Tensor, reduce: Reduce) -> Tensor:
    """What two ranks say of the same rows, put together."""
    return mine + theirs if reduce == "sum" else torch.logaddexp(mine, theirs)


def pass_right(tensors: Sequence[Tensor], tag: int) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to send tensors to the next rank and to receive the previous one's, of the same
    shapes. Returns a function that waits for both and gives what came.

    tag: tells two exchanges apart that are under way at once
    """
    rank, size = dist.get_rank(), dist.get_world_size()
    leaving = [tensor.contiguous() for tensor in tensors]
    coming = tuple(torch.empty_like(tensor) for tensor in leaving)
    # One call for both directions: with send first and receive later, two ranks on NCCL would
    # wait for one another.
    sends = [dist.P2POp(dist.isend, t, (rank + 1) % size, tag=tag) for t in leaving]
    receives = [dist.P2POp(dist.irecv, t, (rank - 1) % size, tag=tag) for t in coming]
    works = dist.batch_isend_irecv(sends + receives)

    def wait() -> tuple[Tensor, ...]:
        for work in works:
            work.wait()
        leaving.clear()  # kept until here, so that nobody reuses their memory
        return coming

    return wait
