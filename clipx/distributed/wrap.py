"""The model among its peers: alone, copied to every rank (DDP), or with its parameters shared out
(FSDP2, torch's `fully_shard`).

All three give the gradient of the mean over ranks, so the step does not know which of them it has.
The data loader is clipx's own: accelerate never sees it, and its dispatch_batches plays no part.
"""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from clipx.distributed.runtime import Runtime
from clipx.types import UserError

Parallel = Literal["auto", "ddp", "fsdp2"]
Features = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""image features, text features, logit_scale, logit_bias"""


class TwoTowers(Protocol):
    """What is asked of a model: clipx.models.dual_encoder.DualEncoder."""

    visual: Any
    text: Any
    logit_scale: Any
    logit_bias: Any

    def blocks(self) -> list[nn.Module]: ...


class Wrapped(ABC):
    """A model whose gradients, after a backward, are means over ranks."""

    title: str
    """How it is wrapped, behind the number of ranks."""

    @abstractmethod
    def __call__(self, image: Tensor, text: Tensor, draws: Tensor | None) -> Features: ...

    @abstractmethod
    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        """For one forward and backward of several whose gradients add up: ranks exchange them in
        the last."""

    @abstractmethod
    def finish_gradients(self) -> None:
        """To be called after the last backward of a step."""


class Alone(Wrapped):
    """One rank: no process group, no hooks."""

    title = ""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def __call__(self, image: Tensor, text: Tensor, draws: Tensor | None) -> Features:
        return self._model(image, text, draws)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext()

    def finish_gradients(self) -> None:
        """All gradients are there."""


class Copied(Wrapped):
    """A copy on every rank. Gradients are exchanged in backward, bucket by bucket."""

    title = " (DDP)"

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = DistributedDataParallel(
            model,
            device_ids=[device] if device.type == "cuda" else None,
            gradient_as_bucket_view=True,  # no second copy of the gradients
        )

    def __call__(self, image: Tensor, text: Tensor, draws: Tensor | None) -> Features:
        return self._model(image, text, draws)

    def accumulating(self, *, last: bool) -> AbstractContextManager[None]:
        return nullcontext() if last else self._model.no_sync()

    def finish_gradients(self) -> None:
        """They came in backward."""


class Sharded(Wrapped):
    """Parameters, gradients and optimizer state shared out over the ranks, gathered block by block
    when they are needed.

    Each tower is a root of its own, so that it can be called alone and the two scalars, which
    cannot be sharded, stay outside of both; their gradients are averaged by `finish_gradients`.
    """

    title = " (FSDP2)"

    def __init__(self, model: nn.Module, towers: TwoTowers, dtype: torch.dtype) -> None:
        policy = MixedPrecisionPolicy()
        if dtype == torch.bfloat16:  # half the bytes to gather; sums over ranks stay exact
            policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32)
        for module in [*towers.blocks(), towers.visual, towers.text]:
            fully_shard(module, mp_policy=policy)
        self._model, self._towers = model, towers

    def __call__(self, image: Tensor, text: Tensor, draws: Tensor | None) -> Features:
        return self._model(image, text, draws)

    @contextmanager
    def accumulating(self, *, last: bool) -> Iterator[None]:
        for tower in (self._towers.visual, self._towers.text):
            assert isinstance(tower, FSDPModule)
            tower.set_requires_gradient_sync(last)
            tower.set_is_last_backward(last)
        yield

    def finish_gradients(self) -> None:
        scalars = [p for p in (self._towers.logit_scale, self._towers.logit_bias) if p is not None]
        gradients = [p.grad for p in scalars if p.grad is not None]
        if gradients:
            mean = torch.stack(gradients)
            dist.all_reduce(mean)
            for gradient, value in zip(gradients, mean / dist.get_world_size(), strict=True):
                gradient.copy_(value)


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
    model: nn.Module,
    towers: TwoTowers,
    runtime: Runtime,
    *,
    parallel: Parallel = "auto",
    dtype: torch.dtype = torch.float32,
) -> Wrapped:
    """The model, moved to this rank's device, as `parallel` says; alone where there is one rank.

    model and towers are the same object, under the two types that are asked of it
    dtype: what matmuls run in; weights and the sums of gradients are float32 whatever it is
    """
    model.to(runtime.device)
    if runtime.world_size == 1:
        return Alone(model)
    if chosen(parallel) == "ddp":
        return Copied(model, runtime.device)
    return Sharded(model, towers, dtype)
