"""A process that trains in bursts when it is asked to: clipx_step.py, or peer_step.py --serve."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field

from line_process import LineProcess  # type: ignore[import] beside this file


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
        self.process = LineProcess(self.name, self.command)

    def wait_until_warm(self) -> None:
        self.losses += self.process.answer()["losses"]

    def burst(self, steps: int) -> None:
        answer = self.process.ask(steps=steps)
        # The first step of a burst warms the caches that the other contestant has filled.
        self.seconds += answer["step_seconds"][1:]
        self.losses += answer["losses"]

    @property
    def median(self) -> float:
        """Seconds a step."""
        return statistics.median(self.seconds)

    def stop(self) -> None:
        self.process.stop()
