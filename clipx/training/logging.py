"""What a run writes while it trains: log files, messages and progress for a person, and speed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from clipx.data.sample import BadSample
from clipx.progress import ProgressBar, make_console, seconds_left
from clipx.trackers.jsonl import JsonLines, keep_until, read_lines, step_of
from clipx.trackers.tensorboard import TensorBoard
from clipx.training.collapse import alarms
from clipx.types import Tracker

T = TypeVar("T")


class LogFiles:
    """The log files of a run folder, written by rank 0."""

    def __init__(self, folder: Path, step: int, *, tensorboard: bool) -> None:
        """Removes lines after `step`, since a resumed run takes these steps again."""
        # Before the files are opened to append.
        for name in ("metrics", "results", "quarantine", "nonfinite"):
            keep_until(folder / f"{name}.jsonl", step)
        results = folder / "results.jsonl"
        # A line that another program damaged has no step.
        self.evaluated_steps = {step_of(record) for record in read_lines(results)} - {None}
        self._metrics = JsonLines(folder / "metrics.jsonl")
        self._results = JsonLines(results)
        self._quarantine = JsonLines(folder / "quarantine.jsonl")
        self._tensorboard: Tracker | None = None
        if tensorboard:
            self._tensorboard = TensorBoard(folder / "tensorboard", purge_step=step)

    def log(self, record: dict[str, Any], bad: list[BadSample]) -> None:
        """One line of metrics, and one for each bad sample since the last call."""
        self._metrics.log(record)
        if self._tensorboard is not None:
            self._tensorboard.log(record)
        for sample in bad:
            self._quarantine.log({"step": record["step"], **sample.record()})

    def log_results(self, record: dict[str, Any]) -> None:
        self._results.log(record)
        self.evaluated_steps.add(record["step"])
        if self._tensorboard is not None:
            self._tensorboard.log(record)

    @property
    def fault(self) -> str | None:
        """Why lines could not be written yet; None if all are written."""
        return self._metrics.fault or self._results.fault or self._quarantine.fault

    def close(self) -> None:
        if self._tensorboard is not None:
            self._tensorboard.close()
        for file in (self._metrics, self._results, self._quarantine):
            file.close()


def append_bad_samples(folder: Path, step: int, bad: list[BadSample]) -> None:
    """Write the bad samples of a rank that ends before the next log step."""
    file = JsonLines(folder / "quarantine.jsonl")
    for sample in bad:
        file.log({"step": step, **sample.record()})
    file.close()


class Reporter:
    """Messages and progress on stderr, so that stdout is free for results. On a terminal a bar
    stays in the last line and all else scrolls above it. Silent on all ranks but the first."""

    def __init__(self, *, total_steps: int, first_step: int, show: bool) -> None:
        """first_step: steps that are done already"""
        self._console = make_console(stderr=True, quiet=not show, highlight=False)
        self._total = total_steps
        self._first = first_step
        self._start = time.perf_counter()
        self._newest = ""  # figures of the last log step, beside the bar
        self._bar: ProgressBar | None = None
        if show and self._console.is_interactive and first_step < total_steps:
            self._bar = ProgressBar(
                "", total_steps, done=first_step, unit="step ", console=self._console
            ).__enter__()

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.perf_counter() - self._start

    def say(self, text: str) -> None:
        # A terminal gets lines that end between words. A log keeps each message in one line.
        soft_wrap = not self._console.is_interactive
        # Writing to a terminal that was closed raises OSError. The SIGHUP that follows stops the
        # run with a checkpoint, which must not be lost to a message.
        with contextlib.suppress(OSError):
            self._console.print(text, markup=False, emoji=False, soft_wrap=soft_wrap)

    def step(self, step: int, activity: str | None = None) -> None:
        """activity: shown instead of the loss, such as an evaluation, until the next call"""
        if self._bar is not None:
            self._bar.update(step, activity or self._newest)

    def log(self, record: dict[str, Any]) -> None:
        step = record["step"]
        parts = _log_parts(record)
        if self._bar is None:
            # Over the whole start, evaluations and saves included, as they will come again.
            left = seconds_left(step - self._first, self._total - self._first, self.seconds)
            line = [f"step {step}/{self._total}", *parts.values(), *alarms(record), f"{left} left"]
            self.say("  ".join(line))
            return
        self._newest = f"{parts['loss']}  {parts['speed']}"
        self.step(step)
        # The total is in the bar. The steps of all lines are equally wide, so that columns align.
        first = f"step {step:{len(str(self._total))}}"
        self.say(fit_parts({"step": first, **parts}, self._console.width))
        for alarm in alarms(record):
            self.say(alarm)

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.__exit__()


LESS_IMPORTANT = ("memory", "data wait", "scale", "lr", "gradient", "accuracy")
"""What a narrow terminal does not show, in this order. metrics.jsonl has it all."""


def fit_parts(parts: dict[str, str], width: int) -> str:
    """Join the parts of a log line, without the least important ones where they do not fit.

    width: columns of the terminal
    """
    kept = dict(parts)
    for name in LESS_IMPORTANT:
        if len("  ".join(kept.values())) <= width:
            break
        kept.pop(name, None)
    return "  ".join(kept.values())


def _log_parts(record: dict[str, Any]) -> dict[str, str]:
    """The parts of a log line by name, in their order."""
    parts = {"loss": f"loss {record['train/loss']:.4f}"}
    # Not every objective has a temperature, nor every loss an accuracy.
    if "train/scale" in record:
        parts["scale"] = f"scale {record['train/scale']:.2f}"
    unusual = {
        "clamped": record["train/clamped_steps"],
        "skipped": record["skipped_steps"],
        "overflowed": record["overflowed_steps"],
    }
    counts = [f"{count} {name}" for name, count in unusual.items() if count]
    if counts:
        parts["unusual"] = f"({', '.join(counts)})"
    if "train/image_to_text_accuracy" in record:
        parts["accuracy"] = f"accuracy {record['train/image_to_text_accuracy']:.0%}"
    parts["gradient"] = f"gradient {record['train/grad_norm']:.3g}"
    parts["lr"] = f"lr {record['train/lr']:.2g}"
    parts["speed"] = f"{record['train/samples_per_second']:.0f} samples/s"
    parts["data wait"] = f"data wait {record['data_wait_fraction']:.0%}"
    parts["memory"] = f"{record['memory_gib']:.1f} GiB"
    return parts


class Throughput:
    """Samples per second and the share of time spent waiting for data, since the last `read`. Time
    in checkpoints and evaluations is not counted, by `pause`."""

    def __init__(self) -> None:
        self._reset()

    def _reset(self) -> None:
        self._start = time.perf_counter()
        self._wait_seconds = 0.0
        self._paused_seconds = 0.0
        self._num_samples = 0

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """The same items. The time until each arrives counts as waiting for data."""
        iterator = iter(batches)
        while True:
            wait_start = time.perf_counter()
            try:
                item = next(iterator)
            except StopIteration:
                return
            self._wait_seconds += time.perf_counter() - wait_start
            yield item

    def add(self, num_samples: int) -> None:
        self._num_samples += num_samples

    def pause(self, seconds: float) -> None:
        self._paused_seconds += seconds

    def read(self) -> dict[str, float]:
        """train/samples_per_second of all samples added, data_wait_fraction in [0, 1]. Starts a new
        interval."""
        seconds = max(1e-9, time.perf_counter() - self._start - self._paused_seconds)
        record = {
            "train/samples_per_second": self._num_samples / seconds,
            "data_wait_fraction": min(1.0, self._wait_seconds / seconds),
        }
        self._reset()
        return record
