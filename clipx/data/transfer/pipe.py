"""The standard output of a shell command."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import tempfile
from collections.abc import Generator


def stream(command: str, stall_seconds: float) -> Generator[tuple[int, bytes], None, None]:
    """See `clipx.data.transfer.stream`. Raises OSError if the command fails."""
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            ["bash", "-o", "pipefail", "-c", command],
            stdin=subprocess.DEVNULL,  # else a command that reads would wait for the terminal
            stdout=subprocess.PIPE,
            stderr=log,  # a file, since a full pipe would block the command
            start_new_session=True,
        ) as process,
        selectors.DefaultSelector() as selector,
    ):
        assert process.stdout is not None
        selector.register(process.stdout, selectors.EVENT_READ)
        try:
            place = 0
            while True:
                if not selector.select(stall_seconds):
                    raise TimeoutError(f"the command has written nothing for {stall_seconds:g} s")
                chunk = os.read(process.stdout.fileno(), 1 << 20)
                if not chunk:
                    break
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
