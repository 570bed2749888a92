"""Room in the folder of a shard cache: how much of it is taken, and which files are evicted.

The mtime of a shard is its last use. A shard that was downloaded ahead of need has a marker file
beside it until its first use, `.<name>.ahead`, with the id of the process that will need it.
"""

from __future__ import annotations

import os
import re
import time
from contextlib import suppress
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
        reserved, entries = _scan(part.parent, own=part)
        awaited = [entry for entry in entries if entry.awaited]
        if ahead and reserved + _total(awaited) + size > limit // 2:
            return False
        victims = sorted((e for e in entries if not e.awaited), key=lambda e: e.used_ns)
        if not ahead:
            # The file that was downloaded last is needed last.
            victims += sorted(awaited, key=lambda e: -e.used_ns)
        excess = reserved + _total(entries) + size - limit
        if excess > _total(victims) and not force:
            return False
        _evict(victims, excess)
        os.truncate(part, size)
        return True


def keep_within(folder: Path, limit: int) -> None:
    """Evict the files that were used longest ago until the folder has at most `limit` bytes."""
    with _folder_lock(folder):
        reserved, entries = _scan(folder)
        victims = sorted(entries, key=lambda e: (e.awaited, e.used_ns))
        _evict(victims, reserved + _total(entries) - limit)


def _folder_lock(folder: Path) -> FileLock:
    return FileLock(folder / ".lock", poll_interval=0.01)


def _total(entries: list[_Entry]) -> int:
    return sum(entry.size for entry in entries)


def _evict(victims: list[_Entry], excess: int) -> None:
    """Remove files in this order until `excess` bytes are free."""
    for entry in victims:
        if excess <= 0:
            break
        entry.path.unlink(missing_ok=True)
        _hidden(entry.path, "ahead").unlink(missing_ok=True)
        excess -= entry.size


def _scan(folder: Path, own: Path | None = None) -> tuple[int, list[_Entry]]:
    """Returns the bytes of downloads other than `own`, and the whole files. Removes the downloads
    of killed processes."""
    reserved = 0
    entries: list[_Entry] = []
    for path in folder.iterdir():
        if not _CACHED.match(path.name) or path == own:
            continue
        try:
            status = path.stat()
            if not path.name.startswith(PART):
                awaited = _is_awaited(path, status.st_mtime)
                entries.append(_Entry(path, status.st_size, status.st_mtime_ns, awaited))
            elif not _remove_abandoned(path):
                reserved += status.st_size
        except FileNotFoundError:
            continue  # renamed or removed by its owner since the listing
    return reserved, entries


def _remove_abandoned(part: Path) -> bool:
    """Remove a download whose process has ended. Returns False if it is still going on."""
    target = part.with_name(part.name.removeprefix(PART))
    lock = download_lock(target)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        return False
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


def mark_used(target: Path, descriptor: int) -> bool:
    """Mark a file as used now. Returns True if it was downloaded ahead and not used before."""
    # Not by the file system's clock, which stands still for milliseconds.
    now = time.time_ns()
    os.utime(descriptor, ns=(now, now))
    try:
        _hidden(target, "ahead").unlink()
    except FileNotFoundError:
        return False
    return True


def keep_for_use(target: Path) -> bool:
    """Count the coming use of a file as a use, so that it is not evicted before. Returns False if
    the file is not in the cache."""
    if not target.exists():
        return False
    if not _hidden(target, "ahead").exists():
        with suppress(FileNotFoundError):  # evicted since
            os.utime(target)
    return True


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
