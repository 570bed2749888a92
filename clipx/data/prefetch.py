"""Background downloads of shards that will soon be needed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING

from clipx.data.transfer.common import ShardFile
from clipx.types import UserError

if TYPE_CHECKING:
    from clipx.data.shard_cache import Download, ShardCache

_POLL_SECONDS = 2.0  # other processes make room too, without a notification


class Prefetcher:
    """One thread takes room for files, in the order of need; at most `threads` others download.
    All end with the process."""

    def __init__(self, cache: ShardCache, threads: int) -> None:
        self.cache = cache
        self._slots = threading.Semaphore(threads)
        self._changed = threading.Condition()  # guards the fields below
        self._waiting: dict[ShardFile, None] = {}  # an ordered set
        self._active: set[ShardFile] = set()
        self._dispatcher: threading.Thread | None = None

    def add(self, files: Iterable[ShardFile]) -> None:
        """Each file is taken once, whether it waits or is active."""
        with self._changed:
            for file in files:
                if file not in self._active:
                    self._waiting.setdefault(file)
            if self._dispatcher is None:
                self._dispatcher = threading.Thread(target=self._dispatch, daemon=True)
                self._dispatcher.start()
            self._changed.notify_all()

    def forget(self, file: ShardFile) -> None:
        """Called when a reader has the file, which then leaves room to the files in line."""
        with self._changed:
            self._waiting.pop(file, None)
            self._active.discard(file)
            self._changed.notify_all()

    def _dispatch(self) -> None:
        while True:
            self._slots.acquire()
            with self._changed:
                while not self._waiting:
                    self._changed.wait()
                file = next(iter(self._waiting))
                del self._waiting[file]
                self._active.add(file)
            # Room is taken by this thread alone, in the order of need; transfers run side by side.
            download = self._reserve(file)
            if download is None:
                self._end(file)
            else:
                arguments = (file, download)
                threading.Thread(target=self._fetch, args=arguments, daemon=True).start()

    def _reserve(self, file: ShardFile) -> Download | None:
        """Wait for room. Returns None for a file that need not or cannot be downloaded here."""
        while True:
            download = None
            try:
                download = self.cache.begin_download(file, ahead=True)
                if download is None or download.take_room():
                    return download
                download.close()
            except (OSError, UserError):
                if download is not None:
                    download.close()
                return None  # the reader meets the same error and reports it
            with self._changed:
                self._changed.wait(_POLL_SECONDS)
                if file not in self._active:
                    return None

    def _fetch(self, file: ShardFile, download: Download) -> None:
        try:
            os.close(download.fetch())
        except (OSError, UserError):
            pass  # the reader meets the same error and reports it
        finally:
            download.close()
            self._end(file)

    def _end(self, file: ShardFile) -> None:
        with self._changed:
            self._active.discard(file)
        self._slots.release()
