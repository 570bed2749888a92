"""A tar shard as a random-access table: indexed once, then any sample is one positioned read away.

The index lists every member's byte range, so that any sample can be reached without reading what
stands before it; that is what makes exact order and exact resume cheap.

Indexes are kept in a sidecar, `<shard>.clipx-index`, one line of JSON and then plain arrays: it is
mapped, not read, so that worker processes share its pages and a shard costs them no memory of their
own. Its name is no other tool's: DALI, TorchData and others write a `<shard>.idx`.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from clipx.data.shard_index import Head, ShardIndex, build_index

INDEX_VERSION = 4
SUFFIX = ".clipx-index"
# start, offsets, sizes, extensions, key_start, key_bytes, duplicate
_ARRAYS = (np.int32, np.int64, np.int64, np.int32, np.int32, np.uint8, np.bool_)
_ALIGNMENT = 64


def load_index(
    path: Path | str, *, stamp: str | None = None, descriptor: int | None = None
) -> ShardIndex:
    """The index of a shard, from its sidecar, which is made or renewed where it is missing or
    stale. Raises NotATar, and OSError where the file cannot be read.

    A folder that cannot be written keeps its sidecars under the user's cache directory instead.

    stamp: what changes when the shard does, by default its size and time
    descriptor: of the shard, where it is open: its path may be gone from a shared cache by now
    """
    path = Path(path)
    stamp = stamp_of(path.stat()) if stamp is None else stamp
    sidecars = sidecars_of(path)
    for sidecar in sidecars:
        index = _read(sidecar, stamp)
        if index is not None:
            return index
    index = build_index(path, descriptor)
    if not path.exists():
        return index  # evicted from a shared cache meanwhile: a sidecar would outlive it
    for sidecar in sidecars:
        if write_sidecar(sidecar, index, stamp):
            break
    return index


def load_head(path: Path, *, stamp: str | None = None, descriptor: int | None = None) -> Head:
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
    return load_index(path, stamp=stamp, descriptor=descriptor).head


def stamp_of(stat: os.stat_result) -> str:
    """What changes when a local file does."""
    return f"{stat.st_size}-{stat.st_mtime_ns}"


def sidecars_of(path: Path) -> list[Path]:
    """Where the index of a shard may be, in order of preference."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha1(os.fsencode(path.resolve())).hexdigest()
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
        # Opened once: by its path, it may be another file by now, or evicted from a shared cache.
        with sidecar.open("rb") as file:
            first = file.readline()
            line, end = json.loads(first), len(first)
            if not _fits(line, stamp):
                return None
            data = _mapped(file)
        arrays = []
        for length, dtype in zip(line["lengths"], _ARRAYS, strict=True):
            end += -end % _ALIGNMENT
            arrays.append(np.frombuffer(data, dtype=dtype, count=length, offset=end))
            end += arrays[-1].nbytes
        return ShardIndex(Head(**line["head"]), tuple(line["names"]), *arrays)
    except (OSError, ValueError, KeyError, TypeError):
        return None  # a sidecar is only a cache: an unreadable one is made anew


def _mapped(file: BinaryIO) -> np.ndarray:
    """The bytes of an open file, mapped. Unlike mmap.mmap, this keeps no file open."""
    here = f"/proc/self/fd/{file.fileno()}"
    size = os.fstat(file.fileno()).st_size
    if sys.platform == "linux":
        return torch.from_file(here, size=size, dtype=torch.uint8).numpy()
    file.seek(0)
    return np.fromfile(file, dtype=np.uint8)
