"""Room in the folder of a cache: who holds how much of it, and who goes first."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from clipx.data.file_locks import locked, remove_unclaimed

_OURS = re.compile(r"(part-)?[0-9a-f]{20}-")
_SECOND = 10**9
_MAX_PID = 2**22  # of Linux
_AHEAD_NS = 3600 * _SECOND  # what was brought ahead longer ago is no longer waited for


@dataclass(frozen=True)
class _Entry:
    path: Path
    size: int
    used_ns: int
    ahead: bool


def make_room(
    part: Path, writer: int, size: int, limit: int, *, ahead: bool = False, strict: bool = False
) -> bool:
    """Evicts what is needed for the part to have `size` bytes, and gives them to it. Where that
    cannot be, `strict` changes nothing.

    part: being written by `writer`; limit: of the bytes in its folder; ahead: brought ahead of need
    """
    with locked(part.with_name(".lock")):
        parts, entries = _entries(part)
        excess = parts + sum(entry.size for entry in entries) + size - limit
        waiting = [entry for entry in entries if entry.ahead]
        victims = sorted((e for e in entries if not e.ahead), key=lambda e: e.used_ns)
        if ahead and parts + sum(e.size for e in waiting) + size > limit // 2:
            return False
        if not ahead:  # what was brought last is needed last
            victims += sorted(waiting, key=lambda e: -e.used_ns)
        if strict and excess > sum(e.size for e in victims):
            return False
        _evict(victims, excess)
        os.ftruncate(writer, size)
        return True


def keep_within(folder: Path, limit: int) -> None:
    """Evict whole files until the folder holds at most `limit` bytes, those that were used longest
    ago first: an index that was written beside its shard needs room too."""
    lock = folder / ".lock"
    with locked(lock):
        parts, entries = _entries(lock)
        excess = parts + sum(entry.size for entry in entries) - limit
        _evict(sorted(entries, key=lambda e: (e.ahead, e.used_ns)), excess)


def _evict(victims: list[_Entry], excess: int) -> None:
    """Remove files, in this order, until `excess` bytes are free."""
    for entry in victims:
        if excess <= 0:
            break
        entry.path.unlink(missing_ok=True)
        excess -= entry.size


def _entries(own: Path) -> tuple[int, list[_Entry]]:
    """Bytes of other downloads under way, and the whole files. Removes what killed processes
    have left."""
    parts, whole = 0, []
    now = time.time_ns()
    for path in own.parent.iterdir():
        if not _OURS.match(path.name) or path == own:
            continue
        try:
            stat = path.stat()
            if not path.name.startswith("part-"):
                ahead = now - stat.st_mtime_ns < _AHEAD_NS and _is_alive(waiting_for(stat))
                whole.append(_Entry(path, stat.st_size, stat.st_mtime_ns, ahead))
            elif not remove_unclaimed(path):
                parts += stat.st_size
        except FileNotFoundError:
            continue  # renamed or given up by its owner at this moment
    return parts, whole


def touch(file: int | Path, *, used: bool = True) -> None:
    """Marks a whole file as used now, or as brought now and not used yet. Not by the file system's
    own clock, which stands still for milliseconds."""
    now = time.time_ns()
    os.utime(file, ns=(now if used else os.getpid() * _SECOND, now))


def waiting_for(stat: os.stat_result) -> int | None:
    """The process that has brought a file which nobody has used since: its atime, in seconds, which
    are days of 1970. None where the file was used."""
    return pid if (pid := stat.st_atime_ns // _SECOND) <= _MAX_PID else None


def _is_alive(pid: int | None) -> bool:
    if pid is None:
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # of another user
    return True
