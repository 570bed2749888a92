"""A web server on the loopback interface that fails as it is told to."""

from __future__ import annotations

import base64
import hashlib
import socket
import struct
import threading
import time
from collections import defaultdict, deque
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

HALF = ("stall midway", "truncate", "reset")


class FaultyServer:
    """Serves `files` (path without the first slash -> content) while it is entered.

    Each GET of a path takes the next fault of its script; once the script is empty, all is well:
        500, 404, 403 ...  that status
        "stall"            nothing at all is sent
        "stall midway"     half of the body, then nothing
        "truncate"         half of the body, then the end of the connection
        "reset"            half of the body, then a reset connection
        "wrong bytes"      a body of the right length
    A HEAD takes the faults that are given with `head=True`.

    log: (method, path, Range header or "") of every request
    ranges, lengths, md5: whether it understands ranges, tells lengths and MD5 sums
    delay_seconds: before each body; retry_after: that header, of answers with a status
    """

    def __init__(
        self,
        files: Mapping[str, bytes],
        *,
        ranges: bool = True,
        lengths: bool = True,
        md5: bool = False,
        delay_seconds: float = 0.0,
    ) -> None:
        self.files = dict(files)
        self.ranges, self.lengths, self.md5 = ranges, lengths, md5
        self.delay_seconds = delay_seconds
        self.retry_after = ""
        self.log: list[tuple[str, str, str]] = []
        self.closing = threading.Event()
        self._faults: dict[tuple[str, str], deque[int | str]] = defaultdict(deque)

    def script(self, path: str, *faults: int | str, head: bool = False) -> None:
        self._faults["HEAD" if head else "GET", path].extend(faults)

    def next_fault(self, method: str, path: str) -> int | str | None:
        faults = self._faults[method, path]
        return faults.popleft() if faults else None

    def gets(self, path: str) -> list[str]:
        """The Range headers of the GETs of a path."""
        return [ranges for method, asked, ranges in self.log if (method, asked) == ("GET", path)]

    def __enter__(self) -> FaultyServer:
        faulty = self

        class Handler(_Handler):
            server_of_test = faulty

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.closing.set()
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server_of_test: FaultyServer

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        test, path = self.server_of_test, self.path.removeprefix("/").partition("?")[0]
        ranges = self.headers.get("Range", "")
        test.log.append((self.command, path, ranges))
        fault = test.next_fault(self.command, path)
        if fault == "stall":
            test.closing.wait(30)
            return
        if isinstance(fault, int) or path not in test.files:
            self.send_response(fault if isinstance(fault, int) else 404)
            self.send_header("Content-Length", "0")
            if test.retry_after:
                self.send_header("Retry-After", test.retry_after)
            self.end_headers()
            return
        time.sleep(test.delay_seconds)
        self.send_file(test.files[path], ranges if test.ranges else "", fault)

    def send_file(self, content: bytes, ranges: str, fault: str | None) -> None:
        test = self.server_of_test
        first, _, last = ranges.removeprefix("bytes=").partition("-")
        start, stop = int(first or 0), int(last or len(content) - 1) + 1
        body = content[start:stop]
        self.send_response(206 if ranges else 200)
        if ranges:
            self.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(content)}")
        if test.lengths:
            self.send_header("Content-Length", str(len(body)))
        if test.md5:
            sent = base64.b64encode(hashlib.md5(body).digest())
            self.send_header("Content-MD5", sent.decode())
        self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
        self.end_headers()
        if self.command == "HEAD":
            return
        if fault == "wrong bytes":
            body = bytes(byte ^ 1 for byte in body)
        self.wfile.write(body[: len(body) // 2] if fault in HALF else body)
        self.wfile.flush()
        if fault == "stall midway":
            test.closing.wait(30)
        if fault == "reset":
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
