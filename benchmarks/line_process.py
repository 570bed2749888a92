"""A contestant of a benchmark: a process that answers each line of JSON by one."""

from __future__ import annotations

import json
import subprocess
from typing import Any


class LineProcess:
    """What it prints besides its answers is passed over."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """The next line that is JSON. Raises RuntimeError if the process has ended."""
        assert self._process.stdout is not None
        while line := self._process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended:\n{self._process.communicate()[1][-2000:]}")

    def stop(self) -> None:
        self._process.communicate()
