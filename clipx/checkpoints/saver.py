"""When and how a run's checkpoints are written: a copy on the host first, then by a thread while
training goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from clipx.checkpoints import format as checkpoints
from clipx.checkpoints.format import Training, TrainState
from clipx.distributed.runtime import Runtime

RETRY_SECONDS = 60.0
"""After a save that failed another is tried, which need not wait for the next that is due."""


class Saveable(Protocol):
    """What a checkpoint is made of: `clipx.training.learner.Learner`."""

    @property
    def is_sharded(self) -> bool: ...

    def collect(
        self, copy: Callable[[Tensor], Tensor] = Tensor.cpu
    ) -> tuple[Mapping[str, Tensor], Training]: ...


class HostBuffers:
    """Copies of tensors in host memory that the next snapshot overwrites: memory that is used again
    need not be found, zeroed and, for a GPU, pinned again."""

    def __init__(self, device: torch.device) -> None:
        self._pin = device.type == "cuda"
        self._buffers: list[Tensor] = []
        self._next = 0

    def begin(self) -> None:
        """A new snapshot: nobody reads the one before any more."""
        self._next = 0

    def __call__(self, tensor: Tensor) -> Tensor:
        """The device goes on: `ready` says when the copies are there."""
        if self._next == len(self._buffers):
            self._buffers.append(torch.empty(0))
        buffer = self._buffers[self._next]
        if buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._pin)
            self._buffers[self._next] = buffer
        self._next += 1
        return buffer.copy_(tensor, non_blocking=True)

    def ready(self) -> Callable[[], None]:
        """What waits until all copies that were asked for so far are there."""
        if not self._pin:
            return lambda: None
        event = torch.cuda.Event()
        event.record()
        return event.synchronize


class Writer:
    """One thread that does one thing at a time."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._faults: list[str] = []

    def start(self, what: str, act: Callable[[], None]) -> None:
        """Waits for the one before."""
        self.wait()
        # Not a daemon: a run that ends by an error still ends with this checkpoint.
        self._thread = threading.Thread(target=self._run, args=(what, act), name="checkpoint")
        self._thread.start()

    def _run(self, what: str, act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001  in a thread nobody else would hear of it
            self._faults.append(f"{what} not written: {type(error).__name__}: {error}")

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def take_fault(self) -> str | None:
        """What went wrong since the last call."""
        faults, self._faults = self._faults, []
        return "; ".join(faults) or None


class Saver:
    """The checkpoints of a run. Ranks but the first, whose folder is None, bring their parts."""

    def __init__(
        self,
        runtime: Runtime,
        parts: Saveable,
        folder: Path | None,
        about: checkpoints.About,
        *,
        newest: int | None,
        every_seconds: float | None,
        asynchronous: bool,
    ) -> None:
        self._runtime, self._parts, self._folder, self._about = runtime, parts, folder, about
        self._every, self._asynchronous = every_seconds, asynchronous
        self._buffers = HostBuffers(runtime.device)
        self._writer = Writer()
        self._begun = time.monotonic()
        self._failed: float | None = None
        self._notices: list[str] = []
        self.newest = newest
        """The last step that can be resumed from, on rank 0."""

    def wants(self) -> bool:
        """Whether it is time for a checkpoint, by the clock of rank 0."""
        if self._folder is None:
            return False
        now = time.monotonic()
        if self._failed is not None and now - self._failed > RETRY_SECONDS:
            return True
        return self._every is not None and now - self._begun >= self._every

    def save(self, state: TrainState, *, wait: bool) -> str | None:
        """Write a checkpoint. All ranks take part. Returns, on all of them, what went wrong where
        it was waited for.

        A full disk is no reason to end a run that may go on.
        """
        wait = wait or not self._asynchronous
        self._writer.wait()
        self._buffers.begin()
        self._begun, self._failed = time.monotonic(), None
        weights, training = self._parts.collect(Tensor.cpu if wait else self._buffers)
        write = self._write(state, weights, training)
        if write is not None:
            self._writer.start(f"checkpoint of step {state.step}", write)
        return self.finish() if wait else None

    def _write(
        self, state: TrainState, weights: Mapping[str, Tensor], training: Training
    ) -> Callable[[], None] | None:
        """What this rank's thread has to do: without collectives, which are the main thread's."""
        ready, sharded = self._buffers.ready(), self._parts.is_sharded
        writers, rank = self._runtime.world_size if sharded else 1, self._runtime.rank
        folder = self._folder
        beside = checkpoints.temporary(folder, state.step) if folder is not None else None
        if sharded:
            beside = self._runtime.from_main(beside)
        if beside is None:
            return None

        def write() -> None:
            ready()
            if folder is None:
                checkpoints.save_part(beside, training, rank)
            else:
                checkpoints.save(folder, state, weights, training, self._about, num_writers=writers)
                self.newest = state.step
                self._prune(folder, state.step)

        return write

    def _prune(self, folder: Path, step: int) -> None:
        """Remove old checkpoints. A fault here is none of the save, which has succeeded."""
        try:
            checkpoints.prune(folder, step, self._about)
        except OSError as error:
            self._notices.append(f"an old checkpoint cannot be removed: {error}")

    def take_notices(self) -> list[str]:
        """Messages since the last call, on rank 0."""
        notices, self._notices = self._notices, []
        return notices

    def finish(self) -> str | None:
        """Wait for the save that is under way. Returns, on all ranks, what it met."""
        self._writer.wait()
        return self._runtime.from_main(self.fault())

    def fault(self) -> str | None:
        """What the last save met, once, on rank 0."""
        fault = self._writer.take_fault()
        if fault is not None:
            self._failed = time.monotonic()
        return fault

    def close(self) -> None:
        self._writer.wait()
