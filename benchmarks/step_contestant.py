"""A process that trains in bursts when it is asked to: clipx_step.py, or peer_step.py --serve."""

from __future__ import annotations

import json
import statistics
import subprocess
from dataclasses import dataclass, field
from typing import Any


@dataclass(eq=False)
class Contestant:
    """tokens: None for as many as the longest caption of the batch has"""

    name: str
    command: list[str]
    tokens: int | None = None
    by_flags: bool = True
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def start(self) -> None:
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_until_warm(self) -> None:
        self.losses += self._answer()["losses"]

    def burst(self, steps: int) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"steps": steps}) + "\n")
        self.process.stdin.flush()
        answer = self._answer()
        # The first step of a burst warms the caches that the other contestant has filled.
        self.seconds += answer["step_seconds"][1:]
        self.losses += answer["losses"]

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    def stop(self) -> None:
        self.process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        while line := self.process.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.name} ended:\n{self.process.communicate()[1][-2000:]}")
