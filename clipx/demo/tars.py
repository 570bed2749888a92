"""Tar files whose bytes depend on their members alone."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from clipx.files import write_whole

_MAX_KEY = 90  # ustar headers contain names of 100 bytes, extension included


def member_key(name: str) -> str:
    """A sample key without dots and slashes, which would end it; long ones end in a digest."""
    key = name.replace(".", "-").replace("/", "-")
    if len(key) <= _MAX_KEY:
        return key
    digest = hashlib.sha1(key.encode()).hexdigest()[:8]
    return f"{key[: _MAX_KEY - 9]}-{digest}"


def write_tar(path: Path, members: Iterable[tuple[str, bytes]]) -> None:
    """Write (name, content) pairs. The file is there whole or not at all."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)  # with 0 for owner, group and time
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    write_whole(path, buffer.getvalue())
