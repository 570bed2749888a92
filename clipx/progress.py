"""The progress of a long job on stderr: a bar on a terminal, a line every few seconds in a log."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Column

SECONDS_BETWEEN_LINES = 10
BAR_WIDTH = 20  # columns
UNKNOWN_TIME = "-:--:--"
NARROW_BAR_WIDTH = 8  # below 60 columns, where the count and the time need the place


def make_console(*, stderr: bool = False, **settings: Any) -> Console:
    """A console of stdout or stderr with colors and moves of the cursor on a terminal only. Left to
    itself, rich also writes them to a file where FORCE_COLOR is set, as notebooks do.

    settings: of `rich.console.Console`
    """
    stream = sys.stderr if stderr else sys.stdout
    is_terminal = stream.isatty()
    return Console(
        stderr=stderr,
        force_terminal=is_terminal,
        force_interactive=None if is_terminal else False,  # None: as TERM says
        force_jupyter=False,
        **settings,
    )


def seconds_left(done: int, total: int, seconds: float) -> timedelta | None:
    """How long the rest takes at the mean speed so far. None if nothing is done.

    done: things that took `seconds`; total: these and the rest
    """
    if done <= 0:
        return None
    return timedelta(seconds=int(seconds / done * (total - done)))


class ProgressBar:
    """Bar, count, time left and a title, in one line of a terminal of any width: where it is too
    narrow, the end of the title is cut. Without a terminal `update` does nothing, and the caller
    writes lines of its own.

    total: None if it is not known: the bar then moves without an end
    done: count at the start, for example of a run that is resumed; unit: shown before the count
    """

    def __init__(
        self,
        title: str,
        total: int | None,
        *,
        done: int = 0,
        unit: str = "",
        console: Console | None = None,
    ) -> None:
        console = console or make_console(stderr=True)
        self.is_shown = console.is_interactive
        self._first = done
        self._total = total
        self._start = time.monotonic()
        is_narrow = console.width < 60
        self._bar = Progress(
            BarColumn(bar_width=NARROW_BAR_WIDTH if is_narrow else BAR_WIDTH),
            TextColumn(
                unit + "{task.completed:,.0f}" + ("" if total is None else f"/{total:,.0f}")
            ),
            TextColumn("{task.fields[left]} left"),
            # The column that gets the rest of the line, whatever it contains.
            TextColumn(
                "{task.description}",
                markup=False,
                table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
            ),
            expand=True,
            console=console,
            disable=not self.is_shown,
        )
        self._task = self._bar.add_task(title, total=total, completed=done, left=UNKNOWN_TIME)

    def __enter__(self) -> ProgressBar:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def update(self, done: int, title: str | None = None) -> None:
        """done: in all, not since the last update; title: a new one, or None to keep the old"""
        left = None
        if self._total is not None:
            seconds = time.monotonic() - self._start
            left = seconds_left(done - self._first, self._total - self._first, seconds)
        shown = UNKNOWN_TIME if left is None else str(left)
        # Drawn at once where the title changes, ten times a second otherwise.
        is_new = title not in (None, self._bar.tasks[self._task].description)
        self._bar.update(self._task, completed=done, description=title, left=shown, refresh=is_new)


@contextmanager
def progress(title: str, total: int | None) -> Iterator[Callable[..., None]]:
    """Yields `advance(count=1)`, to be called when `count` of `total` things are done.

    total: None if it is not known
    """
    started = time.monotonic()
    last_line = started
    done = 0

    def write_line(now: float) -> None:
        rate = done / max(now - started, 1e-9)
        of_total = "" if total is None else f" of {total:,}"
        line = f"{title}: {done:,}{of_total}, {rate:,.0f}/s"
        if total is not None and 0 < done < total:
            line += f", {timedelta(seconds=round((total - done) / rate))} left"
        note(line)

    def advance(count: int = 1) -> None:
        nonlocal done, last_line
        done += count
        bar.update(done)
        now = time.monotonic()
        # The last line of a log always has the total.
        is_due = now - last_line >= SECONDS_BETWEEN_LINES or done == total
        if is_due and not bar.is_shown:
            last_line = now
            write_line(now)

    with ProgressBar(title, total) as bar:
        yield advance
    if total is None and not bar.is_shown:  # only now is it known that this was the last
        write_line(time.monotonic())


@contextmanager
def activity(title: str) -> Iterator[None]:
    """Show that something of unknown length is running: its seconds on a terminal, else a line at
    the start and every few seconds."""
    console = make_console(stderr=True)
    if console.is_interactive:
        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False))
        with Progress(*columns, TimeElapsedColumn(), console=console) as bar:
            task = bar.add_task(title, total=None)
            yield
            bar.update(task, total=1, completed=1)  # which stops the spinner and the clock
        return
    note(title)
    started = time.monotonic()
    ended = threading.Event()

    def write_lines() -> None:
        while not ended.wait(SECONDS_BETWEEN_LINES):
            note(f"{title}: {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=write_lines, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


Advance = Callable[[int], None]
"""Called with the number that is done since the last call."""
ShowProgress = Callable[[str, int | None], AbstractContextManager[Advance]]
"""`progress` or `silent`: (title, total) -> a context with its `Advance`."""


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """One line of valid UTF-8, since names of files may contain line breaks and any bytes."""
    # Python reads file names of other encodings as lone surrogates, which cannot be printed.
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def silent(title: str, total: int | None) -> AbstractContextManager[Callable[..., None]]:
    """As `progress`, but prints nothing: for all ranks but the first."""
    return nullcontext(lambda count=1: None)
