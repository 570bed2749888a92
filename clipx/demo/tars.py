"""Tar files whose bytes depend on their members alone, and that no reader sees half-written."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

from clipx.files import replacing

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
    """Write a tar of (name, content) pairs atomically."""
    with (
        replacing(path) as temporary,
        tarfile.open(temporary, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for name, content in members:
            info = tarfile.TarInfo(name)  # owner, group and time are 0
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
