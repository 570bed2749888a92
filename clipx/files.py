"""Files that are whole at any time, also after a kill or a power loss."""

from __future__ import annotations

import os
from pathlib import Path


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a file: afterwards it has the old content or the new one. Raises OSError.

    Text is written as UTF-8; surrogates stand for the bytes that they escape.
    """
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogateescape")
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            # Before the rename: a file system may put the name on the disk before the content, and
            # a power loss in between leaves an empty file.
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
