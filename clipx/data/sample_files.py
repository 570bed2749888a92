"""Read the files of a sample whole: regular files of a bounded size, and nothing else."""

from __future__ import annotations

import os
import stat
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager

from clipx.data.decode import TooLarge
from clipx.data.sample import SampleError
from clipx.types import UserError

MAX_TEXT_BYTES = 16 << 20  # of a text file, which is one caption or a JSON object with captions
TOO_MUCH_TEXT = f"more than the {MAX_TEXT_BYTES:,} that are read for a caption"
AnyPath = str | bytes | os.PathLike[str]


def local_path(text: str) -> str:
    """Convert a `file://` URL to a path; return any other text as it is. Raises UserError for a URL
    of another host."""
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


def read_image_file(path: AnyPath, max_image_bytes: int) -> bytes:
    """Raises TooLarge where the file is larger, OSError where it is not a regular file."""
    with _opened(path) as (descriptor, size):
        check_size(size, max_image_bytes)
        data = _read(descriptor, size, max_image_bytes + 1)
    check_size(len(data), max_image_bytes)  # some file systems report a size of 0
    return data


def read_text_file(path: AnyPath) -> bytes:
    """Raises SampleError where the file is too large, OSError where it is not a regular file."""
    with _opened(path) as (descriptor, size):
        data = b"" if size > MAX_TEXT_BYTES else _read(descriptor, size, MAX_TEXT_BYTES + 1)
    if max(size, len(data)) > MAX_TEXT_BYTES:
        name = os.path.basename(os.fsdecode(path))  # noqa: PTH119 may be bytes
        raise SampleError("caption", f"{name} has {size:,} bytes, {TOO_MUCH_TEXT}")
    return data


def read_ends(path: bytes, side: int) -> bytes:
    """Read the first and the last `side` bytes of a file. Empty for one that cannot be read."""
    try:
        with _opened(path) as (descriptor, size):
            ends = os.pread(descriptor, side, 0)
            tail = max(side, size - side)
            if tail < size:
                ends += os.pread(descriptor, side, tail)
            return ends
    except OSError:
        return b""  # reading the sample raises the reason


@contextmanager
def _opened(path: AnyPath) -> Iterator[tuple[int, int]]:
    """Yields (descriptor, size). Raises OSError."""
    # Without O_NONBLOCK, opening a named pipe would wait for a writer forever.
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise OSError(f"{os.fsdecode(path)} is not a regular file")
        yield descriptor, status.st_size
    finally:
        os.close(descriptor)


def _read(descriptor: int, size: int, limit: int) -> bytes:
    """Read all bytes, at most `limit`. size: as the file system reports it"""
    parts = []
    while limit > 0:
        part = os.read(descriptor, min(size + 1, limit, 1 << 24))
        if not part:
            break
        parts.append(part)
        limit -= len(part)
    return b"".join(parts)
