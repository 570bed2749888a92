"""How fast training goes, and how much of the time it waits for data."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


class Meter:
    """Counts from the last `read` on. Time spent in checkpoints and evaluations is taken out by
    `pause`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._wait = self._paused = 0.0
        self._samples = 0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same items, with the time until each arrives counted as waiting for data."""
        iterator = iter(batches)
        while True:
            asked = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._wait += time.perf_counter() - asked
            yield item

    def add(self, samples: int) -> None:
        self._samples += samples

    def pause(self, seconds: float) -> None:
        self._paused += seconds

    def read(self) -> dict[str, float]:
        """samples_per_second over all ranks' samples added, data_wait_fraction in [0, 1]; starts
        afresh."""
        seconds = max(1e-9, time.perf_counter() - self._start - self._paused)
        record = {
            "train/samples_per_second": self._samples / seconds,
            "data_wait_fraction": min(1.0, self._wait / seconds),
        }
        self._reset()
        return record
