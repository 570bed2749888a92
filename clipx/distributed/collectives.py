"""Collective operations on rows. Every rank has the same number, and no call has a gradient: the
functions of `clipx.losses` that use them compute theirs."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

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
    """(R * B, ...) on each of R ranks -> (B, ...): this rank's rows, reduced over all ranks."""
    size = len(rows) // dist.get_world_size()
    own = rows.new_empty((size, *rows.shape[1:]))
    if reduce == "sum":
        reduce_scatter_single(own, rows.contiguous())
        return own
    # log-sum-exp: the maximum over ranks is taken out before values are exponentiated.
    largest = rows.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX)
    largest.clamp_(min=torch.finfo(rows.dtype).min)  # -inf - -inf would be NaN
    reduce_scatter_single(own, (rows - largest).exp_())
    return own.log_().add_(largest[dist.get_rank() * size :][:size])


class EvenRows:
    """Check that all ranks have rows of the same shapes. Without it gloo aborts the process and
    NCCL waits until its timeout.

    On CPUs every call compares. On other devices only the first does, since the host has to wait
    for the answer.
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
        # A loss shares columns and ids, so that eight numbers are enough.
        sizes = [len(rows[0]), len(rows), *map(Tensor.numel, rows)]
        own[: len(sizes)] = torch.tensor(sizes)
        all_sizes = all_gather(own[None].to(device)).cpu()
        if (all_sizes[:, 0] != own[0]).any():
            counts = ", ".join(map(str, all_sizes[:, 0].tolist()))
            raise UserError(
                f"ranks have different numbers of rows in the loss, in rank order: {counts}; "
                "give every rank a local batch of the same size"
            )
        if (all_sizes != own).any():
            raise UserError(
                "ranks have features of different widths, or ids on some ranks only, in the loss: "
                "every rank must train the same model on the same kind of samples"
            )


def combine(first: Tensor, second: Tensor, reduce: Reduce) -> Tensor:
    """Reduce two ranks' results for the same rows."""
    return first + second if reduce == "sum" else torch.logaddexp(first, second)


def pass_right(tensors: Sequence[Tensor], tag: int) -> Callable[[], tuple[Tensor, ...]]:
    """Start to send tensors to the next rank and to receive those of the previous one, of the same
    shapes. Returns a function that waits for both and returns the received tensors.

    tag: distinguishes two exchanges that run at the same time
    """
    if not tensors:  # torch refuses an exchange of nothing
        return tuple
    rank = dist.get_rank()
    size = dist.get_world_size()
    sent = [tensor.contiguous() for tensor in tensors]
    received = tuple(torch.empty_like(tensor) for tensor in sent)
    # One call for both directions: with send first and receive later, two ranks on NCCL would
    # wait for one another.
    sends = [dist.P2POp(dist.isend, t, (rank + 1) % size, tag=tag) for t in sent]
    receives = [dist.P2POp(dist.irecv, t, (rank - 1) % size, tag=tag) for t in received]
    works = dist.batch_isend_irecv(sends + receives)

    def wait() -> tuple[Tensor, ...]:
        for work in works:
            work.wait()
        sent.clear()  # kept until here, so that their memory is not reused while it is sent
        return received

    return wait


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
