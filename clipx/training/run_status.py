"""status.json of a run folder: how far a run is and whether its process lives, for those who watch
it from outside."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

from clipx.distributed.runtime import Job
from clipx.files import write_whole

BEAT_SECONDS = 10.0
"""`updated` is never older than this while the process lives, however long a step takes."""
State = Literal["running", "stopped", "finished", "failed"]


class Status:
    """Held by rank 0. A thread keeps the file fresh between log lines.

    In it: pid, host, job and attempt (of the scheduler, or null and 0); started and updated, in
    unix seconds; step, total_steps, samples_seen; loss and samples_per_second of the newest log
    line; checkpoint, the newest step that can be resumed from; state and reason.
    """

    def __init__(self, path: Path, job: Job, *, total_steps: int) -> None:
        """Starts from what the file says of an earlier start."""
        self._path = path
        now, earlier = time.time(), read(path)
        self._record: dict[str, Any] = {
            "pid": os.getpid(),
            "host": job.host,
            "job": job.id,
            "attempt": job.attempt,
            "started": now,
            "updated": now,
            "step": earlier.get("step", 0),
            "total_steps": total_steps,
            "samples_seen": earlier.get("samples_seen", 0),
            "loss": earlier.get("loss"),
            "samples_per_second": earlier.get("samples_per_second"),
            "checkpoint": earlier.get("checkpoint"),
            "state": "running",
            "reason": None,
        }
        self._lock, self._ended = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="status")
        self.update()
        self._thread.start()

    def update(self, **found: Any) -> None:
        """A disk that is full leaves the content as it was: checkpoints are where a run says so.
        The file's time changes all the same, by which other hosts know that this process lives."""
        with self._lock:
            self._record |= found | {"updated": time.time()}
            try:
                write_whole(self._path, json.dumps(self._record))
            except OSError:
                with contextlib.suppress(OSError):  # the folder may be gone or read-only
                    os.utime(self._path)

    def end(self, state: State, reason: str | None = None) -> None:
        self._ended.set()
        self._thread.join()
        self.update(state=state, reason=reason)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.update()


def read(path: Path) -> dict[str, Any]:
    """Empty where there is no status, or none that can be read."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
