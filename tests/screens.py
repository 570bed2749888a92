"""What a person sees: the output of a program on a terminal of a given width."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyte
import pytest
from tiny_runs import clipx_command


class Terminal(io.StringIO):
    """A stderr that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


def as_terminal(monkeypatch: pytest.MonkeyPatch, width: int) -> Terminal:
    """Make stderr of this process a terminal of `width` columns."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("LINES", "50")
    return terminal


def rendered(output: str | bytes, width: int) -> list[str]:
    """The lines of the screen after `output`, from the first to the last that is not empty."""
    if isinstance(output, bytes):
        text = output.decode(errors="ignore")  # a piece may end within a character
    else:
        text = output.replace("\n", "\r\n")
    screen = pyte.Screen(width, 200)
    pyte.Stream(screen).feed(text)
    lines = [line.rstrip() for line in screen.display]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def on_terminal(
    arguments: Sequence[str | Path], *, width: int, environment: Mapping[str, str]
) -> tuple[int, list[str], list[list[str]]]:
    """`clipx ...` on a pseudo-terminal.

    Returns the exit code, the screen at the end, and the screens after each piece of output.
    """
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 50, width, 0, 0))
    process = subprocess.Popen(
        clipx_command(*arguments),
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
    )
    os.close(follower)
    output = b""
    screens = []
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            piece = os.read(leader, 65536)
        except OSError:  # how Linux reports that the other side has closed
            break
        if not piece:
            break
        output += piece
        # A line and the bar below it may arrive in two pieces, between which there is no bar.
        is_whole = not select.select([leader], [], [], 0.05)[0]
        if is_whole and (piece.endswith(b"\n") or b"\r" in piece):
            screens.append(rendered(output, width))
    os.close(leader)
    code = process.wait(timeout=30)
    return code, rendered(output, width), screens
