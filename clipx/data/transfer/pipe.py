"""The standard output of a shell command."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Generator
from typing import IO


def stream(command: str, stall_seconds: float) -> Generator[tuple[int, bytes], None, None]:
    """See `clipx.data.transfer.stream`. Raises OSError if the command fails."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        try:
            place = 0
            while chunk := _read(process.stdout, stall_seconds):
                yield place, chunk
                place += len(chunk)
            code = process.wait(stall_seconds)
        except subprocess.TimeoutExpired:
            raise TimeoutError(
                f"closed its output, but runs on after {stall_seconds:g} s"
            ) from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that bash has started
        if code:
            log.seek(0)
            tail = log.read()[-500:].decode("utf-8", "replace").strip()
            raise OSError(f"the command ended with {code}: {tail or 'nothing on stderr'}")


def _read(pipe: IO[bytes], stall_seconds: float) -> bytes:
    with selectors.DefaultSelector() as selector:
        selector.register(pipe, selectors.EVENT_READ)
        if not selector.select(stall_seconds):
            raise TimeoutError(f"the command has written nothing for {stall_seconds:g} s")
    return os.read(pipe.fileno(), 1 << 20)
