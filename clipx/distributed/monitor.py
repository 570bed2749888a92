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
_ORDER: dict[Phase, int] = {"data": 0, "forward": 1, "loss": 2, "elsewhere": 3}
_DOING = {
    0: "waits for data",
    1: "embeds its batch",
    2: "exchanges embeddings or gradients",
    3: "saves, evaluates or starts",
}


class Beat(NamedTuple):
    """What a rank wrote about itself."""

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
        self._at: tuple[int, int, float] = (0, _ORDER["elsewhere"], time.monotonic())
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
        self._at = (step, _ORDER[phase], time.monotonic())

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

    def _key(self, rank: int) -> str:
        return f"{self._prefix}/{rank}"

    def _beat(self) -> None:
        self._count += 1
        step, phase, _ = self._at
        self._store.set(self._key(self._rank), f"{self._count} {step} {phase} {self._host}")

    def _read(self) -> list[Beat]:
        beats = []
        for text in self._store.multi_get([self._key(rank) for rank in range(self._size)]):
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
            if phase != _ORDER["elsewhere"] and waited > self._timeout + GRACE_SECONDS:
                self._give_up(step, waited)

    def _give_up(self, step: int, waited: float) -> None:
        """End the process. The main thread hangs where no exception reaches it, in a read or in a
        device that waits for another."""
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
        return f"{_describe(silent, after)} gone silent: its process, host or network is down"
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


def _describe(ranks: list[int], beats: list[Beat]) -> str:
    shown = ", ".join(f"rank {r} on {beats[r].host}" for r in ranks[:4])
    rest = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"{shown}{rest} {'has' if len(ranks) == 1 else 'have'}"
