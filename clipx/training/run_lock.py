"""One run folder has one writer: the file `lock`, held by rank 0 for the life of its process.

The kernel's lock decides on one host, and on file systems that share locks. Across hosts it may be
missing (a process that runs holds none) or left over (its host died), so there the folder is
watched: a process that runs rewrites status.json every BEAT_SECONDS. Only changes count, and only
this host's monotonic clock: the clocks of two hosts may differ by any amount.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from clipx import files
from clipx.distributed.runtime import Job
from clipx.training import run_status as status
from clipx.types import UserError

SILENT_SECONDS = 3 * status.BEAT_SECONDS
"""A holder on another host whose status stays as it is for so long is dead."""
DYING_SECONDS = 5.0
"""A killed process keeps its lock until the kernel has taken it apart."""


class RunLock:
    """`message` says whose lock was taken over, where that was so. Raises UserError where a living
    process has the folder."""

    def __init__(self, folder: Path, job: Job) -> None:
        self._path = folder / "lock"
        holder = status.read(self._path)
        # An empty lock is one that another process has just taken and not yet written.
        elsewhere = self._path.exists() and holder.get("host") != job.host
        if elsewhere and not _is_earlier_start(holder, job) and beats(folder):
            raise UserError(_refusal(folder, status.read(self._path)))
        descriptor = self._claim(0.0 if elsewhere else DYING_SECONDS)
        if descriptor is None and elsewhere:
            self._path.unlink(missing_ok=True)  # its server keeps the lock of a host that is gone
            descriptor = self._claim(0.0)
        if descriptor is None:
            raise UserError(_refusal(folder, status.read(self._path)))
        self._descriptor = descriptor
        content = {"host": job.host, "pid": os.getpid(), "job": job.id, "attempt": job.attempt}
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
        self.message = f"taken over from {_named(holder)}, which is gone" if holder else None

    def _claim(self, patience: float) -> int | None:
        deadline = time.monotonic() + patience
        while True:
            try:
                return files.claim(self._path)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.1)

    def release(self) -> None:
        files.release(self._path, self._descriptor)


def beats(folder: Path) -> bool:
    """Whether the process of another host that has the lock is alive: whether the lock or the
    status changes within SILENT_SECONDS.

    A status that says how a run has ended proves nothing: it may be of an earlier start, even with
    the host and the number of the process that has just taken the lock, as in containers.
    """
    first = _signs(folder)
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(0.2, SILENT_SECONDS / 10))
        now = _signs(folder)
        if now[0] is None:
            return False  # released
        if any(new not in (old, None) for old, new in zip(first, now, strict=True)):
            return True
    return False


def _signs(folder: Path) -> list[tuple[int, bytes] | None]:
    """(time of the last change by the file server's clock, content) of the lock and of the status;
    None for a file that cannot be read."""
    signs: list[tuple[int, bytes] | None] = []
    for name in ("lock", "status.json"):
        try:
            signs.append(((folder / name).stat().st_mtime_ns, (folder / name).read_bytes()))
        except OSError:
            signs.append(None)
    return signs


def _is_earlier_start(holder: dict[str, Any], job: Job) -> bool:
    """The scheduler has started this very job again, so it has ended it before."""
    attempt = holder.get("attempt")
    same_job = job.id is not None and holder.get("job") == job.id
    return same_job and isinstance(attempt, int) and attempt < job.attempt


def _named(holder: dict[str, Any]) -> str:
    of_job = f" of job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{of_job}"


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    return (
        f"run_dir {folder} is in use by {_named(holder)}; wait for it, stop it (SIGTERM makes it "
        "write a checkpoint first), or choose another run_dir="
    )
