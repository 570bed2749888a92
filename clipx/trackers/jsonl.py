"""One JSON object a line. Always on; what every other tool reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class JsonLines:
    """Appends to a file, line by line, so that a killed run has lost nothing it logged."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def log(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()


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
