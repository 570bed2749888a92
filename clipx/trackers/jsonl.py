"""One JSON object a line. Always on; what every other tool reads."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends to a file, line by line, so that a killed run has lost nothing it logged.

    On a full disk lines wait for the next one, so that training goes on; `fault` says why they do.
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
        """Raises OSError where lines are lost."""
        try:
            self._write()
        finally:
            os.close(self._file)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The records of a file; a last line that a kill cut short is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            records.append(json.loads(line))
        except ValueError:
            continue  # only the line under the pen at the moment of a kill can be broken
    return records


def keep_until(path: Path, step: int) -> None:
    """Drop the records after `step`: a resumed run does those steps again."""
    records = [r for r in read_lines(path) if r.get("step", 0) <= step]
    if path.exists():
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(
            "".join(json.dumps(record) + "\n" for record in records), encoding="utf-8"
        )
        temporary.replace(path)
