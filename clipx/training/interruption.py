"""Requests to stop: SIGTERM, SIGINT, SIGUSR1, SIGHUP, and the end of the time that a run may take.

Python runs a signal handler between two instructions of the main thread, which executes none while
it waits in a collective. So the C part of Python writes each signal's number into a pipe
(`signal.set_wakeup_fd`), and a thread reads it. Nothing here imports torch: the command line
listens before the seconds that this import takes.
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
from functools import partial
from typing import TYPE_CHECKING

from clipx.types import Stopped

if TYPE_CHECKING:
    from clipx.distributed.runtime import Runtime

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
NOTICES = (signal.SIGUSR1, signal.SIGHUP)
"""Signals that may be repeated, or come together with another, without a request to end at once:
schedulers repeat SIGUSR1, and a session that closes sends SIGHUP beside SIGTERM."""
EXIT_STOPPED = 75
"""EX_TEMPFAIL: ended early with a checkpoint; the same command continues the run."""
EXIT_AT_ONCE = 130
REPEAT_SECONDS = 1.0
"""The same signal within this time is a repetition: schedulers and launchers signal the whole group
and then each process. A person does not press a key twice that quickly to mean something else."""

_END_OF_LISTENING = b"\0"  # no signal has the number 0


class Stop:
    """Whether this process has to end.

    deadline: unix seconds at which it ends by itself
    on_first: called with the name of the first signal, from another thread
    """

    def __init__(self) -> None:
        self.deadline: float | None = None
        self.on_first: Callable[[str], None] = lambda name: None
        self._received: list[tuple[signal.Signals, float]] = []

    @property
    def reason(self) -> str | None:
        """Why this rank has to stop, or None. Takes less than a microsecond."""
        if self._received:
            return self.signaled_by
        if self.deadline is not None and time.time() >= self.deadline:
            return "the time limit"
        return None

    @property
    def signaled_by(self) -> str | None:
        """The name of the first signal, or None."""
        return self._received[0][0].name if self._received else None

    @contextmanager
    def listening(self) -> Iterator[Stop]:
        """Receive signals inside. Afterwards they are ignored: Python restores their defaults when
        it ends, and a repetition would then kill a process that has done all its work."""
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        handled = []
        for number in SIGNALS:
            # `nohup` starts a process with SIGHUP ignored, so that it outlives its terminal.
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            # Python writes to the pipe only for signals that have a handler.
            signal.signal(number, lambda number, frame: None)
            handled.append(number)
        _listening.append(self)
        thread = threading.Thread(target=self._listen, args=(reader,), daemon=True, name="signals")
        thread.start()
        try:
            yield self
        finally:
            _listening.remove(self)
            for number in handled:
                signal.signal(number, signal.SIG_IGN)
            signal.set_wakeup_fd(before)
            # Closing the pipe is not enough: a forked data worker may hold the other end.
            os.write(writer, _END_OF_LISTENING)
            thread.join()
            os.close(writer)
            os.close(reader)

    def _listen(self, reader: int) -> None:
        while True:
            for number in os.read(reader, 64):
                if number == _END_OF_LISTENING[0]:
                    return
                if number in SIGNALS:
                    self._receive(signal.Signals(number))

    def _receive(self, number: signal.Signals) -> None:
        now = time.monotonic()
        if number is signal.SIGHUP:
            leave_dead_terminal()
        # A second request ends the process at once; a repetition of the first is no request.
        requests = [(other, at) for other, at in self._received if other not in NOTICES]
        is_repetition = any(other is number and now - at < REPEAT_SECONDS for other, at in requests)
        if number not in NOTICES and requests and not is_repetition:
            print(f"clipx: {number.name} again: ended at once", file=sys.stderr, flush=True)
            os._exit(EXIT_AT_ONCE)
        self._received.append((number, now))
        if len(self._received) == 1:
            self.on_first(number.name)


def raise_if_signaled(runtime: Runtime, stop: Stop) -> None:
    """Raise Stopped on all ranks if one has had a signal. For use before the first step, when there
    is nothing to save. All ranks take part."""
    name = runtime.first(stop.signaled_by)
    if name is not None:
        raise Stopped(f"stopped by {name} before the first step of this start")


def leave_dead_terminal() -> None:
    """Redirect output to /dev/null if the terminal is gone: every write to it would fail and end a
    run that has yet to write its checkpoint."""
    for descriptor in (1, 2):
        try:
            is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        except OSError:
            continue  # closed
        if is_device and not os.isatty(descriptor):  # isatty is false after the terminal hung up
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, descriptor)
            os.close(null)


_listening: list[Stop] = []


def _mask_signals(how: int) -> None:
    """Block signals before a fork and unblock them after it: a signal that comes in between waits
    until each process has its own handlers."""
    if _listening:
        signal.pthread_sigmask(how, SIGNALS)


def _leave_signals_to_parent() -> None:
    """In a forked child, such as a data worker. Schedulers and terminals signal every process of a
    job, and a worker that died of it would take away the batch that its parent still needs.
    SIGTERM, by which a parent ends its children, gets its default: see clipx.data.loader.
    """
    if _listening:
        signal.set_wakeup_fd(-1)  # the pipe is the parent's
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        for number in NOTICES:
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _mask_signals(signal.SIG_UNBLOCK)


os.register_at_fork(
    before=partial(_mask_signals, signal.SIG_BLOCK),
    after_in_parent=partial(_mask_signals, signal.SIG_UNBLOCK),
    after_in_child=_leave_signals_to_parent,
)
