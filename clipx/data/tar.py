"""The members of a tar: names, byte ranges and a digest, without reading whole members.

Every header's checksum is verified. After a damaged header, or after zeros in the middle of the
file, the walk continues at the next valid header, so that only the bytes in between are lost.
`tarfile` stops at the first damage.
"""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import dataclass, field

from clipx.data.tar_header import BLOCK, BadHeader, Header, pax_records, read_header

SIDE = 2048  # content bytes of each end of a member that its digest covers
_MAX_PADDING = 2 * BLOCK + 20 * BLOCK  # zeros at the end: two blocks, and the rest of a record
_MAX_EXTENSION = 1 << 20  # bytes of a PAX or GNU header, which holds names
_CHUNK = 1 << 20

Member = tuple[str, int, int]  # name, offset of the first byte, size


@dataclass(frozen=True)
class Listing:
    """The regular files of a tar.

    truncated: the tar ends early; the members before the break are listed
    damage: a message about damage inside the tar, or ""
    content: SHA-1 over the first and last SIDE bytes of each member
    """

    members: list[Member]
    truncated: bool
    damage: str
    content: str


def list_members(descriptor: int) -> Listing:
    """List all members whose headers are valid. Raises OSError."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise OSError("not a regular file")
    walk = _Walk(descriptor, status.st_size)
    truncated = walk.run()
    return Listing(walk.members, truncated, walk.damage(), walk.content.hexdigest())


@dataclass
class _Pending:
    """Fields of the next member that PAX and GNU headers before it have set."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


@dataclass
class _Walk:
    """The members found so far in a file of `end` bytes."""

    descriptor: int
    end: int
    members: list[Member] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    content: hashlib._Hash = field(default_factory=hashlib.sha1)

    def run(self) -> bool:
        """Walk through the whole file. Returns True if it ends early."""
        position = 0
        while True:
            position, stop = self._run_to_damage(position)
            if stop == "cut":
                return True
            if stop == "damaged":
                resume = self._next_header(position + 1)
                if resume is None:
                    return True
                self.notes.append(f"a damaged header at byte {position:,}")
            else:
                data = self._next_nonzero(position)
                if data is None:
                    zeros = self.end - position
                    if zeros > _MAX_PADDING:
                        self.notes.append(
                            f"{zeros:,} zeros at its end, where padding has at most "
                            f"{_MAX_PADDING:,}: it may be incomplete"
                        )
                    return False
                resume = self._next_header(data)
                if resume is None:
                    self.notes.append(
                        f"{self.end - data:,} bytes behind its end that are not members"
                    )
                    return False
                self.notes.append(
                    f"zeros from byte {position:,} to {resume:,}, as where two tars are joined"
                )
            position = resume

    def _run_to_damage(self, position: int) -> tuple[int, str]:
        """Add members from `position` on. Returns where the walk stops and why: at "zeros", at a
        "damaged" header, or at a member that is "cut" by the end of the file."""
        pending = _Pending()
        begin = end = position  # the content of the previous member
        while True:
            # One read gives the end of the previous content, this header and the start of its own.
            start = max(0, position - BLOCK - SIDE)
            window = os.pread(self.descriptor, position - start + BLOCK + SIDE, start)
            tail = max(begin + SIDE, end - SIDE)
            if tail < end:
                self.content.update(window[tail - start : end - start])
            block = window[position - start : position - start + BLOCK]
            if len(block) < BLOCK:
                return position, "cut"
            if not block.strip(b"\0"):
                return position, "zeros"
            begin = position + BLOCK
            try:
                header = read_header(block)
                if header.is_extension:
                    self._read_extension(header, begin, pending)
            except BadHeader:
                return position, "damaged"
            size = header.size
            if pending.size is not None and not header.is_extension:
                size = pending.size
            end = begin + size if header.has_data else begin
            if end > self.end:
                return position, "cut"
            if header.is_file:
                self._add(header, pending, begin, size)
                self.content.update(window[begin - start : begin - start + min(size, SIDE)])
            if not header.is_extension:
                pending = _Pending()
            # Padding counts from the member's start, which may be at any byte after lost ones.
            position = begin + -(-(end - begin) // BLOCK) * BLOCK
            if header.is_sparse:
                begin = end = position  # digests of earlier versions leave its tail out

    def _read_extension(self, header: Header, begin: int, pending: _Pending) -> None:
        """Put the fields of a PAX or GNU header into `pending`. Raises BadHeader."""
        if header.size > _MAX_EXTENSION:
            raise BadHeader
        content = os.pread(self.descriptor, header.size, begin)
        if header.kind == b"L":
            pending.name = content.split(b"\0")[0].decode("utf-8", "surrogateescape")
        elif header.kind in b"xX":
            records = pax_records(content)
            size = records.get("size")
            if size is not None:
                # A negative size would send the walk back, and 19 digits exceed any disk.
                if not size.isdecimal() or len(size) > 18:
                    raise BadHeader
                pending.size = int(size)
            pending.name = records.get("path", pending.name)
            pending.is_sparse |= any(key.startswith("GNU.sparse.") for key in records)

    def _add(self, header: Header, pending: _Pending, begin: int, size: int) -> None:
        name = pending.name or header.name
        if pending.is_sparse or header.is_sparse:
            # Its bytes are stored without their holes, so a plain read would give another content.
            self.notes.append(
                f"the sparse member {name!a} at byte {begin:,}; pack it without --sparse"
            )
        else:
            self.members.append((name, begin, size))

    def _next_header(self, position: int) -> int | None:
        """Find the next valid header, at any byte from `position` on."""
        while position + BLOCK <= self.end:
            chunk = os.pread(self.descriptor, _CHUNK + BLOCK, position)
            magic = chunk.find(b"ustar", 257)
            while 0 <= magic <= len(chunk) - BLOCK + 257:
                try:
                    read_header(chunk[magic - 257 : magic - 257 + BLOCK])
                    return position + magic - 257
                except BadHeader:
                    magic = chunk.find(b"ustar", magic + 1)
            if len(chunk) <= BLOCK:
                return None
            position += len(chunk) - BLOCK + 1
        return None

    def _next_nonzero(self, position: int) -> int | None:
        """Find the first byte from `position` on that is not zero."""
        while chunk := os.pread(self.descriptor, _CHUNK, position):
            rest = chunk.lstrip(b"\0")
            if rest:
                return position + len(chunk) - len(rest)
            position += len(chunk)
        return None

    def damage(self) -> str:
        if not self.notes:
            return ""
        others = f", and {len(self.notes) - 1} more faults" if len(self.notes) > 1 else ""
        return f"the tar has {self.notes[0]}{others}; its other samples are used"
