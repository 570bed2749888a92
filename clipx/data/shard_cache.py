"""Remote files in a local folder of bounded size, which the processes of a node share.

folder/
    <hash>-00001.tar        a whole file: it was renamed into place after all checks. Its mtime is
                            its last use. An atime of 1970 tells that it was brought ahead of
                            need and not used yet (see eviction.py)
    part-<hash>-00001.tar   a download, as long as it is being written: who downloads holds its
                            lock, which the kernel releases when the process is killed. Already as
                            long as the file will be, so that the room is taken
    .lock                   held while room is made

Other files in the folder are not touched.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path

from clipx.data.eviction import keep_within, make_room, touch, waiting_for
from clipx.data.file_locks import claim, release
from clipx.data.prefetch import Prefetcher
from clipx.data.transfer import stream
from clipx.data.transfer.common import PATIENCE, Patience, ShardFile, retry
from clipx.data.transfer.store import md5_applies
from clipx.types import UserError

_GROWTH = 64 << 20  # bytes by which room is taken for a file of unknown size


class ShardCache:
    """A cache of at most `limit_bytes`. What is brought ahead of need takes half of it at most, so
    that the other half stays for what was used last.

    Holds no handle and no thread that a pickle or a fork would lose: threads for prefetching are
    made by the first process that asks for one.
    """

    def __init__(
        self, folder: Path, limit_bytes: int, *, patience: Patience = PATIENCE, threads: int = 8
    ) -> None:
        self.folder, self.limit_bytes = Path(folder), limit_bytes
        self.patience, self.threads = patience, threads
        self._prefetchers: dict[int, Prefetcher] = {}  # by process: a fork has no threads

    def __getstate__(self) -> dict[str, object]:
        return {**vars(self), "_prefetchers": {}}

    def path(self, file: ShardFile) -> Path:
        """Where the whole file lies, downloaded if need be. It may be evicted by the next
        download: a reader that must not meet that takes `open`.

        Raises OSError with the url and the cause, UserError where the cache is too small or broken.
        """
        os.close(self.open(file))
        return self.place(file)

    def open(self, file: ShardFile) -> int:
        """A descriptor for reading the whole file, good also after an eviction. Raises as `path`
        does."""
        prefetcher = self._prefetchers.get(os.getpid())
        if prefetcher is not None:
            prefetcher.forget(file)
        descriptor = self._opened(self.place(file))
        if descriptor is None:
            descriptor = self._download(file)
            assert descriptor is not None
        first_use = waiting_for(os.fstat(descriptor)) is not None
        with self._local():
            touch(descriptor)
        if first_use and prefetcher is not None:
            prefetcher.room_was_made()
        return descriptor

    def prefetch(self, files: Sequence[ShardFile]) -> None:
        """Downloads files, the first first, in the background. Waits where the room for what is
        brought ahead is full; a failure is left for `path` to meet."""
        mine = Prefetcher(self._bring_ahead, self.threads)
        self._prefetchers.setdefault(os.getpid(), mine).add(files)

    def _bring_ahead(self, file: ShardFile, begun: Callable[[], None]) -> bool:
        target = self.place(file)
        with suppress(FileNotFoundError):
            if waiting_for(target.stat()) is None:  # was used before: it is needed again
                touch(target)
            return True
        descriptor = self._download(file, begun)
        if descriptor is not None:
            os.close(descriptor)
        return descriptor is not None

    def trim(self) -> None:
        """Evict what is beyond the limit since something was written beside the shards."""
        with self._local():
            keep_within(self.folder, self.limit_bytes)

    def place(self, file: ShardFile) -> Path:
        """Where the file lies once it is here, and as long as it is not evicted."""
        key = hashlib.sha1(repr((file.url, file.stamp, file.size)).encode()).hexdigest()[:20]
        name = re.sub(r"[^A-Za-z0-9._-]", "_", file.url.partition("?")[0].rpartition("/")[2])
        return self.folder / f"{key}-{name[-80:]}"

    def _download(self, file: ShardFile, begun: Callable[[], None] | None = None) -> int | None:
        """A descriptor of the file, which is then in its place.

        begun: called once there is room. With it, the file is brought ahead of need: None is
        returned where there is no room, an error raised where another is bringing it
        """
        ahead = begun is not None
        target = self.place(file)
        part = target.with_name(f"part-{target.name}")
        if file.size > self.limit_bytes:
            raise self._too_large(file, file.size)
        with self._local():
            self.folder.mkdir(parents=True, exist_ok=True)
            writer = claim(part, wait=not ahead)
        try:
            descriptor = self._opened(target)
            if descriptor is not None:  # the one who had the claim before us has brought it
                return descriptor
            if not self._take_room(part, writer, max(file.size, 0), ahead=ahead):
                return None
            if begun is not None:
                begun()
            retry(lambda: self._fill(file, part, writer), self.patience, file.url)
            with self._local():
                os.fsync(writer)  # before the rename, or a crash may leave a name without bytes
                touch(writer, used=not ahead)
                descriptor = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                part.rename(target)
            return descriptor
        finally:
            release(part, writer)

    def _opened(self, target: Path) -> int | None:
        with self._local():
            try:
                return os.open(target, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return None

    def _fill(self, file: ShardFile, part: Path, writer: int) -> None:
        """One attempt. Goes on where the last one broke off; the writer's place is how far."""
        done = os.lseek(writer, 0, os.SEEK_CUR)
        if not (file.stamp and done < file.size):
            done = os.lseek(writer, 0, os.SEEK_SET)
        with closing(stream(file, done, self.patience.stall_seconds)) as pieces:
            for place, piece in pieces:
                done = place + len(piece)
                if 0 <= file.size < done:
                    raise OSError(f"more bytes came than its {file.size}")
                if done > self.limit_bytes:
                    raise self._too_large(file, done)
                if done > os.fstat(writer).st_size:
                    with self._local():
                        size = min(done + _GROWTH, self.limit_bytes)
                        make_room(part, writer, size, self.limit_bytes)
                with self._local():
                    os.lseek(writer, place, os.SEEK_SET)
                    _write(writer, piece)
        if 0 <= file.size != done:
            raise OSError(f"{done} bytes came instead of {file.size}")
        os.ftruncate(writer, done)
        came = _md5(part) if file.md5 else ""
        if came != file.md5 and md5_applies(file, self.patience.stall_seconds):
            raise OSError(f"came with MD5 {came} instead of {file.md5}")

    def _take_room(self, part: Path, writer: int, size: int, *, ahead: bool) -> bool:
        """Waits for room that other downloads hold. False only ahead of need."""
        deadline = time.monotonic() + self.patience.stall_seconds * self.patience.attempts
        while True:
            with self._local():
                if make_room(part, writer, size, self.limit_bytes, ahead=ahead, strict=True):
                    return True
            if ahead:
                return False
            if time.monotonic() > deadline:
                raise OSError(
                    f"the cache {self.folder} of {_gib(self.limit_bytes)} is full of files that "
                    "are being downloaded; raise `cache_gib`"
                )
            time.sleep(0.05)

    def _too_large(self, file: ShardFile, size: int) -> UserError:
        return UserError(
            f"{file.url} has {_gib(size)} or more, the cache {self.folder} takes "
            f"{_gib(self.limit_bytes)}; raise `cache_gib`"
        )

    @contextmanager
    def _local(self) -> Iterator[None]:
        """Tells faults of this folder from those of the store: no other attempt mends them."""
        try:
            yield
        except OSError as error:
            raise UserError(
                f"the cache {self.folder} cannot be written: {error}; "
                "free its disk, lower `cache_gib` or choose another folder"
            ) from error


def _write(descriptor: int, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "md5").hexdigest()


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"
