"""One run folder has one writer: the file `lock`, held by rank 0 for the life of its process.

The kernel's lock decides on one host, and on file systems that share locks. Across hosts it may be
missing (a process that runs holds none) or left over (its host died). There the folder is watched
instead, since a process that runs rewrites status.json every BEAT_SECONDS. Only changes count, by
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
from clipx.training.run_status import BEAT_SECONDS, read_status
from clipx.types import UserError

SILENT_SECONDS = 3 * BEAT_SECONDS
"""A holder on another host whose status does not change for so long is dead."""
DYING_SECONDS = 5.0
"""A killed process keeps its lock until the kernel has removed it."""


class RunLock:
    """message: whose lock was taken over; None if there was none

    Raises UserError if a living process has the folder.
    """

    def __init__(self, folder: Path, job: Job) -> None:
        self._path = folder / "lock"
        holder = read_status(self._path)
        # A lock without a host was taken by another process that has not written it yet.
        is_elsewhere = self._path.exists() and holder.get("host") != job.host
        # The scheduler has ended earlier starts of this very job, so they need not be watched.
        attempt = holder.get("attempt")
        is_same_job = job.id is not None and holder.get("job") == job.id
        is_earlier_start = is_same_job and isinstance(attempt, int) and attempt < job.attempt
        if is_elsewhere and not is_earlier_start and is_alive_elsewhere(folder):
            raise UserError(_refusal(folder, read_status(self._path)))
        descriptor = self._claim(0.0 if is_elsewhere else DYING_SECONDS)
        if descriptor is None and is_elsewhere:
            # The file server still keeps the lock of a host that is gone.
            self._path.unlink(missing_ok=True)
            descriptor = self._claim(0.0)
        if descriptor is None:
            raise UserError(_refusal(folder, read_status(self._path)))
        self._descriptor = descriptor
        content = {"host": job.host, "pid": os.getpid(), "job": job.id, "attempt": job.attempt}
        os.pwrite(descriptor, json.dumps(content).encode(), 0)
        self.message = f"taken over from {_describe(holder)}, which is gone" if holder else None

    def _claim(self, patience_seconds: float) -> int | None:
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                return files.claim(self._path)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    return None
                time.sleep(0.1)

    def release(self) -> None:
        files.release(self._path, self._descriptor)


def is_alive_elsewhere(folder: Path) -> bool:
    """Whether the process on another host that holds the lock is alive: whether the lock or the
    status changes within SILENT_SECONDS.

    A status with the end of a run proves nothing. It may be of an earlier start, even with the host
    and the process number of the one that has just taken the lock, as in containers.
    """
    first = _versions(folder)
    deadline = time.monotonic() + SILENT_SECONDS
    while time.monotonic() < deadline:
        time.sleep(min(0.2, SILENT_SECONDS / 10))
        now = _versions(folder)
        if now["lock"] is None:
            return False  # released
        if any(now[name] not in (first[name], None) for name in first):
            return True
    return False


def _versions(folder: Path) -> dict[str, tuple[int, bytes] | None]:
    """(time of the last change by the file server's clock, content) of lock and status; None for a
    file that cannot be read."""
    versions: dict[str, tuple[int, bytes] | None] = {}
    for name in ("lock", "status.json"):
        try:
            versions[name] = ((folder / name).stat().st_mtime_ns, (folder / name).read_bytes())
        except OSError:
            versions[name] = None
    return versions


def _describe(holder: dict[str, Any]) -> str:
    of_job = f" of job {holder['job']}" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{of_job}"


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    return (
        f"run_dir {folder} is in use by {_describe(holder)}; wait for it, stop it (SIGTERM makes "
        "it write a checkpoint first), or choose another run_dir="
    )
