"""Remote files in a local folder of bounded size, which the processes of a node share.

folder/
    <hash>-00001.tar          a whole file, renamed into place after all checks
    part-<hash>-00001.tar     a download; already as long as the file will be, to take its room
    .<hash>-00001.tar.lock    held by the process that downloads
    .<hash>-00001.tar.ahead   the file was downloaded ahead of need and not used yet
    .lock                     held while room is made

Other files in the folder are not touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from clipx.data import eviction
from clipx.data.prefetch import Prefetcher
from clipx.data.transfer import stream
from clipx.data.transfer.common import PATIENCE, Patience, ShardFile, retry
from clipx.data.transfer.store import md5_applies
from clipx.files import digest_file
from clipx.types import UserError

_GROWTH = 64 << 20  # bytes of room that are taken at a time for a file of unknown size


class ShardCache:
    """A cache of at most `limit_bytes`. Files downloaded ahead of need take at most half of it.

    Can be pickled and forked: threads for prefetching belong to the process that starts them.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, *, patience: Patience = PATIENCE, threads: int = 8
    ) -> None:
        self.folder = Path(folder)
        self.limit_bytes = limit_bytes
        self.patience = patience
        self.threads = threads
        self._prefetchers: dict[int, Prefetcher] = {}  # by process id: a fork has no threads

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_prefetchers": {}}

    def open(self, file: ShardFile) -> int:
        """Download a file if need be, and return a descriptor of it, which outlives an eviction.

        Raises OSError with the url and the cause, UserError where the cache is too small or broken.
        """
        target = self.place(file)
        with self.local_errors():
            descriptor = _open_existing(target)
        if descriptor is None:
            descriptor = self._download(file)
        with self.local_errors():
            eviction.mark_used(target, descriptor)
        prefetcher = self._prefetchers.get(os.getpid())
        if prefetcher is not None:
            prefetcher.forget(file)
        return descriptor

    def prefetch(self, files: Sequence[ShardFile]) -> None:
        """Download files in the background, in this order. Waits where the room for files ahead of
        need is taken; errors are left for `open` to raise."""
        prefetcher = self._prefetchers.setdefault(os.getpid(), Prefetcher(self, self.threads))
        prefetcher.add(files)

    def trim(self) -> None:
        """Evict what exceeds the limit after something was written beside the shards."""
        with self.local_errors():
            eviction.keep_within(self.folder, self.limit_bytes)

    def place(self, file: ShardFile) -> Path:
        """The path of the file while it is in the cache."""
        # A new version of a file has another stamp, and so another place.
        key = hashlib.sha1(repr((file.url, file.stamp, file.size)).encode()).hexdigest()[:20]
        name = re.sub(r"[^A-Za-z0-9._-]", "_", file.url.partition("?")[0].rpartition("/")[2])
        return self.folder / f"{key}-{name[-80:]}"

    def _download(self, file: ShardFile) -> int:
        download = self.begin_download(file, ahead=False)
        assert download is not None
        try:
            with self.local_errors():
                # The process that held the lock before this one may have downloaded the file.
                descriptor = _open_existing(download.target)
            if descriptor is not None:
                return descriptor
            # Downloads of other processes hold room that cannot be evicted before they end.
            deadline = time.monotonic() + self.patience.stall_seconds * self.patience.attempts
            while not download.take_room():
                if time.monotonic() > deadline:
                    raise OSError(
                        f"the cache {self.folder} of {_gib(self.limit_bytes)} is full of files "
                        "that are being downloaded; raise `cache_gib`"
                    )
                time.sleep(0.05)
            return download.fetch()
        finally:
            download.close()

    def begin_download(self, file: ShardFile, *, ahead: bool) -> Download | None:
        """Lock a file. Ahead of need, returns None if it is there or another process downloads it;
        otherwise waits for that."""
        if file.size > self.limit_bytes:
            raise self.too_large(file, file.size)
        target = self.place(file)
        with self.local_errors():
            self.folder.mkdir(parents=True, exist_ok=True)
            if ahead:
                with suppress(FileNotFoundError):
                    os.utime(target)  # its coming use counts as one, or it may be evicted before
                    return None
            lock = eviction.download_lock(target)
            try:
                lock.acquire(blocking=not ahead)
            except Timeout:
                return None
            try:
                return Download(self, file, lock, ahead=ahead)
            except OSError:
                lock.release()
                raise

    def too_large(self, file: ShardFile, size: int) -> UserError:
        return UserError(
            f"{file.url} has {_gib(size)} or more, the cache {self.folder} takes "
            f"{_gib(self.limit_bytes)}; raise `cache_gib`"
        )

    @contextmanager
    def local_errors(self) -> Iterator[None]:
        """Turn errors of this folder into UserError: unlike those of the store, they are not worth
        another attempt."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache {self.folder} cannot be written: {error}; "
                "free its disk, lower `cache_gib` or choose another folder"
            ) from error


class Download:
    """A file on its way into the cache, locked until `close`."""

    def __init__(self, cache: ShardCache, file: ShardFile, lock: FileLock, *, ahead: bool) -> None:
        """Raises OSError."""
        self.cache = cache
        self.file = file
        self.ahead = ahead
        self.target = cache.place(file)
        self._lock = lock
        self._part = self.target.with_name(eviction.PART + self.target.name)
        flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._writer = os.open(self._part, flags, 0o644)
        self._done = 0  # bytes written

    def take_room(self) -> bool:
        """Make room for the file. False while there is too little that may be evicted."""
        size = max(self.file.size, 0)
        with self.cache.local_errors():
            return eviction.make_room(self._part, size, self.cache.limit_bytes, ahead=self.ahead)

    def fetch(self) -> int:
        """Download and verify the file, and rename it into place. Returns a descriptor of it."""
        retry(self._attempt, self.cache.patience, self.file.url)
        with self.cache.local_errors():
            os.fsync(self._writer)  # before the rename, or a crash may leave a name without bytes
            if self.ahead:
                eviction.mark_ahead(self.target)
            descriptor = os.open(self._part, os.O_RDONLY | os.O_CLOEXEC)
            eviction.put_in_place(self._part, self.target)
        return descriptor

    def _attempt(self) -> None:
        """Download the file, from where the last attempt broke off if its version is known."""
        file = self.file
        if not (file.stamp and self._done < file.size):
            self._done = 0
        stall_seconds = self.cache.patience.stall_seconds
        with closing(stream(file, self._done, stall_seconds)) as pieces:
            for place, piece in pieces:
                self._write(place, piece)
        if 0 <= file.size != self._done:
            raise OSError(f"{self._done} bytes came instead of {file.size}")
        with self.cache.local_errors():
            os.ftruncate(self._writer, self._done)  # of unknown size, it has room to spare
        if file.md5:
            md5 = digest_file(self._part, "md5")
            if md5 != file.md5 and md5_applies(file, stall_seconds):
                raise OSError(f"the bytes that came have MD5 {md5} instead of {file.md5}")

    def _write(self, place: int, piece: bytes) -> None:
        end = place + len(piece)
        limit = self.cache.limit_bytes
        if 0 <= self.file.size < end:
            raise OSError(f"more bytes came than its {self.file.size}")
        if end > limit:
            raise self.cache.too_large(self.file, end)
        with self.cache.local_errors():
            if end > os.fstat(self._writer).st_size:
                # Forced, since two files of unknown size that wait for each other's room would
                # both wait until the deadline.
                size = min(end + _GROWTH, limit)
                eviction.make_room(self._part, size, limit, force=True)
            rest = memoryview(piece)
            while rest:  # a write may be partial
                written = os.pwrite(self._writer, rest, end - len(rest))
                rest = rest[written:]
        self._done = end

    def close(self) -> None:
        os.close(self._writer)
        eviction.end_download(self.target, self._lock)


def _open_existing(target: Path) -> int | None:
    try:
        return os.open(target, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
