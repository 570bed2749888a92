"""Ranks that do something together for minutes, such as an evaluation, and may be asked to stop in
between: each by a signal of its own, or none but one.

A rank must not leave while its peers wait for it in a collective. So they meet in rounds
(`Ranks.gather`), and each brings along whether it was asked. Once a rank was, it leaves what it
does for itself at once and goes to the round in which its peers are or will be; there all hear of
it, and all leave after that same round.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from clipx.distributed.runtime import Runtime
from clipx.training.interruption import Interrupted, Stop
from clipx.types import Ranks, Stopped

T = TypeVar("T")


class Rounds:
    """Ranks whose rounds raise Interrupted on all of them as soon as one was asked to stop."""

    def __init__(self, runtime: Runtime, stop: Stop) -> None:
        self.rank, self.world_size = runtime.rank, runtime.world_size
        self.reason: str | None = None
        """Why all ranks leave, once all know."""
        self._runtime, self._stop = runtime, stop

    def gather(self, value: Any) -> list[Any]:
        with self._stop.held():  # whoever has begun a round ends it, with what it says
            return self.meet(self._stop.reason, value)

    def meet(self, asked: str | None, value: Any = None) -> list[Any]:
        answers = self._runtime.gather((asked, value))
        self.reason = next((reason for reason, _ in answers if reason), None)
        if self.reason:
            raise Interrupted(self.reason)
        return [theirs for _, theirs in answers]


def in_rounds(runtime: Runtime, stop: Stop, work: Callable[[Ranks], T]) -> T:
    """What `work` returns, which all ranks do, with as many rounds on each. Raises Interrupted on
    all ranks, naming the same reason, where one of them was asked to stop before it was done."""
    rounds = Rounds(runtime, stop)
    done: list[T] = []
    asked = None
    try:
        with stop.interrupting():
            done.append(work(rounds))
    except Interrupted as signal:
        if rounds.reason:
            raise
        asked = str(signal)
    rounds.meet(asked)  # the round that peers are in, or one that says that all have done it
    return done[0]


def leave_if_signaled(runtime: Runtime, stop: Stop) -> None:
    """Before the first step, where there is nothing to save. All ranks take part. Raises Stopped on
    all of them where one has had a signal."""
    signals = runtime.gather(stop.signaled_by)
    if name := next((name for name in signals if name), None):
        raise Stopped(f"stopped by {name} before the first step of this start")
