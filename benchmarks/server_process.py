"""A server over embeddings, for the benchmarks that query one."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def running_server(folder: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The process of `clipx serve` and its address, without a slash at its end."""
    command = [sys.executable, "-m", "clipx", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(
        command, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert process.stdout is not None
        address = ""
        while not address.startswith("http"):
            address = process.stdout.readline()
            assert address, "the server has ended; start it by hand for its message"
        yield process, address.strip().rstrip("/")
    finally:
        process.terminate()
        process.wait()
