"""Log files of one JSON object per line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clipx.files import write_whole


class JsonLines:
    """Appends to a file line by line, so that a killed run loses nothing that it logged.

    On a full disk lines are kept for the next call, so that training continues; `fault` is the
    error.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting = b""  # not written yet
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.fault: str | None = None

    def log(self, record: dict[str, Any]) -> None:
        self._waiting += (json.dumps(record) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            self.fault = f"{self._path.name} waits to be written: {error}"

    def _write(self) -> None:
        # One call may write a part of the bytes only, as on a disk that is almost full.
        while self._waiting:
            self._waiting = self._waiting[os.write(self._file, self._waiting) :]
        self.fault = None

    def close(self) -> None:
        """Raises OSError if lines are lost."""
        try:
            self._write()
        finally:
            os.close(self._file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file. Lines that are no JSON object are skipped, since a kill may have cut
    the last one short. Raises OSError."""
    return [record for _, record in _records(path)]


def keep_until(path: Path, step: int) -> None:
    """Remove the records after `step`, since a resumed run takes these steps again. Records without
    a step are not of the run and stay. Raises OSError."""
    if not path.exists():
        return
    kept = []
    for line, record in _records(path):
        if (step_of(record) or 0) <= step:
            kept.append(line + "\n")
    write_whole(path, "".join(kept))


def step_of(record: dict[str, Any]) -> int | None:
    """The step of a log line; None for a line that another program wrote."""
    step = record.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line that is a JSON object, and the object."""
    if not path.exists():
        return
    # Not splitlines, which also splits at U+2028 and the like inside of a text.
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").split("\n"):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict):
            yield line, record
