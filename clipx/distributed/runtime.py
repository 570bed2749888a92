"""This process among its peers: device, rank, collectives on small values. The one user of
Accelerator and of the environment.

Plain `python -m clipx`, torchrun, accelerate launch and srun all end here. Collectives cost nothing
on one process.
"""

from __future__ import annotations

import contextlib
import os
import socket
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from clipx.distributed import launcher
from clipx.types import UserError

T = TypeVar("T")

Device = Literal["auto", "cpu", "cuda"]


class Runtime:
    """Built once by `start`. rank 0 is the one that writes files."""

    def __init__(self, accelerator: Any) -> None:
        self.device: torch.device = accelerator.device
        self.rank: int = accelerator.process_index
        self.world_size: int = accelerator.num_processes

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def sum_int(self, value: int) -> int:
        """Sum over ranks, modulo 2^63."""
        if self.world_size == 1:
            return value
        return sum(self.gather(value)) % (1 << 63)

    def average(self, values: Tensor) -> Tensor:
        """Mean over ranks, element by element. The host does not wait for the device."""
        if self.world_size == 1:
            return values
        total = values.clone()
        dist.all_reduce(total)
        return total / self.world_size

    def gather(self, value: Any) -> list[Any]:
        """One picklable value of each rank, in rank order."""
        if self.world_size == 1:
            return [value]
        out: list[Any] = [None] * self.world_size
        dist.all_gather_object(out, value)
        return out

    def from_main(self, value: T) -> T:
        """Rank 0's picklable value, on all ranks."""
        if self.world_size == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0)
        return held[0]

    def agree(self, fault: str | None) -> None:
        """Raise UserError on all ranks if any rank brings a fault: none is left waiting for one
        that gave up."""
        faults = [text for text in self.gather(fault) if text is not None]
        if faults:
            raise UserError(faults[0])

    def main_first(self, act: Callable[[], T]) -> T:
        """What `act` returns, done by rank 0 first, so that the others find the files that it
        leaves. Faults stop all ranks."""
        done: list[T] = []
        for turn in (True, False):
            fault = None
            if self.is_main == turn:
                try:
                    done.append(act())
                except UserError as error:
                    fault = str(error)
            self.agree(fault)
        return done[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def store(self, timeout: timedelta) -> dist.Store | None:
        """The key-value store of the process group, by a connection of its own, so that a thread
        may use it while a collective of the main thread waits; None on one process."""
        if self.world_size == 1:
            return None
        from torch.distributed.distributed_c10d import _get_default_store

        store = _get_default_store().clone()
        store.set_timeout(timeout)
        return store

    def close(self) -> None:
        if dist.is_initialized():
            dist.destroy_process_group()


def start(device: Device = "auto", *, timeout_minutes: float = 30) -> Runtime:
    """Join the process group that the launcher's environment describes.

    Raises UserError when the group found is not of the size that was asked for: a launcher that
    fails to connect its processes would otherwise train that many separate models into one folder.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    if device == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "device cuda: no CUDA device is visible; use device=cpu, or check the driver"
        )
    use_cpu = device == "cpu" or not torch.cuda.is_available()
    launcher.adopt_srun(os.environ)
    launcher.check(os.environ, gloo=use_cpu)
    if not use_cpu:
        launcher.check_devices(os.environ, visible=torch.cuda.device_count())
    world_size = launcher.integer(os.environ, "WORLD_SIZE", 1)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OMP_NUM_THREADS.*")
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision="no",  # training/precision.py casts; accelerate connects processes
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher asked for {world_size} processes, "
            f"but {accelerator.num_processes} joined; "
            "launch with torchrun, or with `accelerate launch --multi_gpu` "
            "(and ACCELERATE_USE_CPU=true without GPUs)"
        )
    return Runtime(accelerator)


def speaks() -> bool:
    """True on the process that reports what all processes have met alike, group or no group."""
    with contextlib.suppress(UserError):  # wrong values are what the caller reports
        launcher.adopt_srun(os.environ)
    return os.environ.get("RANK", "0") == "0"


@dataclass(frozen=True)
class Job:
    """What a scheduler says of the job that this process belongs to.

    id: None outside of a job; attempt: how often it was started before; end_time: unix seconds at
    which it will be killed, None where that is not known
    """

    host: str
    id: str | None = None
    attempt: int = 0
    end_time: float | None = None


def job() -> Job:
    end = os.environ.get("SLURM_JOB_END_TIME")
    return Job(
        host=socket.gethostname(),
        id=os.environ.get("SLURM_JOB_ID"),
        attempt=launcher.integer(os.environ, "SLURM_RESTART_COUNT", 0),
        end_time=float(launcher.integer(os.environ, "SLURM_JOB_END_TIME")) if end else None,
    )


def restarts_failures() -> bool:
    """Whether an agent watches this process that takes every exit code but 0 for a crash: torchrun
    or `accelerate launch`."""
    return any(n in os.environ for n in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"))
