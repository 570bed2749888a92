"""Find the rank that the others wait for when a collective fails or hangs.

The error of a failed collective does not name the peer that is gone or late. So a thread of every
rank writes into the group's store, once a second, a count that rises while its process lives, and
the step and phase of its main thread. After a fault a rank reads them twice: a rank whose count
does not change is dead or cut off, and the others wait for the one that is behind. Training never
waits for the monitor.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
import traceback
from datetime import timedelta
from typing import Any, Literal, NamedTuple

from clipx.distributed.runtime import Runtime

BEAT_SECONDS = 1.0
LOOK_SECONDS = 3.0
"""A rank without a new beat for so long is dead, or its network is."""
GRACE_SECONDS = 10.0
"""The monitor waits so much longer than the process group's own timeout, whose error has more
details."""
EXIT_FAULT = 1

Phase = Literal["data", "forward", "loss", "elsewhere"]
_PHASES: tuple[Phase, ...] = ("data", "forward", "loss", "elsewhere")
"""In the order of a step. Beats hold the index."""
_DOING = (
    "waits for data",
    "embeds its batch",
    "exchanges embeddings or gradients",
    "saves, evaluates or starts",
)


class Beat(NamedTuple):
    """The entry of a rank in the store."""

    count: int
    step: int
    phase: int
    host: str


class Monitor:
    """One on each rank. On a single rank it only records the phase of the main thread."""

    def __init__(self, runtime: Runtime, *, timeout_seconds: float) -> None:
        """All ranks take part."""
        self._rank = runtime.rank
        self._size = runtime.world_size
        self._timeout = timeout_seconds
        self._host = socket.gethostname()
        self._count = 0
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self.at(0, "elsewhere")
        self._store: Any = runtime.store(timedelta(seconds=2 * LOOK_SECONDS))
        if self._store is not None:
            # The store may have served an earlier start of these processes.
            self._prefix = f"clipx/{runtime.from_main(f'{os.getpid()}.{time.time()}')}"
            self._beat()
            runtime.barrier()
            self._thread = threading.Thread(target=self._watch, daemon=True, name="monitor")
            self._thread.start()

    def at(self, step: int, phase: Phase) -> None:
        """Record the step and phase that the main thread begins."""
        # One assignment of one tuple, so that the thread never sees half of it.
        self._at = (step, _PHASES.index(phase), time.monotonic())

    def close(self) -> None:
        """Wait for the thread. If it used the store while the interpreter ends, it would abort the
        process."""
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def is_first(self) -> bool:
        """True for the first rank that calls this, which reports the fault in full."""
        if self._store is None:
            return True
        try:
            return self._store.add(f"{self._prefix}/faults", 1) == 1
        except RuntimeError:
            return self._rank == min(1, self._size - 1)  # the store has gone with rank 0

    def blame(self) -> str:
        """A sentence about the rank that is silent or behind. Takes LOOK_SECONDS."""
        try:
            before = self._read()
            time.sleep(LOOK_SECONDS)
            return verdict(self._rank, before, self._read())
        except RuntimeError:
            return "rank 0, which holds the store of all ranks, cannot be reached"

    def _beat(self) -> None:
        self._count += 1
        step, phase, _ = self._at
        self._store.set(
            f"{self._prefix}/{self._rank}", f"{self._count} {step} {phase} {self._host}"
        )

    def _read(self) -> list[Beat]:
        beats = []
        keys = [f"{self._prefix}/{rank}" for rank in range(self._size)]
        for text in self._store.multi_get(keys):
            count, step, phase, host = text.decode().split(" ", 3)
            beats.append(Beat(int(count), int(step), int(phase), host))
        return beats

    def _watch(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            try:
                self._beat()
            except RuntimeError:
                continue  # the main thread will get an error from the network too
            step, phase, since = self._at
            waited = time.monotonic() - since
            # Saves and evaluations may take longer than any step.
            if _PHASES[phase] == "elsewhere" or waited <= self._timeout + GRACE_SECONDS:
                continue
            # The main thread hangs where no exception reaches it, in a read or in a device that
            # waits for another, so the process is ended from here.
            text = f"rank {self._rank} on {self._host} has been in step {step} for {waited:.0f} s"
            print(f"clipx: {text}: {self.blame()}", file=sys.stderr, flush=True)
            if self.is_first():
                main = sys._current_frames()[threading.main_thread().ident or 0]
                traceback.print_stack(main, file=sys.stderr)
            os._exit(EXIT_FAULT)


def verdict(rank: int, before: list[Beat], after: list[Beat]) -> str:
    """A sentence for `rank` from the beats of all ranks at two times, several beats apart."""
    silent = []
    for other, (first, second) in enumerate(zip(before, after, strict=True)):
        if other != rank and first.count == second.count:
            silent.append(other)
    if silent:
        shown = ", ".join(f"rank {other} on {after[other].host}" for other in silent[:4])
        if len(silent) > 4:
            shown += f" and {len(silent) - 4} more"
        has = "has" if len(silent) == 1 else "have"
        return f"{shown} {has} gone silent: its process, host or network is down"
    # All live: the rank that is behind is the one that the others wait for in a collective.
    last = max((beat.step, beat.phase) for beat in after)
    behind = [r for r, beat in enumerate(after) if (beat.step, beat.phase) < last]
    if behind:
        slowest = min(behind, key=lambda r: (after[r].step, after[r].phase))
        beat = after[slowest]
        return (
            f"the others wait for rank {slowest} on {beat.host}, which in step {beat.step} still "
            f"{_DOING[beat.phase]}"
        )
    return "all ranks live and are equally far: the network between them fails"
