"""Batches made by worker processes, which survive the signals that a scheduler sends to a job."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from clipx.types import RankError, UserError

WORKER_GRACE_SECONDS = 120  # after a SIGTERM not sent by the parent, which needs a last batch
T = TypeVar("T")


class _Guarded(Dataset, Generic[T]):
    """Returns a UserError, since torch would bury one that is raised under a traceback."""

    def __init__(self, make: Callable[[int], T]) -> None:
        self.make = make

    def __getitem__(self, index: int) -> T | UserError:
        try:
            return self.make(index)
        except UserError as error:
            return error


def empty_bytes(*shape: int) -> Tensor:
    """Uninitialized uint8 of a shape. In a worker its memory is that of the training process too,
    which spares a copy of each batch."""
    if get_worker_info() is None:
        return torch.empty(shape, dtype=torch.uint8)
    # As torch's own collate function does.
    storage = torch.UntypedStorage._new_shared(math.prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, shape)  # type: ignore[no-matching-overload]


def from_workers(
    make: Callable[[int], T], numbers: Sequence[int], workers: int
) -> Iterator[T | UserError]:
    """`make(k)` for each number k, in their order. A UserError that it raises comes as an item.

    workers: processes, each with a copy of `make`; 0 calls it in this process
    """
    loader = DataLoader(
        _Guarded(make),
        batch_size=None,  # items are whole batches
        sampler=numbers,
        generator=torch.Generator(),  # else each start takes a number from the model's generator
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_init_worker,
    )
    # Torch's handler of SIGCHLD raises a worker's death in the middle of a training step. Without
    # it, the wait for a batch checks the workers every 5 seconds.
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        iterator = iter(loader)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)
        yield from iterator
    except (RuntimeError, ConnectionError) as error:
        if workers == 0 or not _is_death_of_worker(error):
            raise
        raise RankError(
            f"a data worker was ended from outside, most often for want of memory: {error}; "
            f"lower data.workers={workers}, or give the job more memory"
        ) from error


def _is_death_of_worker(error: Exception) -> bool:
    """Whether torch raised an error because a worker was killed, rather than passed on one that
    the worker raised."""
    text = str(error)
    if isinstance(error, ConnectionError):
        # The memory of a batch is handed over by the worker. A process that is being ended refuses
        # that before the system calls it dead, and then torch raises the error as it is.
        return not text.startswith("Caught ")
    return text.startswith("DataLoader worker (pid")


def _init_worker(worker: int) -> None:
    """Survive a SIGTERM that a scheduler sends to all processes of a job: torch's handler would end
    the worker. Only `sigwaitinfo`, which macOS lacks, reveals whether the parent sent it."""
    if sys.platform == "linux":
        # A blocked signal stays pending until `sigwaitinfo` takes it. Threads inherit the mask.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            signal.alarm(WORKER_GRACE_SECONDS)
        os._exit(0)
