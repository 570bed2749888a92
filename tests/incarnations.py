"""Ranks of `clipx train` that start in a moment: a server imports torch once and forks them.

with Incarnations() as start:
    ranks = start(["train", config], world_size=2)
    ranks.kill(1)
    assert ranks.wait() == [1, -9]
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tiny_runs import ROOT, environment

TESTS = Path(__file__).parent


class Ranks:
    """One start of a run. Exit codes are negative for signals, as subprocess has them."""

    def __init__(self, server: Incarnations, pids: list[int], log: Path) -> None:
        self._server, self.pids, self._log = server, pids, log

    def kill(self, *ranks: int, by: signal.Signals = signal.SIGKILL) -> None:
        """All of them, or those given. One that has ended already stays as it is: its parent, the
        server, reaps it in `wait` only."""
        for rank in ranks or range(len(self.pids)):
            os.kill(self.pids[rank], by)

    def wait(self, timeout_seconds: float = 90) -> list[int]:
        codes = self._server.ask({"wait": self.pids, "timeout": timeout_seconds})
        assert None not in codes, f"still running after {timeout_seconds} s:\n{self.said}"
        return codes

    def running(self) -> bool:
        return all(Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z" for pid in self.pids)

    @property
    def said(self) -> str:
        """stdout and stderr of all ranks."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""


class Incarnations:
    def __enter__(self) -> Incarnations:
        self._server = subprocess.Popen(
            [sys.executable, "-c", "import incarnations; incarnations.serve()"],
            cwd=ROOT,
            env=environment() | {"PYTHONPATH": f"{ROOT}:{TESTS}"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._port = 21000 + os.getpid() % 9000
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stdin.close()  # type: ignore[union-attr]
        self._server.wait(60)
        self._server.stdout.close()  # type: ignore[union-attr]

    def __call__(
        self,
        arguments: list[str | Path],
        log: Path,
        *,
        world_size: int = 1,
        file_bytes: int | None = None,
        **variables: str,
    ) -> Ranks:
        """file_bytes: no file may become larger; variables: of the environment"""
        self._port += 1
        question = {
            "arguments": [str(a) for a in arguments],
            "log": str(log),
            "world_size": world_size,
            "file_bytes": file_bytes,
            "variables": variables,
            "port": self._port,
        }
        return Ranks(self, self.ask(question), log)

    def ask(self, question: dict[str, Any]) -> Any:
        stdin, stdout = self._server.stdin, self._server.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(question) + "\n")
        stdin.flush()
        return json.loads(stdout.readline())


def serve() -> None:
    """Answers questions, one JSON a line, until stdin ends; then no rank is left."""
    import clipx.training.trainer  # noqa: F401  what all ranks need
    from clipx import cli  # noqa: F401

    left: dict[int, int | None] = {}
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what is printed is no answer
    for line in sys.stdin:
        question = json.loads(line)
        if "wait" in question:
            answer: Any = _reap(left, question["wait"], question["timeout"])
        else:
            answer = [_fork(question, rank) for rank in range(question["world_size"])]
            left |= dict.fromkeys(answer)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    for pid, code in left.items():
        if code is None:
            os.kill(pid, signal.SIGKILL)


def _reap(left: dict[int, int | None], pids: list[int], timeout: float) -> list[int | None]:
    deadline = time.monotonic() + timeout
    while any(left[pid] is None for pid in pids) and time.monotonic() < deadline:
        for pid in pids:
            if left[pid] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                left[pid] = os.waitstatus_to_exitcode(status) if ended else None
        time.sleep(0.01)
    return [left[pid] for pid in pids]


def _fork(question: dict[str, Any], rank: int) -> int:
    if pid := os.fork():
        return pid
    code = 1
    try:
        os.environ |= question["variables"]
        size = question["world_size"]
        if size > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            os.environ |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(question["port"])}
        code = _train(question)
    finally:
        os._exit(code)


def _train(question: dict[str, Any]) -> int:
    import traceback

    from clipx import cli

    log = os.open(question["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    if question["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (question["file_bytes"],) * 2)
    try:
        cli.main(question["arguments"])
    except SystemExit as exit:
        return int(exit.code or 0)
    except BaseException:  # noqa: BLE001  as the interpreter would
        traceback.print_exc()
        return 1
    finally:
        sys.stderr.flush()
    return 0
