"""Where the members of a tar lie, without reading what is in them."""

from __future__ import annotations

import tarfile
from pathlib import Path

_BLOCK = 512
Member = tuple[str, int, int]  # name, offset of its first byte, size


def list_members(path: Path) -> tuple[list[Member], bool]:
    """Every regular file, and whether the tar ends early: the members before the break are all
    there."""
    try:
        return walk_plain(path)
    except NotPlain:
        return walk_any(path)


class NotPlain(Exception):
    """The tar has headers beyond plain ustar files: leave it to `tarfile`."""


def walk_plain(path: Path) -> tuple[list[Member], bool]:
    """(name, offset, size) of every regular file, and whether the tar ends early. About six times
    faster than tarfile."""
    members, position, end = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while position + _BLOCK <= end:
            file.seek(position)
            header = file.read(_BLOCK)
            if header == b"\0" * _BLOCK:
                return members, False
            kind, size_field = header[156:157], header[124:136]
            if kind not in b"0\x005" or size_field[0] & 0x80 or header[257:262] != b"ustar":
                raise NotPlain
            digits = size_field.rstrip(b"\0 ").lstrip() or b"0"
            if digits.strip(b"01234567"):
                raise NotPlain
            size = int(digits, 8)
            if kind != b"5":
                if position + _BLOCK + size > end:
                    return members, True
                name = header[:100].split(b"\0")[0]
                if header[257:263] == b"ustar\0" and header[345]:
                    name = header[345:500].rstrip(b"\0") + b"/" + name
                text = name.decode("utf-8", "surrogateescape")
                members.append((text, position + _BLOCK, size))
            position += _BLOCK + -(-size // _BLOCK) * _BLOCK
    return members, True  # no end-of-archive block


def walk_any(path: Path) -> tuple[list[Member], bool]:
    """The same by the standard library: GNU long names, PAX headers, old formats."""
    members = []
    end = path.stat().st_size
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if not info.isreg():
                    continue
                if info.offset_data + info.size > end:
                    return members, True
                members.append((info.name, info.offset_data, info.size))
            file.seek(tar.offset)  # of the header that tarfile, silently, took for the end
            return members, file.read(_BLOCK) != b"\0" * _BLOCK
    except (tarfile.ReadError, EOFError, ValueError):
        return members, True
