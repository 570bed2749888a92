"""The lines that a run logs, which go back with it where it goes back to a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.data.sample import BadSample
from clipx.trackers.jsonl import JsonLines, keep_until, read_lines, step_of
from clipx.trackers.tensorboard import TensorBoard
from clipx.types import Tracker


def append_bad(folder: Path, step: int, bad: list[BadSample]) -> None:
    """What a rank that must stop has met since the last log step, which it reaches no more."""
    file = JsonLines(folder / "quarantine.jsonl")
    for one in bad:
        file.log({"step": step, **one.record()})
    file.close()


class Logs:
    """The files of rank 0."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        """Cut back to `step`, from where training goes on."""
        paths = [
            folder / f"{name}.jsonl" for name in ("metrics", "results", "quarantine", "nonfinite")
        ]
        for path in paths:
            keep_until(path, step)
        steps = (step_of(record) for record in read_lines(paths[1]))
        self.evaluated = {step for step in steps if step is not None}
        self._metrics, self._results, self._quarantine = (JsonLines(path) for path in paths[:3])
        self._trackers: list[Tracker] = [self._metrics]
        if tensorboard:
            self._trackers.append(TensorBoard(folder / "tensorboard", purge_step=step))

    def log(self, record: dict[str, Any], bad: list[BadSample]) -> None:
        for tracker in self._trackers:
            tracker.log(record)
        for one in bad:
            self._quarantine.log({"step": record["step"], **one.record()})

    def results(self, record: dict[str, Any]) -> None:
        self._results.log(record)
        self.evaluated.add(record["step"])
        for tracker in self._trackers[1:]:
            tracker.log(record)

    @property
    def fault(self) -> str | None:
        """Why lines wait to be written, where they do."""
        files = (self._metrics, self._results, self._quarantine)
        return next((file.fault for file in files if file.fault), None)

    def close(self) -> None:
        for tracker in (*self._trackers, self._results, self._quarantine):
            tracker.close()
