"""What a process makes of signals, in processes that send them to themselves."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from tiny_runs import ROOT, environment

from clipx.training.interruption import REPEAT_SECONDS, Stop

# A test runner that `nohup` has started passes on that SIGHUP is ignored.
HANGUP = "import signal; signal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
SETUP = """
import os, signal, sys, time
from clipx.training.interruption import Stop
def send(number, wait=0.1):
    os.kill(os.getpid(), number)
    time.sleep(wait)
with Stop().listening() as stop:
"""


def started(body: str) -> subprocess.Popen[str]:
    """`body` in a process of its own that listens; without torch, so in a tenth of a second."""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    return subprocess.Popen(
        [sys.executable, "-c", HANGUP + SETUP + indented],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=environment(),
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    with process:
        try:
            stdout, stderr = process.communicate(timeout=30)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def run(body: str) -> subprocess.CompletedProcess[str]:
    return ended(started(body))


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP"])
def test_a_signal_asks_to_stop_and_its_repetition_says_nothing_new(name: str) -> None:
    done = run(f"for _ in range(3): send(signal.{name})\nprint(stop.reason)")
    assert (done.returncode, done.stdout) == (0, f"{name}\n"), done.stderr


SECOND_WISHES = [
    ("SIGINT", "SIGINT", 1.1 * REPEAT_SECONDS, 130),
    ("SIGTERM", "SIGTERM", 1.1 * REPEAT_SECONDS, 130),
    ("SIGTERM", "SIGINT", 0.1, 130),
    ("SIGUSR1", "SIGUSR1", 1.1 * REPEAT_SECONDS, 0),
    ("SIGUSR1", "SIGTERM", 1.1 * REPEAT_SECONDS, 0),
    ("SIGTERM", "SIGUSR1", 1.1 * REPEAT_SECONDS, 0),
    ("SIGTERM", "SIGHUP", 0.1, 0),
    ("SIGHUP", "SIGTERM", 0.1, 0),
    ("SIGHUP", "SIGHUP", 1.1 * REPEAT_SECONDS, 0),
]
"""(first signal, second signal, seconds between them, exit code)"""


def test_a_second_wish_ends_at_once() -> None:
    """All at the same time, since most of them wait for a second."""
    processes = []
    for first, second, wait, _ in SECOND_WISHES:
        body = f"send(signal.{first}, {wait})\nsend(signal.{second}, 0.3)"
        processes.append(started(body))
    found = [ended(process) for process in processes]
    for (first, second, _, code), done in zip(SECOND_WISHES, found, strict=True):
        assert done.returncode == code, (first, second, done.stderr)
        assert (f"{second} again: ended at once" in done.stderr) == bool(code), (first, second)


def test_a_terminal_that_is_closed_asks_to_stop_and_what_is_printed_then_ends_nothing(
    tmp_path: Path,
) -> None:
    body = f"""
print("listening", flush=True)
while stop.reason is None:
    time.sleep(0.01)
time.sleep(0.1)
for stream in (sys.stdout, sys.stderr):
    print("after", file=stream, flush=True)
open({str(tmp_path / "checkpoint")!r}, "w").write(stop.reason)
"""
    indented = "".join(f"    {line}\n" for line in body.splitlines())
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", HANGUP + SETUP + indented],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        cwd=ROOT,
        env=environment(),
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )
    os.close(terminal)
    assert b"listening" in os.read(master, 100)
    os.close(master)
    assert process.wait(30) == 0
    assert (tmp_path / "checkpoint").read_text() == "SIGHUP"


def test_nohup_is_respected() -> None:
    ignored = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    body = "    send(signal.SIGHUP)\n    print(stop.reason)\n"
    command = [sys.executable, "-c", ignored + SETUP + body]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environment(), check=False
    )
    assert (done.returncode, done.stdout) == (0, "None\n"), done.stderr


def test_it_ends_at_once_though_the_main_thread_waits_in_c() -> None:
    """A lock stands for a collective: no handler of Python's own would run."""
    wait = "import ctypes\nlibc = ctypes.PyDLL(None) if 0 else ctypes.CDLL(None)\nlibc.pause\n"
    body = (
        "import subprocess\n"
        "pid = os.getpid()\n"
        "code = f'sleep 0.3; kill -INT {pid}; sleep 1.3; kill -INT {pid}'\n"
        "subprocess.Popen(['sh', '-c', code])\n" + wait + "while True: libc.sleep(30)"
    )
    began = time.monotonic()
    assert run(body).returncode == 130
    assert time.monotonic() - began < 20


def test_afterwards_a_repetition_cannot_kill_a_process_that_is_done() -> None:
    done = run("send(signal.SIGUSR1)\nimport atexit\natexit.register(send, signal.SIGUSR1)")
    assert done.returncode == 0, done.stderr


def test_a_forked_child_lives_on_and_its_signals_are_not_its_parents() -> None:
    body = """
child = os.fork()
if child == 0:
    send(signal.SIGINT); send(signal.SIGUSR1); send(signal.SIGHUP)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.reason)
child = os.fork()
if child == 0:
    time.sleep(30)
os.kill(child, signal.SIGTERM)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), stop.reason)
"""
    done = run(body)
    assert done.stdout == f"7 None\n{-signal.SIGTERM} None\n", done.stderr


def test_listening_ends_although_a_forked_child_lives_on() -> None:
    """As a data worker does, which holds a copy of the pipe of signals."""
    body = """
if os.fork() == 0:
    os.close(1); os.close(2)
    time.sleep(20)
    os._exit(0)
"""
    start = time.monotonic()
    assert run(body).returncode == 0
    assert time.monotonic() - start < 10


def test_a_deadline_is_a_reason() -> None:
    stop = Stop()
    assert stop.reason is None
    stop.deadline = time.time() + 3600
    assert stop.reason is None
    stop.deadline = time.time()
    assert stop.reason == "the time limit"


def test_asking_costs_a_step_next_to_nothing() -> None:
    """A bound on what is done, not on time: no system call but the clock's."""
    stop = Stop()
    before = os.times()
    for _ in range(100_000):
        assert stop.reason is None
    after = os.times()
    assert after.user - before.user < 1.0
