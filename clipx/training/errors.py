"""What is said of an exception that ends training: once, by the rank that met it first, with the
remedy where there is one."""

from __future__ import annotations

import torch

from clipx.distributed.monitor import Monitor
from clipx.distributed.runtime import Runtime
from clipx.training.config import TrainConfig
from clipx.types import PeerError, RankError, Stopped, UserError

_OF_PEERS = (
    *("gloo", "NCCL", "Connection reset", "Connection closed", "Broken pipe", "TCPStore"),
    *("Timed out waiting", "timed out", "connectFullMesh", "process group"),
)


def judged(
    error: BaseException, config: TrainConfig, runtime: Runtime, monitor: Monitor
) -> BaseException:
    """The exception to raise in place of one that ends training: itself where it says enough.

    PeerError, which is one line, for what another rank has caused: one traceback tells of 64 ranks.
    """
    if isinstance(error, UserError | Stopped) or not isinstance(error, Exception):
        return error
    if (shortage := out_of_memory(error, config)) is not None:
        return shortage
    if runtime.world_size == 1:
        return error
    first = monitor.is_first()
    if not is_of_peers(error):
        if first:
            error.add_note(f"on rank {runtime.rank} of {runtime.world_size}")
            return error
        return PeerError(f"rank {runtime.rank} too: {type(error).__name__}: {_line(error)}")
    text = f"rank {runtime.rank} ends: {monitor.blame()}"
    if first:
        text += f" ({type(error).__name__}: {_line(error)})"
    return PeerError(text)


def is_of_peers(error: Exception) -> bool:
    """Whether a collective failed. The backends raise plain RuntimeErrors, told apart by text."""
    return isinstance(error, torch.distributed.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in _OF_PEERS)
    )


def out_of_memory(error: Exception, config: TrainConfig) -> UserError | None:
    on_host = isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error)
    if not on_host and not isinstance(error, torch.OutOfMemoryError):
        return None
    remedies = []
    if not config.grad_checkpointing:
        remedies.append("grad_checkpointing=true")
    size = config.micro_batch_size
    remedies.append(f"a micro_batch_size below {size}" if size else "micro_batch_size=64 or lower")
    if config.pool.kind not in ("chunked", "ring"):
        remedies.append("pool.kind=ring, where it is the loss that is too large")
    if config.parallel == "ddp":
        remedies.append("parallel=fsdp2")
    if on_host:
        remedies += ["fewer data.workers", "save_async=false"]
    return RankError(
        f"out of memory: {_line(error)}. The same gradients with less of it, in this order: "
        f"{'; '.join(remedies)}; or more ranks. Then start the same command again"
    )


def _line(error: Exception) -> str:
    return str(error).strip().split("\n")[0][:300]
