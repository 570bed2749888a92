"""Any answer of a web server gives the file as it is, or an error."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from damage import Content, damaged, mutations
from fuzzing import Fuzz
from hypothesis import strategies as st

from clipx.data.remote import find
from clipx.data.shard_cache import ShardCache
from clipx.data.transfer import http, stream
from clipx.data.transfer.common import Patience, ShardFile
from clipx.types import UserError

BODY = b"the content of a shard " * 50
ONCE = Patience(attempts=1, stall_seconds=0.5, backoff_seconds=0.0)


def answer(status: str, *headers: str, body: bytes = BODY) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body


LENGTH = f"Content-Length: {len(BODY)}"
CHUNKED = b"".join(b"%x\r\n%b\r\n" % (len(part), part) for part in (BODY[:100], BODY[100:], b""))
ANSWERS = [
    answer("200 OK", LENGTH, 'ETag: "a"'),
    answer("200 OK", "Transfer-Encoding: chunked", body=CHUNKED),
    answer("200 OK", "Connection: close"),
    answer("206 Partial", f"Content-Range: bytes 0-99/{len(BODY)}", "Content-Length: 100"),
    answer("206 Partial", "Content-Range: bytes 5-99/-7", "Content-Length: -100"),
    answer("200 OK", "Content-Length: " + "9" * 5000),
    answer("200 OK", LENGTH, "Content-MD5: AAAA", "Last-Modified: yesterday"),
    answer("302 Found", "Location: http://127.0.0.1:1/elsewhere", "Content-Length: 0", body=b""),
    answer("302 Found", "Location: file:///etc/passwd", "Content-Length: 0", body=b""),
    answer("503 Busy", "Retry-After: 99999999999999999999", "Content-Length: 0", body=b""),
    answer("429 Busy", "Retry-After: Wed, 99 Foo 99999 99:99:99", body=b""),
    answer("404 Not Found", "Content-Length: 0", body=b""),
    answer("100 Continue", body=b"") + answer("200 OK", LENGTH),
    answer("200 OK", *[f"X-{n}: {n}" for n in range(150)], LENGTH),
]


@pytest.fixture
def server() -> Iterator[tuple[str, list[bytes]]]:
    """(its URL, its answer to any request, in a list of one)"""
    content = [b""]
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with contextlib.suppress(OSError):  # the listener is closed
            while True:
                connection, _ = listener.accept()
                with connection, contextlib.suppress(OSError):
                    connection.settimeout(2)
                    connection.recv(4096)
                    connection.sendall(content[0])

    threading.Thread(target=serve, daemon=True).start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}/0.tar", content
    listener.close()


def test_any_answer_is_the_file_or_an_error(
    fuzz: Fuzz, server: tuple[str, list[bytes]], tmp_path: Path
) -> None:
    url, content = server
    cache = ShardCache(tmp_path, 1 << 24, patience=ONCE)

    def check(data: bytes) -> None:
        content[0] = bytes(data)
        with contextlib.suppress(UserError):
            find([url], allow_pipe=False, patience=ONCE)
        file = ShardFile(url, len(BODY), "", "")
        with contextlib.suppress(OSError, UserError):
            os.close(cache.open(file))
            path = cache.place(file)
            assert path.stat().st_size == len(BODY)
            path.unlink()

    fuzz(mutations(ANSWERS), check)


def test_a_header_that_is_damaged_changes_no_byte(
    fuzz: Fuzz, server: tuple[str, list[bytes]]
) -> None:
    """If only the header is damaged, the bytes are the body or its beginning."""
    url, content = server
    heads = [ANSWERS[0][: -len(BODY)], ANSWERS[2][: -len(BODY)]]

    def check(data: bytes) -> None:
        content[0] = bytes(data) + b"\r\n\r\n" + BODY
        with contextlib.suppress(OSError, UserError):
            pieces = dict(stream(ShardFile(url, -1, "", ""), 0, 0.5))
            whole = b"".join(pieces.values())
            assert whole.strip() in content[0] or b"chunked" in data.lower()

    fuzz(mutations(heads), check)


def test_any_retry_after_header_is_a_time(fuzz: Fuzz) -> None:
    texts = ["120", "Fri, 31 Dec 1999 23:59:59 GMT", "Wed, 21 Oct 9999 07:28:00 -9959", "\u0663"]
    some = mutations([text.encode() for text in texts]).map(lambda d: d.decode("latin-1"))

    def check(header: str) -> None:
        assert http.retry_after(header) >= 0

    fuzz(st.one_of(some, st.text(max_size=40)), check)


def test_damage_is_shown_by_its_recipe() -> None:
    content = Content(damaged(b"abc", [("end", 2**15, 0, b"x")]))
    content.made = "made"
    assert (bytes(content), repr(content)) == (b"a", "made")
