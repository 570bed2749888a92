"""What is in each of many shards, without holding the index of any: all that the order needs.

For 200,000 shards that is a table of some megabytes, kept in the user's cache directory, so that a
run that starts again asks no sidecar for what it knew already.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clipx.data.index import Head, load_head
from clipx.data.remote import ShardCache, ShardFile, is_remote
from clipx.data.sample import BadSample
from clipx.data.shards import in_threads, told_sizes
from clipx.types import UserError

CATALOG_VERSION = 1
TOLD = "sizes.json "
"""Begins the digest of a shard whose samples were not looked at, but told."""
Advance = Callable[[], None]


@dataclass(frozen=True)
class Catalog:
    """heads: of each file, in order; a file that is no tar has no samples, and is one of
    `faults`."""

    files: tuple[ShardFile, ...]
    heads: tuple[Head, ...]
    faults: tuple[BadSample, ...]


def open_catalog(
    files: Sequence[ShardFile], cache: ShardCache, advance: Advance = lambda: None
) -> Catalog:
    """What is known of these shards; what is not is read, many shards at a time."""
    store = _store_path(files)
    known = _load(store)
    new = [file for file in files if _identity(file) not in known]
    told = told_sizes([file for file in new if is_remote(file.url)])
    faults: dict[str, BadSample] = {}

    def look(file: ShardFile) -> Head:
        try:
            return _head(file, told.get(file.url), cache)
        except (UserError, OSError) as error:
            faults[file.url] = _fault(file.url, type(error).__name__, str(error))
            return Head(0, "unreadable", truncated=False)
        finally:
            advance()

    for file, head in zip(new, in_threads(look, new), strict=True):
        if file.url not in faults:  # what could not be read may be there the next time
            known[_identity(file)] = head
    if new:
        _save(store, known)
    heads = tuple(known.get(_identity(file), Head(0, "unreadable", False)) for file in files)
    for file, head in zip(files, heads, strict=True):
        if head.truncated:
            text = f"the tar ends early: the samples after its first {head.samples} are missing"
            faults[file.url] = _fault(file.url, "TruncatedTar", text)
    return Catalog(tuple(files), heads, tuple(faults[f.url] for f in files if f.url in faults))


def _head(file: ShardFile, told: int | None, cache: ShardCache) -> Head:
    if not is_remote(file.url):
        return load_head(Path(file.url))
    if told is not None:
        identity = f"{file.size} {file.stamp} {told}"
        return Head(told, TOLD + hashlib.sha1(identity.encode()).hexdigest(), truncated=False)
    return load_head(cache.path(file))


def _fault(shard: str, error: str, message: str) -> BadSample:
    return BadSample(shard, key="", position=-1, stage="shard", error=error, message=message)


_Identity = tuple[str, int, str]


def _identity(file: ShardFile) -> _Identity:
    return file.url, file.size, file.stamp


def _store_path(files: Sequence[ShardFile]) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    base = str(Path.cwd()) if any(not Path(f.url).is_absolute() for f in files) else ""
    names = hashlib.sha1("\n".join([base, *(file.url for file in files)]).encode()).hexdigest()
    return root / "clipx" / "catalogs" / f"{names}.json"


def _load(path: Path) -> dict[_Identity, Head]:
    try:
        data = json.loads(path.read_bytes())
        if data["version"] != CATALOG_VERSION:
            return {}
        return {(url, size, stamp): Head(*head) for url, size, stamp, *head in data["shards"]}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # only a cache: an unreadable one is made anew


def _save(path: Path, known: dict[_Identity, Head]) -> None:
    shards = [[*identity, h.samples, h.digest, h.truncated] for identity, h in known.items()]
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps({"version": CATALOG_VERSION, "shards": shards}))
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)  # a full or read-only disk: the next start looks again
