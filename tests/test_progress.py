"""Progress of long jobs: a bar on a terminal, lines in a log, and names of files in one line."""

from __future__ import annotations

import os
import time

import pytest
from screens import as_terminal, rendered

from clipx import progress as module
from clipx.progress import ProgressBar, activity, make_console, printable, progress


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


@pytest.mark.parametrize("width", [40, 80, 120, 200])
def test_a_terminal_has_a_bar_and_no_lines(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    terminal = as_terminal(monkeypatch, width)
    with progress("reading the samples of all shards, once", 5000) as advance:
        for _ in range(4):
            clock[0] += 6
            advance(1000)
    bar, *others = rendered(terminal.getvalue(), width)
    assert others == []
    # The title is cut where it has no place; count and time left are not.
    assert " 4,000/5,000 0:00:06 left read" in bar
    assert ("all shards, once" in bar) == (width >= 120)


def test_a_bar_of_unknown_length_has_the_count(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = as_terminal(monkeypatch, 80)
    with progress("images", None) as advance:
        clock[0] += 6
        advance(1000)
    bar, *others = rendered(terminal.getvalue(), 80)
    assert others == []
    assert " 1,000 -:--:-- left images" in bar


def test_a_bar_continues_and_changes_its_title(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = as_terminal(monkeypatch, 80)
    with ProgressBar("training", 100, done=40, unit="step ") as bar:
        clock[0] += 2
        bar.update(41, title="loss 2.5")
    # 59 steps of 2 s: the 40 of an earlier start took no time of this one.
    assert rendered(terminal.getvalue(), 80)[0].endswith("step 41/100 0:01:58 left loss 2.5")


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"])
def test_a_file_gets_no_control_codes_whatever_is_set(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], variable: str
) -> None:
    monkeypatch.setenv(variable, "1")
    with progress("reading", 2) as advance:
        advance(2)
    make_console().print("[bold]total[/bold] 2")
    output = capsys.readouterr()
    assert output.err.startswith("reading: 2 of 2, ")
    assert output.out == "total 2\n"
    assert "\x1b" not in output.err


def test_a_terminal_that_cannot_redraw_gets_lines(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    terminal = as_terminal(monkeypatch, 80)
    monkeypatch.setenv("TERM", "dumb")
    with progress("reading", 2) as advance:
        advance(2)
    assert "\x1b" not in terminal.getvalue()
    assert "reading: 2 of 2, " in terminal.getvalue()


def test_an_activity_of_unknown_length_writes_a_line_now_and_then(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "SECONDS_BETWEEN_LINES", 0.01)
    lines: list[str] = []
    with activity("installing"):
        while len(lines) < 3:
            lines += capsys.readouterr().err.splitlines()
            time.sleep(0.01)
    assert lines[:3] == ["installing", "installing: 0 s", "installing: 0 s"]


def test_an_activity_on_a_terminal_has_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = as_terminal(monkeypatch, 80)
    with activity("installing"):
        pass
    (line,) = rendered(terminal.getvalue(), 80)
    assert line.strip() == "installing 0:00:00"


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
