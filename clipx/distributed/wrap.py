"""The objective among its peers: alone, copied to every rank (DDP), or with its parameters sharded
over the ranks (FSDP2, torch's `fully_shard`).

All three give the gradient of the mean over ranks, so the step need not know which of them it has.
The data loader is clipx's own: accelerate does not see it, and its dispatch_batches has no effect.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from clipx.distributed.runtime import Runtime
from clipx.types import UserError

Parallel = Literal["auto", "ddp", "fsdp2"]


class Wrapped(ABC):
    """An objective whose gradients, after backward, are means over ranks."""

    title: str
    """How it is wrapped, for the start line; follows the number of ranks."""

    def __init__(self, module: Any) -> None:
        self._module = module

    def __call__(self, views: dict[str, Tensor]) -> dict[str, Tensor]:
        """The objective's `embed`."""
        return self._module(views)

    @abstractmethod
    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """Surrounds one forward and backward of several whose gradients add up. Ranks exchange
        gradients in the last."""

    @abstractmethod
    def finish_gradients(self) -> None:
        """Called after the last backward of a step."""


class SingleProcess(Wrapped):
    """One rank: no process group, no hooks."""

    title = ""

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def finish_gradients(self) -> None:
        """Gradients are complete."""


class Replicated(Wrapped):
    """A copy on every rank. Gradients are exchanged in backward, bucket by bucket."""

    title = " (DDP)"

    def __init__(self, objective: nn.Module, device: torch.device) -> None:
        copy = DistributedDataParallel(
            objective,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )
        super().__init__(copy)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._module.no_sync()

    def finish_gradients(self) -> None:
        """DDP has exchanged them in backward."""


class Sharded(Wrapped):
    """Parameters, gradients and optimizer state sharded over the ranks; parameters are gathered
    block by block when they are needed.

    Each tower is a root of its own, so that it can be called alone. Parameters outside of the
    towers, such as the temperature, stay whole; `finish_gradients` averages their gradients.
    """

    title = " (FSDP2)"

    def __init__(self, objective: Any, dtype: torch.dtype) -> None:
        policy = MixedPrecisionPolicy()
        if dtype == torch.bfloat16:
            # Half the bytes to gather; sums of gradients over ranks stay exact.
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        blocks, self._roots = objective.shards()
        # Blocks first: a root then shards only the parameters that are left.
        for module in [*blocks, *self._roots]:
            fully_shard(module, mp_policy=policy)
        super().__init__(objective)

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        for root in self._roots:
            # Without a sync, gradients stay whole and unreduced until the last micro-batch.
            assert isinstance(root, FSDPModule)
            root.set_requires_gradient_sync(last)
            root.set_is_last_backward(last)
        yield

    def finish_gradients(self) -> None:
        gradients = []
        for parameter in self._module.parameters():
            if parameter.grad is not None and not isinstance(parameter, DTensor):
                gradients.append(parameter.grad)
        if not gradients:
            return
        # Few small tensors, so one exchange for all of them.
        mean = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(mean)
        mean /= dist.get_world_size()
        sizes = [gradient.numel() for gradient in gradients]
        for gradient, values in zip(gradients, mean.split(sizes), strict=True):
            gradient.copy_(values.view_as(gradient))


def chosen(parallel: Parallel) -> Literal["ddp", "fsdp2"]:
    """`auto` follows the environment that `accelerate launch` sets. Raises UserError."""
    if parallel != "auto":
        return parallel
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() not in ("true", "1", "yes"):
        return "ddp"
    version = os.environ.get("FSDP_VERSION", "1")
    if version != "2":
        raise UserError(
            f"accelerate's config asks for FSDP version {version}; clipx shards by version 2: set "
            "fsdp_version: 2 in its fsdp_config, or give parallel=ddp"
        )
    return "fsdp2"


def wrap(
    objective: Any,
    runtime: Runtime,
    *,
    parallel: Parallel = "auto",
    dtype: torch.dtype = torch.float32,
) -> Wrapped:
    """Move the objective to this rank's device and wrap it by `parallel`; on one rank, leave it
    alone.

    objective: `clipx.objectives.objective.Objective`
    dtype: of matmuls; weights and sums of gradients are float32 whatever it is
    """
    objective.to(runtime.device)
    if runtime.world_size == 1:
        return SingleProcess(objective)
    if chosen(parallel) == "ddp":
        return Replicated(objective, runtime.device)
    return Sharded(objective, dtype)
