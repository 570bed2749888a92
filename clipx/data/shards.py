"""Tar shards as random-access tables: find them, index them once, read one sample with one
positioned read.

A shard is a plain WebDataset tar: members of one sample share the name up to the first dot
(`0001.png`, `0001.txt`, `0001.json`). The index lists every member's byte range, so that any sample
can be reached without reading what stands before it; that is what makes exact order and exact
resume cheap.
"""

from __future__ import annotations

import glob
import hashlib
import io
import os
import re
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from clipx.data.tar import list_members
from clipx.types import UserError

INDEX_VERSION = 2
_BRACES = re.compile(r"\{(\d+)\.\.(\d+)\}")


@dataclass(frozen=True)
class ShardIndex:
    """The table of one shard. Sample i has the members `start[i]:start[i + 1]`.

    keys: N sample keys in the order of the tar
    start: (N + 1,) int64; offsets, sizes: (M,) int64 bytes; extensions: (M,) int32 index into
    `names`
    truncated: True where the tar ends early; the samples before the break are all here
    """

    path: Path
    keys: tuple[str, ...]
    start: np.ndarray
    offsets: np.ndarray
    sizes: np.ndarray
    extensions: np.ndarray
    names: tuple[str, ...]
    truncated: bool

    def __len__(self) -> int:
        return len(self.keys)

    @cached_property
    def digest(self) -> str:
        """SHA-1 over keys and byte ranges: two shards with the same digest give the same
        samples."""
        sha = hashlib.sha1("\n".join(self.keys).encode("utf-8", "surrogateescape"))
        for array in (self.start, self.offsets, self.sizes):
            sha.update(array.tobytes())
        return sha.hexdigest()

    def members(self, sample: int) -> list[tuple[str, int, int]]:
        """(extension, offset, size) of each member of one sample."""
        rows = range(self.start[sample], self.start[sample + 1])
        return [
            (self.names[self.extensions[m]], int(self.offsets[m]), int(self.sizes[m])) for m in rows
        ]


def expand(patterns: str | list[str]) -> list[Path]:
    """Shard paths of a glob, a brace range `{000..127}`, a folder, or a `::`-joined list of these,
    in sorted order.

    Raises UserError naming the pattern that matches nothing.
    """
    parts = patterns.split("::") if isinstance(patterns, str) else list(patterns)
    paths: list[Path] = []
    for part in parts:
        found = [path for text in _expand_braces(part) for path in _expand_one(text)]
        if not found:
            raise UserError(
                f"no shard matches {part!r} (looked from {Path.cwd()}); "
                "give a folder of .tar files, a glob such as 'data/*.tar' "
                "or a range such as 'data/{00000..00127}.tar'"
            )
        paths += found
    if len(set(paths)) < len(paths):
        twice = next(path for path in paths if paths.count(path) > 1)
        raise UserError(f"shard {twice} is listed twice; remove one of the patterns that match it")
    return paths


def _expand_one(text: str) -> list[Path]:
    path = Path(text)
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if glob.has_magic(text):
        return sorted(Path(name) for name in glob.glob(text, recursive=True))  # noqa: PTH207 absolute patterns
    if not path.exists():
        raise UserError(f"shard {text} does not exist (looked from {Path.cwd()})")
    return [path]


def _expand_braces(text: str) -> list[str]:
    match = _BRACES.search(text)
    if match is None:
        return [text]
    low, high = match.groups()
    width = len(low) if low.startswith("0") else 0
    numbers = range(int(low), int(high) + 1)
    return [
        name
        for n in numbers
        for name in _expand_braces(text[: match.start()] + f"{n:0{width}d}" + text[match.end() :])
    ]


def load_index(path: Path | str) -> ShardIndex:
    """The index of a shard, from its sidecar `<shard>.idx.npz`, which is made or renewed where it
    is missing or stale.

    A folder that cannot be written keeps its sidecars under the user's cache directory instead.
    """
    path = Path(path)
    stat = path.stat()
    identity = np.array([INDEX_VERSION, stat.st_size, stat.st_mtime_ns], dtype=np.int64)
    sidecars = [path.with_name(path.name + ".idx.npz"), _cache_path(path)]
    for sidecar in sidecars:
        index = _read_sidecar(sidecar, path, identity)
        if index is not None:
            return index
    index = build_index(path)
    for sidecar in sidecars:
        if _write_sidecar(sidecar, index, identity):
            break
    return index


def build_index(path: Path) -> ShardIndex:
    """Walk the tar headers once. Raises UserError where the file is no tar at all."""
    members, truncated = list_members(path)
    if truncated and not members:
        raise UserError(
            f"shard {path} is not a tar file or is cut inside its first member; replace it"
        )
    keys: list[str] = []
    start, extensions = [], []
    names: dict[str, int] = {}
    for row, (name, _, _) in enumerate(members):
        folder, _, base = name.rpartition("/")
        stem, _, extension = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if not keys or keys[-1] != key:
            keys.append(key)
            start.append(row)
        extensions.append(names.setdefault(extension.lower(), len(names)))
    return ShardIndex(
        path=path,
        keys=tuple(keys),
        start=np.array([*start, len(members)], dtype=np.int64),
        offsets=np.array([m[1] for m in members], dtype=np.int64),
        sizes=np.array([m[2] for m in members], dtype=np.int64),
        extensions=np.array(extensions, dtype=np.int32),
        names=tuple(names),
        truncated=truncated,
    )


def _cache_path(path: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha1(str(path.resolve()).encode()).hexdigest()
    return root / "clipx" / "index" / f"{name}.idx.npz"


def _read_sidecar(sidecar: Path, path: Path, identity: np.ndarray) -> ShardIndex | None:
    if not sidecar.exists():
        return None
    try:
        with sidecar.open("rb") as file, np.load(file, allow_pickle=False) as data:
            if not np.array_equal(data["identity"], identity):
                return None
            return ShardIndex(
                path=path,
                keys=_split(data["keys"]),
                start=data["start"],
                offsets=data["offsets"],
                sizes=data["sizes"],
                extensions=data["extensions"],
                names=_split(data["names"]),
                truncated=bool(data["truncated"]),
            )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error):
        return None  # a sidecar is only a cache: an unreadable one is made anew


def _write_sidecar(sidecar: Path, index: ShardIndex, identity: np.ndarray) -> bool:
    """True if written. Atomic, so that several processes may index the same shard at once."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        identity=identity,
        keys=_join(index.keys),
        start=index.start,
        offsets=index.offsets,
        sizes=index.sizes,
        extensions=index.extensions,
        names=_join(index.names),
        truncated=np.array(index.truncated),
    )
    try:
        sidecar.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=sidecar.parent) as folder:
            temporary = Path(folder) / sidecar.name
            temporary.write_bytes(buffer.getvalue())
            temporary.replace(sidecar)
    except OSError:
        return False
    return True


def _join(texts: tuple[str, ...]) -> np.ndarray:
    blob = "".join(f"{text}\0" for text in texts)  # no name in a tar holds a zero byte
    return np.frombuffer(blob.encode("utf-8", "surrogateescape"), dtype=np.uint8)


def _split(blob: np.ndarray) -> tuple[str, ...]:
    text = blob.tobytes().decode("utf-8", "surrogateescape")
    return tuple(text.split("\0")[:-1])
