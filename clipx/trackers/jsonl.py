"""Log files of one JSON object per line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from clipx.files import write_whole


class JsonLines:
    """Appends to a file line by line, so that a killed run loses nothing that it logged.

    On a full disk lines are kept for the next call, so that training goes on; `fault` is the error.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._waiting = path, b""
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self.fault: str | None = None

    def log(self, record: dict[str, Any]) -> None:
        self._waiting += (json.dumps(record) + "\n").encode()
        try:
            self._write()
        except OSError as error:
            self.fault = f"{self._path.name} waits to be written: {error}"

    def _write(self) -> None:
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
    records = (_record(line) for line in _lines(path))
    return [record for record in records if record is not None]


def keep_until(path: Path, step: int) -> None:
    """Remove the records after `step`, since a resumed run takes these steps again. Records without
    a step are not of the run and stay. Raises OSError."""
    if not path.exists():
        return
    kept = []
    for line in _lines(path):
        record = _record(line)
        if record is not None and (step_of(record) or 0) <= step:
            kept.append(line + "\n")
    write_whole(path, "".join(kept))


def step_of(record: dict[str, Any]) -> int | None:
    """The step of a log line; None for a line that another program wrote."""
    step = record.get("step")
    return step if isinstance(step, int) and not isinstance(step, bool) else None


def _lines(path: Path) -> list[str]:
    if not path.exists():
        return []
    return path.read_text(encoding="utf-8", errors="surrogateescape").split("\n")


def _record(line: str) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) else None
