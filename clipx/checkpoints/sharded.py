"""Tensors that may be sharded (DTensor, as FSDP2 makes them) as whole ones, and back.

Checkpoints hold whole weights, and parts of the optimizer's state that any number of ranks, sharded
or not, can put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from clipx.checkpoints.optimizer_state import Part


def whole(value: Any, *, copy: Callable[[Tensor], Tensor] | None) -> Any:
    """The same nest of dicts and lists with every tensor whole, as `copy` puts it into host memory.
    All ranks take part; those without `copy`, which write no file, get None for each tensor."""
    if isinstance(value, Tensor):
        full = value.detach()
        full = full.full_tensor() if isinstance(full, DTensor) else full
        return copy(full) if copy else None
    if isinstance(value, Mapping):
        return {key: whole(item, copy=copy) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(whole(item, copy=copy) for item in value)
    return value


def own_part(value: Any, *, copy: Callable[[Tensor], Tensor], is_main: bool) -> Any:
    """The same nest with, in place of each sharded tensor, what this rank holds of it; of tensors
    that all ranks have, rank 0 keeps the copy. Nothing travels."""
    if isinstance(value, DTensor):
        _, offset = compute_local_shape_and_global_offset(
            value.shape, value.device_mesh, value.placements
        )
        own = value.to_local().detach()
        return Part(copy(own), tuple(offset)) if own.numel() else None
    if isinstance(value, Tensor):
        return copy(value.detach()) if is_main else None
    if isinstance(value, Mapping):
        return {key: own_part(item, copy=copy, is_main=is_main) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(own_part(item, copy=copy, is_main=is_main) for item in value)
    return value


def placed_like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor in the shards of `reference`, where that has any and is of the same shape; one
    that is in shards already stays as it is."""
    if isinstance(value, DTensor) or not isinstance(reference, DTensor):
        return value
    if value.shape != reference.shape:
        return value
    value = value.to(reference.device)
    # Every rank has read the same file: no rank needs to send the others anything.
    return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)


def weights_like(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whole tensors by name in the shards of those that a model has by the same names."""
    return {n: placed_like(t, reference[n]) if n in reference else t for n, t in weights.items()}


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """An optimizer's whole state, by the numbers of its parameters, in the shards of these."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    placed = {
        number: {
            key: placed_like(item, parameters[number]) if isinstance(item, Tensor) else item
            for key, item in items.items()
        }
        for number, items in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": placed})
