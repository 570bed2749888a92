"""The progress of a long job on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 10


class ProgressBar:
    """A bar on a terminal. Elsewhere `update` does nothing, and the caller writes lines of its own.

    done: count at the start, for example of a run that is resumed
    """

    def __init__(
        self, title: str, total: int, *, done: int = 0, console: Console | None = None
    ) -> None:
        self.is_shown = sys.stderr.isatty()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=console or Console(stderr=True),
            disable=not self.is_shown,
        )
        self._task = self._bar.add_task(title, total=total, completed=done)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, done: int, title: str | None = None) -> None:
        """done: in all, not since the last update"""
        self._bar.update(self._task, completed=done, description=title)


@contextmanager
def progress(title: str, total: int) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1)`, to be called when `count` of `total` things are done."""
    started = time.monotonic()
    last_line = started
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, last_line
        done += count
        bar.update(done)
        now = time.monotonic()
        # The last line of a log always has the total.
        is_due = now - last_line >= SECONDS_BETWEEN_LINES or done == total
        if is_due and not bar.is_shown:
            last_line = now
            rate = done / max(now - started, 1e-9)
            line = f"{title}: {done:,} of {total:,}, {rate:,.0f}/s"
            if 0 < done < total:
                line += f", {timedelta(seconds=round((total - done) / rate))} left"
            note(line)

    with ProgressBar(title, total) as bar:
        yield advance


Advance = Callable[[int], None]
"""Called with the number that is done since the last call."""
ShowProgress = Callable[[str, int], AbstractContextManager[Advance]]
"""`progress` or `silent`: (title, total) -> a context with its `Advance`."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """One line of valid UTF-8, since names of files may contain line breaks and any bytes."""
    # Python reads file names of other encodings as lone surrogates, which cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def silent(title: str, total: int) -> AbstractContextManager[Callable[..., None]]:
    """As `progress`, but prints nothing: for all ranks but the first."""
    return nullcontext(lambda count=1: None)
