"""Requests to stop: SIGTERM, SIGINT, SIGUSR1, SIGHUP, and the end of the time that a run may take.

Python runs a handler between two instructions of the main thread, and a rank that waits in a
collective has none. So Python's part in C writes each signal's number into a pipe
(`signal.set_wakeup_fd`), and a thread acts on what comes out of it. Nothing here imports torch: the
command line listens before it spends seconds on that.
"""

from __future__ import annotations

import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from clipx.types import Ranks, Stopped

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
NOTICES = (signal.SIGUSR1, signal.SIGHUP)
"""Signals that may come again, or together with another, without asking for an end at once:
schedulers repeat SIGUSR1, and a session that closes sends SIGHUP beside SIGTERM."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: ended early with a checkpoint; the same command goes on."""
EXIT_AT_ONCE = 130
REPEAT_SECONDS = 1.0
"""The same signal again within this time is a scheduler's or a launcher's repetition, which send it
to the whole group and then to each process. Nobody presses a key twice to say something else."""


class Interrupted(BaseException):
    """A signal, whose name it has, came in a part of the main thread that may be left at any
    point."""


class Stop:
    """Whether this process was asked to end.

    deadline: unix seconds at which it asks itself
    on_first: told the name of the first signal, from another thread
    """

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.on_first: Callable[[str], None] = lambda name: None
        self._asked: list[tuple[signal.Signals, float]] = []
        self._may_interrupt = False

    @property
    def reason(self) -> str | None:
        """Why this rank wants to stop, or None. Costs less than a microsecond."""
        if self._asked:
            return self.signaled_by
        if self.deadline is not None and time.time() >= self.deadline:
            return "the time limit"
        return None

    @property
    def signaled_by(self) -> str | None:
        """The name of the first signal, or None."""
        return self._asked[0][0].name if self._asked else None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Afterwards the signals are ignored: Python gives them back their defaults when it ends,
        and a repetition would then kill a process that has done all its work."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        heard = [number for number in SIGNALS if not _is_nohup(number)]
        for number in heard:
            signal.signal(number, self._in_main_thread)
        _listening.append(self)
        thread = threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals")
        thread.start()
        try:
            yield self
        finally:
            _listening.remove(self)
            for number in heard:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(before)
            os.close(writer)  # which ends the thread
            thread.join()
            os.close(reader)

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Inside, a signal raises Interrupted instead of waiting for the next step; one that has
        come already raises it at once."""
        self._may_interrupt = True
        try:
            self._interrupt_if_asked()
            yield
        finally:
            self._may_interrupt = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Inside, within `interrupting`, a signal waits: other ranks take part in what is done."""
        before, self._may_interrupt = self._may_interrupt, False
        yield
        self._may_interrupt = before  # not after an exception: nothing interrupts the tidying up
        if before:
            self._interrupt_if_asked()

    def _interrupt_if_asked(self) -> None:
        if self._asked:
            self._may_interrupt = False
            raise Interrupted(self._asked[0][0].name)

    def _in_main_thread(self, number: int, frame: FrameType | None) -> None:
        if self._may_interrupt:
            self._may_interrupt = False  # or a repetition would interrupt the tidying up
            raise Interrupted(signal.Signals(number).name)  # the thread may not know of it yet

    def _listen(self, reader: int) -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in SIGNALS:
                    self._heard(signal.Signals(number))

    def _heard(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number is signal.SIGHUP:
            leave_dead_terminal()
        if self._is_second_wish(number, now):
            print(f"clipx: {number.name} again: ended at once", file=sys.stderr, flush=True)
            os._exit(EXIT_AT_ONCE)
        self._asked.append((number, now))
        if len(self._asked) == 1:
            self.on_first(number.name)

    def _is_second_wish(self, number: signal.Signals, now: float) -> bool:
        ends = [(n, t) for n, t in self._asked if n not in NOTICES]
        if number in NOTICES or not ends:
            return False
        return not any(n is number and now - t < REPEAT_SECONDS for n, t in ends)


def leave_if_signaled(ranks: Ranks, stop: Stop) -> None:
    """Raise Stopped on all ranks if one has had a signal. For use before the first step, when there
    is nothing to save. All ranks take part."""
    signals = ranks.gather(stop.signaled_by)
    if name := next((name for name in signals if name), None):
        raise Stopped(f"stopped by {name} before the first step of this start")


def _is_nohup(number: signal.Signals) -> bool:
    """Whether `nohup` has started this process, which is then to outlive its terminal."""
    return number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN


def leave_dead_terminal() -> None:
    """Let what is still printed go nowhere if the terminal is gone: every write to it would fail,
    and end a run that has yet to write its checkpoint."""
    for descriptor in (1, 2):
        try:
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        except OSError:
            continue  # closed
        if is_device and not os.isatty(descriptor):  # a terminal that has hung up is none
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


_listening: list[Stop] = []


def _hold() -> None:
    """Before a fork: a signal that comes now waits until each process has its own handlers."""
    if _listening:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _let_go() -> None:
    if _listening:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _leave_to_parent() -> None:
    """In a forked child, e.g. a data worker. A scheduler or a terminal signals every process of a
    job, and a child that died of it would take the step with it that its parent has yet to do.
    SIGTERM, by which a parent ends its children, gets its default: see clipx.data.loader.
    """
    if _listening:
        signal.set_wakeup_fd(-1)  # it is the parent's pipe
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in NOTICES:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _let_go()


os.register_at_fork(before=_hold, after_in_parent=_let_go, after_in_child=_leave_to_parent)
