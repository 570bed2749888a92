"""What a person sees: a progress bar with the time left on a terminal, one plain line per log step
elsewhere."""

from __future__ import annotations

import contextlib
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Reporter:
    """Silent on all ranks but the first. Writes to stderr, so that stdout is free for results."""

    def __init__(self, *, total_steps: int, first_step: int, show: bool) -> None:
        self._console = Console(stderr=True, quiet=not show, highlight=False, soft_wrap=True)
        self._total, self._first, self._begin = total_steps, first_step, time.perf_counter()
        self._bar: Progress | None = None
        if show and self._console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=self._console)
            self._task = self._bar.add_task("training", total=total_steps, completed=first_step)
            self._bar.start()

    def say(self, text: str) -> None:
        # A terminal that has just been closed is an OSError; SIGHUP, which follows, stops the run.
        with contextlib.suppress(OSError):
            self._console.print(text, markup=False)

    def step(self, step: int) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=step)

    def log(self, record: dict[str, Any]) -> None:
        text = (
            f"loss {record['train/loss']:.4f}  scale {record['train/scale']:.2f}"
            f"{_told(record)}  "
            f"{_accuracy(record)}"
            f"gradient {record['train/grad_norm']:.3g}  lr {record['train/lr']:.2g}  "
            f"{record['train/samples_per_second']:.0f} samples/s  "
            f"data wait {record['data_wait_fraction']:.0%}  {record['memory_gib']:.1f} GiB"
        )
        if self._bar is not None:
            self._bar.update(self._task, description=text)
            return
        done = record["step"] - self._first
        left = (time.perf_counter() - self._begin) / done * (self._total - record["step"])
        self.say(f"step {record['step']}/{self._total}  {text}  {_clock(left)} left")

    def close(self) -> None:
        if self._bar is not None:
            with contextlib.suppress(OSError):
                self._bar.stop()


def _accuracy(record: dict[str, Any]) -> str:
    """Empty for a loss that logs none."""
    accuracy = record.get("train/image_to_text_accuracy")
    return "" if accuracy is None else f"accuracy {accuracy:.0%}  "


def _told(record: dict[str, Any]) -> str:
    """What is worth a word only where it is not 0."""
    counts = {
        "clamped": record["train/clamped_steps"],
        "skipped": record["skipped_steps"],
        "overflowed": record["overflowed_steps"],
    }
    told = [f"{count} {name}" for name, count in counts.items() if count]
    return f" ({', '.join(told)})" if told else ""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"
