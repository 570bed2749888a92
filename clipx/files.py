"""Files on the local disk: atomic writes, digests, the user's cache folder and locks.

A file that is written here has its old content or its new one at any time, also after a kill or a
power loss.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    import numpy as np


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and rename what the caller has written there to `path`.

    After an exception the temporary file is removed and `path` is unchanged. Raises OSError.
    """
    # Threads of one process may write the same file at once, for example the index of one shard.
    unique = f"{os.getpid()}-{threading.get_native_id()}"
    temporary = path.with_name(f".{path.name}.{unique}")
    try:
        yield temporary
        # A file system may store the rename before the content: without this, a power loss in
        # between leaves an empty file.
        sync(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file atomically. Raises OSError.

    Text is written as UTF-8; surrogates stand for the bytes that they escape.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def sync(path: Path) -> None:
    """Wait until a file or folder is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def stamp_of(status: os.stat_result) -> str:
    """A text that changes when a local file does."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def map_file(file: BinaryIO) -> np.ndarray:
    """Map the bytes of an open file, (size,) uint8. Unlike mmap.mmap, keeps no descriptor open."""
    import numpy as np
    import torch  # not above: the command line starts a second faster without it

    if sys.platform == "linux":
        path = f"/proc/self/fd/{file.fileno()}"
        size = os.fstat(file.fileno()).st_size
        return torch.from_file(path, size=size, dtype=torch.uint8).numpy()
    file.seek(0)
    return np.fromfile(file, dtype=np.uint8)


def digest_file(path: Path, algorithm: str = "sha256") -> str:
    """Hexadecimal digest of a file's content. Raises OSError."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def digest_path(path: Path) -> str:
    """SHA-1 of an absolute path, links resolved: the name of a cache entry for that path."""
    return hashlib.sha1(os.fsencode(path.resolve())).hexdigest()


def cache_folder(name: str) -> Path:
    """A folder of clipx below the user's cache directory. It may not exist yet."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return root / "clipx" / name


# --- A file that names the holder of its own lock; other locks are `filelock.FileLock` ---

_claimed: set[int] = set()  # descriptors of this process


def _close_claims_of_parent() -> None:
    """A child that kept the descriptors would hold the locks of a parent that was killed."""
    for descriptor in _claimed:
        os.close(descriptor)
    _claimed.clear()


os.register_at_fork(after_in_child=_close_claims_of_parent)


def claim(path: Path) -> int:
    """Lock a file, empty it and return its descriptor. The kernel unlocks it when the process ends.

    Raises BlockingIOError where another process has the lock.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        _claimed.add(descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _close_claim(descriptor)
            raise
        if _is_open_at(path, descriptor):
            os.ftruncate(descriptor, 0)
            return descriptor
        _close_claim(descriptor)  # its holder removed the file between the open and the lock


def release(path: Path, descriptor: int) -> None:
    """Remove a claimed file and unlock it."""
    if _is_open_at(path, descriptor):
        path.unlink(missing_ok=True)
    _close_claim(descriptor)


def _is_open_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _close_claim(descriptor: int) -> None:
    # Forgotten before it is closed: another thread may open a file under the same number at once.
    _claimed.discard(descriptor)
    os.close(descriptor)
