"""Reading a sample's files whole: regular files of a bounded size, and nothing else."""

from __future__ import annotations

import os
import stat
import urllib.parse

from clipx.data.decode import TooLarge
from clipx.data.sample import SampleError
from clipx.types import UserError

MAX_TEXT_BYTES = 16 << 20
"""Of a text file, which is one caption or a JSON object with captions."""
TOO_MUCH_TEXT = f"more than the {MAX_TEXT_BYTES:,} that are read for a caption"


def local_path(text: str) -> str:
    """The path of a `file://` URL, any other text as it is. Raises UserError for another host's."""
    if not text.lower().startswith("file://"):
        return text
    host, slash, rest = text[len("file://") :].partition("/")
    if not slash or host not in ("", "localhost"):
        raise UserError(
            f"{text}: {host!r} is read as the name of a machine; write three slashes before an "
            "absolute path, as in file:///data/0.tar"
        )
    return urllib.parse.unquote(slash + rest)


def check_size(size: int, max_image_bytes: int) -> None:
    """Raises TooLarge."""
    if size > max_image_bytes:
        raise TooLarge(f"{size} bytes", "max_image_bytes", max_image_bytes)


def read_image_file(path: str | bytes | os.PathLike[str], max_image_bytes: int) -> bytes:
    """Raises TooLarge where the file is larger, OSError where it is no regular file."""
    descriptor, size = _open(path)
    try:
        check_size(size, max_image_bytes)
        data = _read(descriptor, size, max_image_bytes + 1)
    finally:
        os.close(descriptor)
    check_size(len(data), max_image_bytes)  # it may have grown, or be of a kind without a size
    return data


def read_text_file(path: str | bytes | os.PathLike[str]) -> bytes:
    """Raises SampleError where the file is too large, OSError where it is no regular file."""
    descriptor, size = _open(path)
    try:
        data = b"" if size > MAX_TEXT_BYTES else _read(descriptor, size, MAX_TEXT_BYTES + 1)
    finally:
        os.close(descriptor)
    if max(size, len(data)) > MAX_TEXT_BYTES:
        name = os.path.basename(os.fsdecode(path))  # noqa: PTH119 may be bytes
        raise SampleError("caption", f"{name} has {size:,} bytes, {TOO_MUCH_TEXT}")
    return data


def read_ends(path: bytes, side: int) -> bytes:
    """The first and the last `side` bytes of a file; nothing of one that cannot be read."""
    try:
        descriptor, size = _open(path)
    except OSError:
        return b""  # reading the sample tells why
    try:
        head = os.pread(descriptor, side, 0)
        tail_at = max(side, size - side)
        return head + (os.pread(descriptor, side, tail_at) if tail_at < size else b"")
    except OSError:
        return b""
    finally:
        os.close(descriptor)


def _open(path: str | bytes | os.PathLike[str]) -> tuple[int, int]:
    """(descriptor, size). Raises OSError."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer for ever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise OSError(f"{os.fsdecode(path)} is not a regular file")
    return descriptor, status.st_size


def _read(descriptor: int, size: int, limit: int) -> bytes:
    """All bytes, or the first `limit` of them. size: how many the file says it has"""
    parts = []
    while limit > 0:
        part = os.read(descriptor, min(size + 1, limit, 1 << 24))
        if not part:
            break
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
