"""Sharded tensors (DTensor, as FSDP2 makes them) to whole ones, and back.

Checkpoints hold whole weights, and parts of the optimizer's state that any number of ranks, sharded
or not, can load.
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
    """The same dicts and lists with every tensor whole, copied into host memory by `copy`. All
    ranks take part; those without `copy` get None for each tensor."""

    def copy_whole(tensor: Tensor) -> Tensor | None:
        full = tensor.detach()
        if isinstance(full, DTensor):
            full = full.full_tensor()  # a collective, so also on ranks that drop the result
        return copy(full) if copy else None

    return _map_tensors(value, copy_whole)


def own_part(value: Any, *, copy: Callable[[Tensor], Tensor], is_main: bool) -> Any:
    """The same dicts and lists with this rank's part of each sharded tensor. Of tensors that all
    ranks have, rank 0 gets a copy and the others None. Nothing travels."""

    def copy_part(tensor: Tensor) -> Tensor | Part | None:
        if not isinstance(tensor, DTensor):
            return copy(tensor.detach()) if is_main else None
        own = tensor.to_local().detach()
        if not own.numel():  # more ranks than rows
            return None
        _, offset = compute_local_shape_and_global_offset(
            tensor.shape, tensor.device_mesh, tensor.placements
        )
        return Part(copy(own), tuple(offset))

    return _map_tensors(value, copy_part)


def _map_tensors(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same dicts and lists with `function(tensor)` in place of each tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map_tensors(item, function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_map_tensors(item, function) for item in value)
    return value


def placed_like(value: Tensor, reference: Tensor) -> Tensor:
    """A whole tensor sharded as `reference` is, if that is sharded and of the same shape. A sharded
    tensor stays as it is."""
    if isinstance(value, DTensor) or not isinstance(reference, DTensor):
        return value
    if value.shape != reference.shape:
        return value
    value = value.to(reference.device)
    # Every rank has read the same file, so no rank sends anything to the others.
    return distribute_tensor(value, reference.device_mesh, reference.placements, src_data_rank=None)


def weights_like(weights: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> dict[str, Any]:
    """Whole tensors by name, sharded as the tensors of a model with the same names."""
    placed = {}
    for name, tensor in weights.items():
        placed[name] = placed_like(tensor, reference[name]) if name in reference else tensor
    return placed


def _laid_out_like(value: Tensor, parameter: Tensor) -> Tensor:
    """The value in the memory layout of its parameter, if both have one shape. Fused optimizers
    update flat memory: a contiguous moment of a channels-last kernel would be scrambled."""
    if isinstance(value, DTensor) or value.shape != parameter.shape:
        return value
    if value.stride() == parameter.stride():
        return value
    laid_out = torch.empty_like(parameter, dtype=value.dtype, requires_grad=False)
    return laid_out.copy_(value)


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's whole state, and shard each tensor as its parameter is."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    # torch's load_state_dict copies tensors as they come; it would not shard a whole one.
    placed: dict[int, dict[str, Any]] = {}
    for number, items in state["state"].items():
        placed[number] = {}
        for key, item in items.items():
            if isinstance(item, Tensor):
                item = _laid_out_like(placed_like(item, parameters[number]), parameters[number])
            placed[number][key] = item
    optimizer.load_state_dict({**state, "state": placed})
