"""Room in the folder of a cache: who holds how much of it, and who goes first."""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass
from pathlib import Path

from clipx.data.file_locks import locked, remove_unclaimed

_OURS = re.compile(r"(part-)?[0-9a-f]{20}-")
_AHEAD_NS = 3600 * 10**9  # what was brought ahead longer ago is no longer waited for


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
        for entry in victims:
            if excess <= 0:
                break
            entry.path.unlink(missing_ok=True)
            excess -= entry.size
        os.ftruncate(writer, size)
        return True


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
                ahead = stat.st_atime_ns == 0 and now - stat.st_mtime_ns < _AHEAD_NS
                whole.append(_Entry(path, stat.st_size, stat.st_mtime_ns, ahead))
            elif not remove_unclaimed(path):
                parts += stat.st_size
        except FileNotFoundError:
            continue  # renamed or given up by its owner at this moment
    return parts, whole


def touch(file: int | Path, *, used: bool = True) -> None:
    """Marks a whole file as used now, or as brought ahead now. Not by the file system's own
    clock, which stands still for milliseconds."""
    now = time.time_ns()
    os.utime(file, ns=(now if used else 0, now))
