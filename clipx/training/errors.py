"""The error that a user reads when training ends by an exception: reported once, by the rank where
it happened first, with the remedy if there is one."""

from __future__ import annotations

import torch

from clipx.distributed.monitor import Monitor
from clipx.distributed.runtime import Runtime
from clipx.training.config import TrainConfig
from clipx.types import PeerError, RankError, Stopped, UserError

_COLLECTIVE_WORDS = (
    "gloo",
    "NCCL",
    "Connection reset",
    "Connection closed",
    "Broken pipe",
    "TCPStore",
    "Timed out waiting",
    "timed out",
    "connectFullMesh",
    "process group",
)


def explain(
    error: BaseException, config: TrainConfig, runtime: Runtime, monitor: Monitor
) -> BaseException:
    """The exception to raise instead of `error`, or `error` itself if it is clear enough.

    An error that another rank caused becomes a PeerError of one line, so that one traceback is
    printed, not 64.
    """
    if isinstance(error, UserError | Stopped) or not isinstance(error, Exception):
        return error
    if (out_of_memory_error := out_of_memory(error, config)) is not None:
        return out_of_memory_error
    if runtime.world_size == 1:
        return error
    is_first = monitor.is_first()
    summary = f"{type(error).__name__}: {_first_line(error)}"
    # Backends of collectives raise plain RuntimeErrors, so their text decides.
    is_of_collective = isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _COLLECTIVE_WORDS)
    )
    if not is_of_collective:
        if is_first:
            error.add_note(f"on rank {runtime.rank} of {runtime.world_size}")
            return error
        return PeerError(f"rank {runtime.rank} too: {summary}")
    # The collective failed because of another rank: the monitor knows which one is gone or late.
    text = f"rank {runtime.rank} ends: {monitor.blame()}"
    return PeerError(f"{text} ({summary})" if is_first else text)


def out_of_memory(error: Exception, config: TrainConfig) -> UserError | None:
    """An error with remedies that leave the gradients as they are; None if memory is not the
    cause."""
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    if not on_host and not isinstance(error, torch.OutOfMemoryError):
        return None
    # The cheapest first: recomputing activations, then two passes, then another pool or sharding.
    remedies = []
    if not config.grad_checkpointing:
        remedies.append("grad_checkpointing=true")
    size = config.micro_batch_size
    remedies.append(f"a micro_batch_size below {size}" if size else "micro_batch_size=64 or lower")
    if config.pool.kind not in ("chunked", "ring"):
        remedies.append("pool.kind=ring, if it is the loss that is too large")
    if config.parallel == "ddp":
        remedies.append("parallel=fsdp2")
    if on_host:
        remedies += ["fewer data.workers", "save_async=false"]
    return RankError(
        f"out of memory: {_first_line(error)}. The same gradients with less memory, in this order: "
        f"{'; '.join(remedies)}; or more ranks. Then start the same command again"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
