"""How far a long job is: a bar on a terminal, a line now and then in a log."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """In one line, and in UTF-8: names of files may have line breaks or be in another encoding."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


class Advance(Protocol):
    def __call__(self, count: int = 1) -> None:
        """So many more are done."""
        ...


@contextmanager
def progress(title: str, total: int) -> Iterator[Advance]:
    """What to call as `total` things get done."""
    if sys.stderr.isatty():
        columns = (TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(title, total=total)
            yield lambda count=1: bar.advance(task, count)
    else:
        yield _line_writer(title, total)


def _line_writer(title: str, total: int) -> Advance:
    started = last = time.monotonic()
    done = 0

    def advance(count: int = 1) -> None:
        nonlocal done, last
        done += count
        now = time.monotonic()
        if now - last >= _SECONDS_BETWEEN_LINES or done == total:
            last = now
            rate = done / max(now - started, 1e-9)
            note(f"{title}: {done:,} of {total:,}, {rate:,.0f}/s")

    return advance
