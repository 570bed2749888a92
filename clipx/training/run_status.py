"""status.json of a run folder: how far a run is and whether its process is alive, for other
programs."""

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


class RunStatus:
    """Owned by rank 0. A thread rewrites the file between log lines.

    Entries: pid, host, job and attempt (of the scheduler, or null and 0); started and updated, in
    unix seconds; step, total_steps, samples_seen; loss and samples_per_second of the newest log
    line; checkpoint, the newest step that can be resumed from; state and reason.
    """

    def __init__(self, path: Path, job: Job, *, total_steps: int) -> None:
        """Keeps the numbers of an earlier start until there are new ones."""
        self._path = path
        now = time.time()
        earlier = read_status(path)
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
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True, name="status")
        self.update()
        self._thread.start()

    def update(self, **entries: Any) -> None:
        """Change entries and write the file."""
        with self._lock:
            # The thread writes too, so both under the lock.
            self._record |= entries | {"updated": time.time()}
            try:
                write_whole(self._path, json.dumps(self._record))
            except OSError:
                # A full disk is reported by the checkpoints. The file's time still changes, by
                # which other hosts see that this process lives.
                with contextlib.suppress(OSError):  # the folder may be gone or read-only
                    os.utime(self._path)

    def end(self, state: State, reason: str | None = None) -> None:
        self._ended.set()
        self._thread.join()
        self.update(state=state, reason=reason)

    def _beat(self) -> None:
        while not self._ended.wait(BEAT_SECONDS):
            self.update()


def read_status(path: Path) -> dict[str, Any]:
    """The entries of a status or lock file; empty if there is none that can be read."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}
