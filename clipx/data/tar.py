"""The positions of a tar's members, and a digest of their contents, without reading whole members.

Every header's checksum is compared. After a damaged header, or after zeros in the middle of the
file, the walk continues at the next good header, so that only the bytes in between are lost.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field

from clipx.data.tar_header import BLOCK, BadHeader, Header, pax_records, read_header

SIDE = 2048
"""Bytes of content that are read on each side of a header: in the same read, so for nothing."""
MAX_PADDING = 2 * BLOCK + 10_240
"""Zeros at the end of a tar: two blocks, and what fills the last record of 20 blocks."""
MAX_EXTENSION = 1 << 20  # bytes of one PAX or GNU header, which hold names
_CHUNK = 1 << 20
Member = tuple[str, int, int]  # name, offset of its first byte, size


@dataclass(frozen=True)
class Listing:
    """The regular files of a tar.

    truncated: the tar ends early; the members before the break are all there
    damage: a message about damage inside the tar; "" where there is none
    content: SHA-1 over the first and last SIDE bytes of each member
    """

    members: list[Member]
    truncated: bool
    damage: str
    content: str


def list_members(descriptor: int) -> Listing:
    """All members whose headers are good. Raises OSError."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    walk = _Walk(descriptor, status.st_size)
    truncated = False
    position = 0
    while True:
        position, stop = walk.run(position)
        if stop == "cut":
            truncated = True
            break
        if stop == "header":
            found = walk.next_header(position + 1)
            truncated = found is None
            if found is None:
                break
            walk.note(f"a damaged header at byte {position:,}")
        else:
            data = walk.next_data(position)
            if data is None:
                walk.check_padding(position)
                break
            found = walk.next_header(data)
            if found is None:
                walk.note(f"{walk.end - data:,} bytes behind its end that are no members")
                break
            walk.note(f"zeros from byte {position:,} to {found:,}, as where two tars are joined")
        position = found
    return Listing(walk.members, truncated, walk.damage(), walk.content.hexdigest())


@dataclass
class _Pending:
    """Fields of the next member that PAX and GNU headers before it have set."""

    name: str | None = None
    size: int | None = None
    sparse: bool = False


@dataclass
class _Walk:
    """The members found so far in a file of `end` bytes."""

    descriptor: int
    end: int
    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    content: hashlib._Hash = field(default_factory=hashlib.sha1)

    def run(self, position: int) -> tuple[int, str]:
        """Take the members from `position` on. Returns where the walk stops, and at what: "zeros",
        a damaged "header", or a member that is "cut" by the end of the file."""
        pending = _Pending()
        before = (position, position)  # where the content of the member before lies
        while True:
            start = max(0, position - SIDE - BLOCK)
            window = os.pread(self.descriptor, position - start + BLOCK + SIDE, start)
            tail = max(before[0] + SIDE, before[1] - SIDE)
            if tail < before[1]:
                self.content.update(window[tail - start : before[1] - start])
            block = window[position - start : position - start + BLOCK]
            if len(block) < BLOCK:
                return position, "cut"
            if not block.strip(b"\0"):
                return position, "zeros"
            try:
                header = read_header(block)
                if header.is_extension:
                    size = header.size
                    self._read_extension(header, position + BLOCK, pending)
                else:
                    size = header.size if pending.size is None else pending.size
            except BadHeader:
                return position, "header"
            data = position + BLOCK
            before = (data, data + size if header.has_data else data)
            if before[1] > self.end:
                return position, "cut"
            if header.is_file:
                self._take(pending.name or header.name, data, size, pending.sparse or header.sparse)
                self.content.update(window[data - start : data - start + min(size, SIDE)])
            if not header.is_extension:
                pending = _Pending()
            position = data + -(-(before[1] - data) // BLOCK) * BLOCK
            if header.sparse:
                position = self._behind_sparse_map(block, data, size)
                before = (position, position)

    def _read_extension(self, header: Header, data: int, pending: _Pending) -> None:
        """Put the fields of a PAX or GNU header into `pending`. Raises BadHeader."""
        if header.size > MAX_EXTENSION:
            raise BadHeader
        content = os.pread(self.descriptor, header.size, data)
        if header.kind == b"L":
            pending.name = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif header.kind in (b"x", b"X"):
            records = pax_records(content)
            size = records.get("size")
            if size is not None:
                if not size.isdecimal() or len(size) > 18:  # negative, or beyond any disk
                    raise BadHeader
                pending.size = int(size)
            pending.name = records.get("path", pending.name)
            pending.sparse |= any(key.startswith("GNU.sparse.") for key in records)

    def _take(self, name: str, data: int, size: int, sparse: bool) -> None:
        if sparse:  # its bytes do not stand together
            self.note(f"the sparse member {name!a} at byte {data:,}; pack it without --sparse")
        else:
            self.members.append((name, data, size))

    def _behind_sparse_map(self, block: bytes, data: int, size: int) -> int:
        """Where the header after an old GNU sparse member is: its map may take further blocks."""
        more = block[482] != 0
        while more:
            extension = os.pread(self.descriptor, BLOCK, data)
            more = len(extension) == BLOCK and extension[504] != 0
            data += BLOCK
        return data + -(-size // BLOCK) * BLOCK

    def next_header(self, position: int) -> int | None:
        """Where the next good header begins, at any byte from `position` on."""
        while position + BLOCK <= self.end:
            chunk = os.pread(self.descriptor, _CHUNK + BLOCK, position)
            at = chunk.find(b"ustar", 257)
            while 0 <= at <= len(chunk) - BLOCK + 257:
                try:
                    read_header(chunk[at - 257 : at - 257 + BLOCK])
                    return position + at - 257
                except BadHeader:
                    at = chunk.find(b"ustar", at + 1)
            if len(chunk) <= BLOCK:
                return None
            position += len(chunk) - BLOCK + 1
        return None

    def next_data(self, position: int) -> int | None:
        """The first byte from `position` on that is not zero."""
        while chunk := os.pread(self.descriptor, _CHUNK, position):
            rest = chunk.lstrip(b"\0")
            if rest:
                return position + len(chunk) - len(rest)
            position += len(chunk)
        return None

    def check_padding(self, position: int) -> None:
        zeros = self.end - position
        if zeros > MAX_PADDING:
            self.note(f"{zeros:,} zeros at its end, more than a tar is padded by: is it all there")

    def note(self, text: str) -> None:
        self.notes.append(text)

    def damage(self) -> str:
        if not self.notes:
            return ""
        more = f", and {len(self.notes) - 1} more faults" if self.notes[1:] else ""
        return f"the tar has {self.notes[0]}{more}; its other samples are used"
