"""The norm of all gradients together, and clipping by it: exact where parameters are sharded too,
and without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

# float32 sums in one go are off by 2e-4 at 10M elements on a CPU; by rows of this many they are
# off by 1e-9, at the same speed.
_ROW = 4096
_VANISHING = 1e-20
"""A sum of squares below which rows that have vanished in float32 may matter."""


def clip_gradients(parameters: Iterable[Tensor], max_norm: float | None) -> Tensor:
    """() norm as it was before gradients above `max_norm` were scaled down to it; None scales
    nothing."""
    gradients = [p.grad for p in parameters if p.grad is not None]
    norm = _norm(gradients)
    if max_norm is not None and gradients:
        # always multiplied: whether it is needed is known on the device only
        factor = (max_norm / norm).clamp(max=1)
        torch._foreach_mul_([local(g) for g in gradients], factor)
    return norm


def grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """() norm of the gradients of all parameters together, the same on every rank. Parameters
    without a gradient count nothing."""
    return _norm([p.grad for p in parameters if p.grad is not None])


@torch.no_grad()
def _norm(gradients: list[Tensor]) -> Tensor:
    """() in the gradients' dtype. Those that are no DTensor are taken to be equal on all ranks."""
    if not gradients:
        return torch.zeros(())
    total = _square_sum([g for g in gradients if not isinstance(g, DTensor)], gradients[0].device)
    shards: dict[tuple[DeviceMesh, tuple[int, ...]], list[Tensor]] = {}
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            shards.setdefault(_sharded_over(gradient), []).append(local(gradient))
    for (mesh, dims), mine in shards.items():
        part = _square_sum(mine, gradients[0].device)
        for dim in dims:
            dist.all_reduce(part, group=mesh.get_group(dim))
        total = total + part
    return total.sqrt().to(gradients[0].dtype)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor that may be sharded, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _sharded_over(gradient: DTensor) -> tuple[DeviceMesh, tuple[int, ...]]:
    """The mesh, and those of its dimensions over which the gradient is cut in pieces."""
    assert not any(p.is_partial() for p in gradient.placements), "not yet summed over ranks"
    dims = [d for d, placement in enumerate(gradient.placements) if placement.is_shard()]
    return gradient.device_mesh, tuple(dims)


def _square_sum(tensors: list[Tensor], device: torch.device) -> Tensor:
    """() float64"""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    if device.type != "cpu":
        # one kernel for all, which reads float32 and sums in float64 at the speed of memory
        norms = torch._foreach_norm(tensors, 2, dtype=torch.float64)
        return torch.stack(norms).square().sum()
    total = _sum_of_rows(tensors, None)
    # In float32, squares overflow above 1.8e19 and vanish below 1e-19. Sums in float64 are right
    # there, and on a CPU 60 times as slow, so they are taken only where they may differ.
    if not _VANISHING < total.item() < math.inf:
        total = _sum_of_rows(tensors, torch.float64)
    return total


def _sum_of_rows(tensors: list[Tensor], dtype: torch.dtype | None) -> Tensor:
    """() float64. dtype: in which a row is summed; None: that of the tensor"""
    norms = [norm for tensor in tensors for norm in _row_norms(tensor.reshape(-1), dtype)]
    return torch.cat(norms).double().square().sum()


def _row_norms(flat: Tensor, dtype: torch.dtype | None) -> list[Tensor]:
    whole = len(flat) // _ROW * _ROW
    body, tail = flat[:whole].view(-1, _ROW), flat[whole:].view(1, -1)
    parts = [part for part in (body, tail) if part.numel()]
    return [torch.linalg.vector_norm(part, dim=1, dtype=dtype) for part in parts]
