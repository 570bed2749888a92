"""This process among its peers: device, rank, collectives on small values. The only module that
uses accelerate and reads the launcher's environment.

It serves plain `python -m clipx`, torchrun, accelerate launch and srun. On one process collectives
cost nothing.
"""

from __future__ import annotations

import ctypes
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
    """Built once by `start`. Rank 0 writes files."""

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
        """Elementwise mean over ranks. The host does not wait for the device."""
        if self.world_size == 1:
            return values
        total = values.clone()  # all_reduce works in place
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

    def first(self, value: T | None) -> T | None:
        """The value of the first rank that has one, on all ranks; None if none has."""
        for of_rank in self.gather(value):
            if of_rank is not None:
                return of_rank
        return None

    def agree(self, fault: str | None) -> None:
        """Raise UserError on all ranks if any rank has a fault, so that no rank waits for one that
        gave up."""
        first = self.first(fault)
        if first is not None:
            raise UserError(first)

    def on_main(self, function: Callable[[], T]) -> T | None:
        """The result of `function` on rank 0; None on the others, which do not call it. A UserError
        is raised on all ranks."""
        result: T | None = None
        fault = None
        if self.is_main:
            try:
                result = function()
            except UserError as error:
                fault = str(error)
        self.agree(fault)
        return result

    def together(self, act: Callable[[], object] | None, what: str) -> None:
        """Call `act` on the ranks that have one. If one cannot write its files, or has a UserError,
        all raise UserError.

        what: is written where, for the message
        """
        fault = None
        try:
            if act is not None:
                act()
        except OSError as error:
            fault = (
                f"{error}, while {what}; files that are complete are kept: the same command "
                "continues"
            )
        except UserError as error:
            fault = str(error)
        self.agree(fault)

    def main_first(self, function: Callable[[], T]) -> T:
        """Call `function` on rank 0 first, so that the others find the files that it writes. A
        UserError on any rank is raised on all."""
        results: list[T] = []
        for is_turn_of_main in (True, False):
            fault = None
            if self.is_main == is_turn_of_main:
                try:
                    results.append(function())
                except UserError as error:
                    fault = str(error)
            # A collective after each turn, also of ranks whose turn it is not.
            self.agree(fault)
        return results[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def store(self, timeout: timedelta) -> dist.Store | None:
        """The key-value store of the process group over a second connection, so that a thread may
        use it while the main thread waits in a collective; None on one process."""
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

    Raises UserError if the group has another size than the launcher's environment states: processes
    that failed to connect would otherwise train separate models into one folder.
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
    # accelerate joins the process group; it wraps neither model nor optimizer nor data.
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*OMP_NUM_THREADS.*")
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision="no",  # training/precision.py casts; accelerate connects processes
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(minutes=timeout_minutes))],
        )
    if accelerator.num_processes != world_size:
        raise UserError(
            f"the launcher was started for {world_size} processes, "
            f"but {accelerator.num_processes} joined; "
            "launch with torchrun, or with `accelerate launch --multi_gpu` "
            "(and ACCELERATE_USE_CPU=true without GPUs)"
        )
    return Runtime(accelerator)


@dataclass(frozen=True)
class Job:
    """The scheduler's job of this process.

    id: None outside of a job; attempt: number of earlier starts; end_time: unix seconds at which
    the job will be killed, None if that is unknown
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
    """Whether torchrun or `accelerate launch` watches this process, which take every exit code but
    0 for a crash."""
    return any(n in os.environ for n in ("TORCHELASTIC_RUN_ID", "ACCELERATE_MIXED_PRECISION"))


# mallopt's names for its settings, from malloc.h of glibc.
_TRIM_THRESHOLD = -1
_TOP_PAD = -2
_MMAP_MAX = -4


def keep_freed_memory() -> bool:
    """Make glibc keep freed memory for the life of the process. Returns whether it does.

    By default it returns every large block to the kernel and requests it again, with each page
    cleared and mapped anew: several hundred MiB a step, 5 % of the time of a step on CPUs.
    """
    libc = ctypes.CDLL(None)
    try:
        mallopt = libc.mallopt
    except AttributeError:  # another C library
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_TOP_PAD, 64 << 20))
    accepted = [mallopt(name, value) for name, value in settings]
    return all(accepted)
