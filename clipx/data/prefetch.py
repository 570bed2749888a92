"""Threads that fetch files ahead of need."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable
from contextlib import ExitStack

from clipx.data.transfer.common import ShardFile
from clipx.types import UserError

_POLL_SECONDS = 2.0  # other processes make room too, and do not tell


class Prefetcher:
    """Calls `fetch` for each file, in order, in at most `threads` threads, which end with the
    process.

    fetch: gets a file and what to call once it has begun, so that the next may begin; False where
    there is no room yet: it is asked again when there may be
    """

    def __init__(
        self, fetch: Callable[[ShardFile, Callable[[], None]], bool], threads: int
    ) -> None:
        self.fetch, self.threads = fetch, threads
        self._turn = threading.Lock()  # the first file that waits takes its room before the second
        self._changed = threading.Condition()
        self._waiting: OrderedDict[ShardFile, None] = OrderedDict()
        self._taken: set[ShardFile] = set()
        self._running = 0

    def add(self, files: Iterable[ShardFile]) -> None:
        """Each file once, whether it waits or is being fetched."""
        with self._changed:
            for file in files:
                if file not in self._taken:
                    self._waiting.setdefault(file)
            missing = min(self.threads, len(self._waiting)) - self._running
            for _ in range(missing):
                threading.Thread(target=self._work, daemon=True, name="clipx-prefetch").start()
            self._running += max(missing, 0)
            self._changed.notify_all()

    def forget(self, file: ShardFile) -> None:
        """The reader has it or gets it on its own."""
        with self._changed:
            self._waiting.pop(file, None)
            self._taken.discard(file)

    def room_was_made(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with ExitStack() as turn:
                turn.enter_context(self._turn)
                self._fetch(self._next(), begun=turn.close)

    def _next(self) -> ShardFile:
        with self._changed:
            while not self._waiting:
                self._changed.wait()
            file, _ = self._waiting.popitem(last=False)
            self._taken.add(file)
            return file

    def _fetch(self, file: ShardFile, begun: Callable[[], None]) -> None:
        try:
            while not self.fetch(file, begun):
                with self._changed:
                    self._changed.wait(_POLL_SECONDS)
                    if file not in self._taken:
                        return
        except (OSError, UserError):
            return  # the reader meets the same and tells it
        finally:
            with self._changed:
                self._taken.discard(file)
