"""When and how a run's checkpoints are written: tensors are copied into host memory first, then a
thread writes them during the next steps."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints import manifest, optimizer_state
from clipx.checkpoints.train_state import Training, TrainState
from clipx.distributed.runtime import Runtime

RETRY_SECONDS = 60.0
"""After a failed save the next one is tried so much later, before the next that is due."""


class Saveable(Protocol):
    """What a checkpoint is made from: `clipx.training.learner.Learner`."""

    @property
    def is_sharded(self) -> bool: ...

    def collect(
        self, copy: Callable[[Tensor], Tensor] = Tensor.cpu
    ) -> tuple[Mapping[str, Tensor], Training]: ...


class HostBuffers:
    """Copies of tensors in host memory, overwritten by the next checkpoint: reused memory need not
    be allocated, cleared and, for a GPU, pinned again."""

    def __init__(self, device: torch.device) -> None:
        self._pin = device.type == "cuda"
        self._buffers: list[Tensor] = []
        self._next = 0

    def begin(self) -> None:
        """Start a new checkpoint. The copies of the one before must not be in use any more."""
        self._next = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """A copy, which is complete once the function of `ready` returns. The host does not wait
        for the device."""
        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._next]
        # Only the first checkpoint allocates: later ones have the same tensors in the same order.
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
            self._buffers[self._next] = buffer
        self._next += 1
        return buffer.copy_(tensor, non_blocking=True)

    def ready(self) -> Callable[[], None]:
        """A function that waits until all copies requested so far are complete."""
        if not self._pin:
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize


class Saver:
    """Writes the checkpoints of a run. All ranks have one; folder is None on all but the first.

    newest: the last step that can be resumed from, on rank 0
    """

    def __init__(
        self,
        runtime: Runtime,
        learner: Saveable,
        folder: Path | None,
        about: checkpoints.About,
        *,
        newest: int | None,
        every_seconds: float | None,
        asynchronous: bool,
    ) -> None:
        self.newest = newest
        self._runtime = runtime
        self._learner = learner
        self._folder = folder
        self._about = about
        self._every_seconds = every_seconds
        self._asynchronous = asynchronous
        self._buffers = HostBuffers(runtime.device)
        # Not a daemon thread: a run that ends by an error still completes its checkpoint.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._pending_step = 0
        self._faults: list[str] = []
        self._start_time = time.monotonic()
        self._failure_time: float | None = None
        self._notices: list[str] = []

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint, by the clock of rank 0."""
        if self._folder is None:
            return False
        now = time.monotonic()
        # After a failure, such as a full disk, do not wait for the next interval.
        if self._failure_time is not None and now - self._failure_time > RETRY_SECONDS:
            return True
        return self._every_seconds is not None and now - self._start_time >= self._every_seconds

    def save(self, state: TrainState, *, wait: bool) -> str | None:
        """Write a checkpoint. All ranks take part. With `wait`, returns the fault on all ranks.

        A full disk does not end the run: the next save may succeed.
        """
        wait = wait or not self._asynchronous
        self._join()  # it still reads the buffers
        self._buffers.begin()
        self._start_time = time.monotonic()
        self._failure_time = None
        weights, training = self._learner.collect(Tensor.cpu if wait else self._buffers)
        write = self._writing(state, weights, training)
        if write is not None:
            self._pending = self._thread.submit(write)
            self._pending_step = state.step
        return self.finish() if wait else None

    def _join(self) -> None:
        """Wait for the save in progress, and note its error, which reaches no caller by itself."""
        error = None if self._pending is None else self._pending.exception()
        self._pending = None
        if error is not None:
            text = f"{type(error).__name__}: {error}"
            self._faults.append(f"checkpoint of step {self._pending_step} not written: {text}")

    def _writing(
        self, state: TrainState, weights: Mapping[str, Tensor], training: Training
    ) -> Callable[[], None] | None:
        """The work of this rank's thread; None if it has none. It makes no collectives, which
        belong to the main thread."""
        ready = self._buffers.ready()
        folder = self._folder
        rank = self._runtime.rank
        temporary = None if folder is None else checkpoints.temporary(folder, state.step)
        num_writers = 1
        if self._learner.is_sharded:
            # Each rank writes its part of the optimizer into the folder of rank 0.
            temporary = self._runtime.from_main(temporary)
            num_writers = self._runtime.world_size
        if temporary is None:
            return None

        def write() -> None:
            ready()
            if folder is None:
                _, tensors = optimizer_state.split(training.optimizer)
                optimizer_state.write_for_rank_0(tensors, temporary, rank)
                return
            about = self._about
            checkpoints.save(folder, state, weights, training, about, num_writers=num_writers)
            self.newest = state.step
            try:
                manifest.prune(folder, state.step, keep=about.keep, keep_every=about.keep_every)
            except OSError as error:  # only a notice: the save itself has succeeded
                self._notices.append(f"an old checkpoint cannot be removed: {error}")

        return write

    def take_notices(self) -> list[str]:
        """Messages since the last call, on rank 0."""
        notices = self._notices
        self._notices = []
        return notices

    def finish(self) -> str | None:
        """Wait for the save in progress. Returns its fault on all ranks."""
        self._join()
        return self._runtime.from_main(self.fault())

    def fault(self) -> str | None:
        """The faults of saves that have ended since the last call, on rank 0."""
        if self._pending is not None and self._pending.done():
            self._join()
        faults = self._faults
        self._faults = []
        if not faults:
            return None
        self._failure_time = time.monotonic()
        return "; ".join(faults)

    def close(self) -> None:
        self._thread.shutdown()
