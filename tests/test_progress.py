"""Progress of long jobs: a bar on a terminal, lines in a log, and names of files in one line."""

from __future__ import annotations

import io
import os

import pytest

from clipx import progress as module
from clipx.progress import ProgressBar, printable, progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, to be moved by tests."""
    now = [0.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_log_has_a_line_now_and_then_and_the_total(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("reading", 2000) as advance:
        for _ in range(20):
            clock[0] += 6
            advance(100)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "reading: 200 of 2,000, 17/s, 0:01:48 left"
    assert lines[-1] == "reading: 2,000 of 2,000, 17/s"
    assert len(lines) == 10  # every second time, since 6 s are too early for a line


def test_a_terminal_has_a_bar_and_no_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with progress("reading", 5) as advance:
        for _ in range(5):
            advance()
    assert "reading" in terminal.getvalue()
    assert "5/5" in terminal.getvalue()
    assert "of 5" not in terminal.getvalue()


def test_a_bar_continues_and_changes_its_title(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    with ProgressBar("training", 100, done=40) as bar:
        bar.update(41, title="loss 2.5")
    assert "41/100" in terminal.getvalue()
    assert "loss 2.5" in terminal.getvalue()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain \xe9", "plain \xe9"),
        ("a\nb", r"a\nb"),
        ("\x1b[2J", r"\x1b[2J"),
        (os.fsdecode(b"caf\xe9.tar"), r"caf\udce9.tar"),
    ],
)
def test_names_are_printed_in_one_line(text: str, shown: str) -> None:
    assert printable(text) == shown
