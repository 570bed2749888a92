"""Rows that travel between ranks. Every rank brings equally many, and no call has a gradient:
losses say themselves what goes home."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from clipx.types import Reduce, UserError

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


class EvenRows:
    """The check that all ranks bring rows of the same shapes. Without it gloo aborts the process,
    and NCCL waits until its timeout.

    On CPUs every call compares; on other devices, where it would make the host wait, the first.
    """

    def __init__(self) -> None:
        self._has_compared = False

    def __call__(self, rows: Sequence[Tensor]) -> None:
        """All ranks take part. Raises UserError on all of them."""
        device = rows[0].device
        if self._has_compared and device.type != "cpu":
            return
        self._has_compared = True
        own = torch.zeros(8, dtype=torch.int64)
        sizes = [len(rows[0]), len(rows), *(tensor.numel() for tensor in rows)]
        own[: len(sizes)] = torch.tensor(sizes)
        everyones = all_gather(own[None].to(device)).cpu()
        if (everyones[:, 0] != own[0]).any():
            counts = ", ".join(map(str, everyones[:, 0].tolist()))
            raise UserError(
                f"ranks bring different numbers of rows to the loss, in rank order: {counts}; "
                "give every rank a local batch of the same size"
            )
        if (everyones != own).any():
            raise UserError(
                "ranks bring features of different widths, or ids on some ranks only, to the loss: "
                "every rank must train the same model on the same kind of samples"
            )


def combine(mine: Tensor, theirs: Tensor, reduce: Reduce) -> Tensor:
    """What two ranks say of the same rows, put together."""
    return mine + theirs if reduce == "sum" else torch.logaddexp(mine, theirs)


def pass_right(tensors: Sequence[Tensor], tag: int) -> Callable[[], tuple[Tensor, ...]]:
    """Begin to send tensors to the next rank and to receive the previous one's, of the same
    shapes. Returns a function that waits for both and gives what came.

    tag: tells two exchanges apart that are under way at once
    """
    if not tensors:  # torch refuses an exchange of nothing
        return tuple
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
