"""The progress of a run below a notebook's cell: a bar, the newest log lines, messages."""

from __future__ import annotations

import sys
import time
from collections import deque
from html import escape
from typing import Any, Protocol

from clipx.progress import seconds_left

ROWS_SHOWN = 12
MESSAGES_SHOWN = 12
SECONDS_BETWEEN_UPDATES = 0.5
"""Each update is sent to the browser, and a step may take milliseconds."""
COLUMNS = {
    "step": "step",
    "train/loss": "loss",
    "train/scale": "scale",
    "train/image_to_text_accuracy": "accuracy",
    "train/grad_norm": "gradient",
    "train/lr": "learning rate",
    "train/samples_per_second": "samples/s",
    "data_wait_fraction": "data wait",
    "memory_gib": "GiB",
}
SHARES = ("train/image_to_text_accuracy", "data_wait_fraction")


class Display(Protocol):
    """`IPython.display.display` and its handle."""

    def __call__(self, data: Any, *, display_id: bool, raw: bool) -> Any: ...


def notebook_display() -> Display | None:
    """The function that shows output in a notebook; None in a terminal or a script."""
    # A notebook has imported IPython long ago, and clipx does not need it.
    ipython = sys.modules.get("IPython")
    if ipython is None:
        return None
    shell = ipython.get_ipython()
    # In a terminal IPython has a shell without a kernel.
    if getattr(shell, "kernel", None) is None:
        return None
    from importlib import import_module

    return import_module("IPython.display").display


class NotebookTable:
    """A Report that redraws one output of a cell. The last lines stay when the run ends."""

    def __init__(self, display: Display, *, total_steps: int, first_step: int) -> None:
        self._total = total_steps
        self._first = first_step
        self._step = first_step
        self._activity: str | None = None
        self._rows: deque[dict[str, Any]] = deque(maxlen=ROWS_SHOWN)
        self._messages: deque[str] = deque(maxlen=MESSAGES_SHOWN)
        self._start = time.monotonic()
        self._drawn = self._start
        self._handle = display(self._bundle(), display_id=True, raw=True)

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._start

    def say(self, text: str) -> None:
        self._messages.append(text)
        self._draw()

    def step(self, step: int, activity: str | None = None) -> None:
        self._step = step
        self._activity = activity
        if time.monotonic() - self._drawn >= SECONDS_BETWEEN_UPDATES:
            self._draw()

    def log(self, record: dict[str, Any]) -> None:
        self._step = record["step"]
        self._rows.append(record)
        if time.monotonic() - self._drawn >= SECONDS_BETWEEN_UPDATES:
            self._draw()

    def close(self) -> None:
        self._draw()

    def _draw(self) -> None:
        self._drawn = time.monotonic()
        self._handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        """The same content for a browser, and for programs that show text alone."""
        return {"text/html": self.html(), "text/plain": self.text()}

    def _headline(self) -> str:
        line = f"step {self._step:,} of {self._total:,}"
        # Over the whole start, evaluations and saves included, as they will come again.
        left = seconds_left(self._step - self._first, self._total - self._first, self.seconds)
        if left is not None and self._step < self._total:
            line += f", {left} left"
        if self._activity is not None:
            line += f", {self._activity}"
        return line

    def _columns(self) -> dict[str, str]:
        """Those that the run logs: not every objective has a temperature or an accuracy."""
        newest = self._rows[-1] if self._rows else {}
        return {name: title for name, title in COLUMNS.items() if name in newest}

    def text(self) -> str:
        columns = self._columns()
        lines = [self._headline()]
        for row in self._rows:
            cells = [f"{title} {_cell(name, row.get(name))}" for name, title in columns.items()]
            lines.append("  ".join(cells))
        return "\n".join([*lines, *self._messages])

    def html(self) -> str:
        columns = self._columns()
        parts = [
            f"<div><progress value={self._step} max={self._total} style='width: 20em'></progress> "
            f"{escape(self._headline())}</div>"
        ]
        if columns:
            heads = "".join(f"<th>{escape(title)}</th>" for title in columns.values())
            parts.append(f"<table><tr>{heads}</tr>")
            for row in self._rows:
                cells = "".join(f"<td>{_cell(name, row.get(name))}</td>" for name in columns)
                parts.append(f"<tr>{cells}</tr>")
            parts.append("</table>")
        for message in self._messages:
            parts.append(f"<div style='white-space: pre-wrap'>{escape(message)}</div>")
        return "\n".join(parts)


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, int | float):
        return ""
    if name in SHARES:
        return f"{value:.0%}"
    if isinstance(value, int):
        return f"{value:,}"
    if name == "train/samples_per_second":
        return f"{value:,.0f}"
    return f"{value:.4g}"
