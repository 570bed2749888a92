"""Room in the folder of a shard cache: how much of it is taken, and which files are evicted.

The mtime of a shard is its last use. A shard that was downloaded ahead of need has a marker file
beside it until its first use, `.<name>.ahead`, with the id of the process that will need it.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

PART = "part-"
_CACHED = re.compile(r"(part-)?[0-9a-f]{20}-")  # other files in the folder are left alone
_AHEAD_SECONDS = 3600  # after this time a process is taken to have skipped the shard


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used_ns: int
    awaited: bool


def download_lock(target: Path) -> FileLock:
    """The lock of the process that downloads `target`. The kernel releases it if that is killed."""
    return FileLock(_hidden(target, "lock"), thread_local=False)


def make_room(
    part: Path, size: int, limit: int, *, ahead: bool = False, force: bool = False
) -> bool:
    """Grow `part`, a download, to `size` bytes, and evict other files so that the folder has at
    most `limit` bytes. Returns False, with nothing changed, if that cannot be.

    ahead: the file is not needed yet. It takes no room from files that wait for their first use,
    and with them at most half of the cache, so that the other half is left to files in use
    force: evict what there is, even if that is not enough
    """
    with _folder_lock(part.parent):
        taken, needed, victims = _scan(part.parent, own=part)
        if ahead:
            if needed + size > limit // 2:
                return False
            victims = [entry for entry in victims if not entry.awaited]
        excess = taken + size - limit
        if excess > sum(entry.size for entry in victims) and not force:
            return False
        _evict(victims, excess)
        os.truncate(part, size)  # before the bytes come, so that other processes count them
        return True


def put_in_place(part: Path, target: Path) -> None:
    """Rename a complete download. While the folder is locked, since a scan that meets neither the
    old name nor the new one would count too little."""
    with _folder_lock(part.parent):
        part.rename(target)


def keep_within(folder: Path, limit: int) -> None:
    """Evict files until the folder has at most `limit` bytes."""
    with _folder_lock(folder):
        taken, _, victims = _scan(folder)
        _evict(victims, taken - limit)


def _folder_lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock", poll_interval=0.01)


def _evict(victims: list[_Entry], excess: int) -> None:
    """Remove files in this order until `excess` bytes are free."""
    for entry in victims:
        if excess <= 0:
            break
        entry.path.unlink(missing_ok=True)
        _hidden(entry.path, "ahead").unlink(missing_ok=True)
        excess -= entry.size


def _scan(folder: Path, own: Path | None = None) -> tuple[int, int, list[_Entry]]:
    """Look at all shards and downloads but `own`. Returns their bytes, the bytes of downloads and
    of shards that wait for their first use, and the shards in the order of eviction. Removes the
    downloads of killed processes."""
    taken = 0
    needed = 0
    entries = []
    for path in folder.iterdir():
        if not _CACHED.match(path.name) or path == own:
            continue
        try:
            status = path.stat()
            is_download = path.name.startswith(PART)
            if is_download and _remove_abandoned(path):
                continue
            awaited = not is_download and _is_awaited(path, status.st_mtime)
        except FileNotFoundError:
            continue  # renamed or removed by its owner since the listing
        taken += status.st_size
        if is_download or awaited:
            needed += status.st_size
        if not is_download:
            entries.append(_Entry(path, status.st_size, status.st_mtime_ns, awaited))
    # First the least recently used. Of the awaited ones, the last to be downloaded is needed last.
    entries.sort(key=lambda e: (e.awaited, -e.used_ns if e.awaited else e.used_ns))
    return taken, needed, entries


def _remove_abandoned(part: Path) -> bool:
    """Remove a download whose process has ended. Returns False if it is still going on."""
    target = part.with_name(part.name.removeprefix(PART))
    lock = download_lock(target)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
    if part.exists():  # else it was completed since the listing, and its marker is valid
        _hidden(target, "ahead").unlink(missing_ok=True)
    end_download(target, lock)
    return True


def end_download(target: Path, lock: FileLock) -> None:
    """Remove the part of a download if it was not renamed, and unlock it."""
    target.with_name(PART + target.name).unlink(missing_ok=True)
    # Removed while it is held: a process that waits for it notices, and makes a new file.
    _hidden(target, "lock").unlink(missing_ok=True)
    lock.release()


# --- Markers ---


def _hidden(target: Path, kind: str) -> Path:
    return target.with_name(f".{target.name}.{kind}")


def mark_used(target: Path, descriptor: int) -> None:
    """Mark a file as used now."""
    # Not by the file system's clock, which stands still for milliseconds.
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))
    _hidden(target, "ahead").unlink(missing_ok=True)


def mark_ahead(target: Path) -> None:
    """Mark a file as one that this process will need."""
    _hidden(target, "ahead").write_text(str(os.getpid()))


def _is_awaited(target: Path, downloaded_seconds: float) -> bool:
    """Whether the process that has downloaded a file ahead of need is still alive."""
    if time.time() - downloaded_seconds > _AHEAD_SECONDS:
        return False
    try:
        os.kill(int(_hidden(target, "ahead").read_text()), 0)
    except PermissionError:
        return True  # alive, of another user
    except (OSError, ValueError):
        return False
    return True
