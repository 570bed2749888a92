"""A tar shard as a random-access table: indexed once, then any sample is one positioned read away.

A shard is a plain WebDataset tar: members of one sample stand together and share the name up to the
first dot (`0001.png`, `0001.txt`, `0001.json`). The index lists every member's byte range, so that
any sample can be reached without reading what stands before it; that is what makes exact order and
exact resume cheap.

Indexes are kept in a sidecar, `<shard>.idx`, one line of JSON and then plain arrays: it is mapped,
not read, so that worker processes share its pages and a shard costs them no memory of their own.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clipx.data.tar import Member, list_members
from clipx.types import UserError

INDEX_VERSION = 3
SUFFIX = ".idx"
# start, offsets, sizes, extensions, key_start, key_bytes, duplicate
_ARRAYS = (np.int32, np.int64, np.int64, np.int32, np.int32, np.uint8, np.bool_)
_ALIGNMENT = 64


class NotATar(UserError):
    """A file that has no sample to offer."""


@dataclass(frozen=True)
class Head:
    """What is known of a shard without its samples.

    digest: SHA-1 over keys and byte ranges: two shards with the same digest give the same samples
    truncated: the tar ends early; the samples before the break are all there
    """

    samples: int
    digest: str
    truncated: bool


@dataclass(frozen=True)
class ShardIndex:
    """The table of one shard. Sample i has the members `start[i]:start[i + 1]`.

    start: (N + 1,); offsets, sizes: (M,) bytes; extensions: (M,) places in `names`
    key_start: (N + 1,) where in the bytes `key_bytes` the key of a sample begins
    duplicate: (N,) True where the shard has an earlier sample of this key
    """

    head: Head
    names: tuple[str, ...]
    start: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    extensions: np.ndarray
    key_start: np.ndarray
    key_bytes: np.ndarray
    duplicate: np.ndarray

    def __len__(self) -> int:
        return self.head.samples

    def key(self, sample: int) -> str:
        begin, end = self.key_start[sample], self.key_start[sample + 1]
        return self.key_bytes[begin:end].tobytes().decode("utf-8", "surrogateescape")

    @property
    def keys(self) -> list[str]:
        return [self.key(sample) for sample in range(len(self))]

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of one sample."""
        rows = slice(self.start[sample], self.start[sample + 1])
        extensions = self.extensions[rows].tolist()
        ranges = zip(
            extensions, self.offsets[rows].tolist(), self.sizes[rows].tolist(), strict=True
        )
        return [(self.names[e], offset, size) for e, offset, size in ranges]


def load_index(path: Path | str, *, stamp: str | None = None) -> ShardIndex:
    """The index of a shard, from its sidecar, which is made or renewed where it is missing or
    stale. Raises NotATar, and OSError where the file cannot be read.

    A folder that cannot be written keeps its sidecars under the user's cache directory instead.

    stamp: what changes when the shard does, by default its size and time
    """
    path = Path(path)
    stamp = stamp_of(path.stat()) if stamp is None else stamp
    sidecars = sidecars_of(path)
    for sidecar in sidecars:
        index = _read(sidecar, stamp)
        if index is not None:
            return index
    index = build_index(path)
    for sidecar in sidecars:
        if write_sidecar(sidecar, index, stamp):
            break
    return index


def load_head(path: Path, *, stamp: str | None = None) -> Head:
    """The same, but of an index that is there only its first line is read."""
    stamp = stamp_of(path.stat()) if stamp is None else stamp
    for sidecar in sidecars_of(path):
        try:
            with sidecar.open("rb") as file:
                line = json.loads(file.readline())
        except (OSError, ValueError):
            continue  # a sidecar is only a cache: an unreadable one is made anew
        if _fits(line, stamp):
            return Head(**line["head"])
    return load_index(path, stamp=stamp).head


def stamp_of(stat: os.stat_result) -> str:
    """What changes when a local file does."""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def build_index(path: Path) -> ShardIndex:
    """Walk the tar headers once. Raises NotATar."""
    members, truncated = list_members(path)
    if truncated and not members:
        raise NotATar(
            f"shard {path} is not a tar file or is cut inside its first member; replace it"
        )
    keys, start, duplicate, extensions, names = _samples(members)
    encoded = [key.encode("utf-8", "surrogateescape") for key in keys]
    ends = np.cumsum([0, *map(len, encoded)], dtype=np.int32)
    arrays = {
        "start": np.array([*start, len(members)], dtype=np.int32),
        "offsets": np.array([m[1] for m in members], dtype=np.int64),
        "sizes": np.array([m[2] for m in members], dtype=np.int64),
    }
    sha = hashlib.sha1(b"\n".join(encoded))
    for array in arrays.values():
        sha.update(array.astype(np.int64).tobytes())
    return ShardIndex(
        head=Head(len(keys), sha.hexdigest(), truncated),
        names=names,
        extensions=np.array(extensions, dtype=np.int32),
        key_start=ends,
        key_bytes=np.frombuffer(b"".join(encoded), dtype=np.uint8),
        duplicate=np.array(duplicate, dtype=np.bool_),
        **arrays,
    )


def _samples(
    members: list[Member],
) -> tuple[list[str], list[int], list[bool], list[int], tuple[str, ...]]:
    """(key, first member, whether the key came before) of each sample; extension of each member,
    by its place among the different extensions."""
    keys: list[str] = []
    start, duplicate, extensions = [], [], []
    seen: set[str] = set()
    here: set[str] = set()
    names: dict[str, int] = {}
    for row, (name, _, _) in enumerate(members):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = (f"{folder}/{stem}" if folder else stem), extension.lower()
        if not keys or keys[-1] != key or extension in here:
            keys.append(key)
            start.append(row)
            duplicate.append(key in seen)
            seen.add(key)
            here.clear()
        here.add(extension)
        extensions.append(names.setdefault(extension, len(names)))
    return keys, start, duplicate, extensions, tuple(names)


def sidecars_of(path: Path) -> list[Path]:
    """Where the index of a shard may be, in order of preference."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha1(str(path.resolve()).encode()).hexdigest()
    return [path.with_name(path.name + SUFFIX), root / "clipx" / "index" / f"{name}{SUFFIX}"]


def write_sidecar(sidecar: Path, index: ShardIndex, stamp: str) -> bool:
    """True if written. Atomic, so that several processes may index the same shard at once."""
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=sidecar.parent) as folder:
            temporary = Path(folder) / sidecar.name
            temporary.write_bytes(dump_index(index, stamp))
            temporary.replace(sidecar)
    except OSError:
        return False
    return True


def dump_index(index: ShardIndex, stamp: str) -> bytes:
    """The bytes of a sidecar."""
    arrays = [
        *(index.start, index.offsets, index.sizes, index.extensions),
        *(index.key_start, index.key_bytes, index.duplicate),
    ]
    line = {
        "version": INDEX_VERSION,
        "stamp": stamp,
        "head": vars(index.head),
        "names": index.names,
        "lengths": [len(array) for array in arrays],
    }
    parts = [json.dumps(line).encode() + b"\n"]
    for array, dtype in zip(arrays, _ARRAYS, strict=True):
        parts.append(bytes(-len(parts[-1]) % _ALIGNMENT))  # parts before it are whole multiples
        parts.append(np.ascontiguousarray(array, dtype=dtype).tobytes())
    return b"".join(parts)


def _fits(line: Any, stamp: str) -> bool:
    told = [line.get("version"), line.get("stamp")] if isinstance(line, dict) else []
    return told == [INDEX_VERSION, stamp]


def _read(sidecar: Path, stamp: str) -> ShardIndex | None:
    """None where there is no whole sidecar for this state of the shard."""
    try:
        with sidecar.open("rb") as file:
            first = file.readline()
            line, end = json.loads(first), len(first)
            if not _fits(line, stamp):
                return None
            size = os.fstat(file.fileno()).st_size
        # Unlike mmap.mmap, this keeps no file open.
        data = torch.from_file(str(sidecar), size=size, dtype=torch.uint8).numpy()
        arrays = []
        for length, dtype in zip(line["lengths"], _ARRAYS, strict=True):
            end += -end % _ALIGNMENT
            arrays.append(np.frombuffer(data, dtype=dtype, count=length, offset=end))
            end += arrays[-1].nbytes
        return ShardIndex(Head(**line["head"]), tuple(line["names"]), *arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a sidecar is only a cache: an unreadable one is made anew
