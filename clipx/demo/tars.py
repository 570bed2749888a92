"""Tar files whose bytes depend on their members alone, and that no reader sees half written."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from pathlib import Path

_LONGEST_KEY = 90
"""ustar headers hold names of 100 bytes, extension included."""


def member_key(name: str) -> str:
    """A sample key without dots and slashes, which would end it; long ones end in a digest."""
    key = name.replace(".", "-").replace("/", "-")
    if len(key) <= _LONGEST_KEY:
        return key
    digest = hashlib.sha1(key.encode()).hexdigest()[:8]
    return f"{key[: _LONGEST_KEY - 9]}-{digest}"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs to a temporary file beside `path` and rename it into place."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for name, content in members:
                info = tarfile.TarInfo(name)  # owner, group and time are 0
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def write_text(path: Path, text: str) -> None:
    """The same for a text file."""
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
