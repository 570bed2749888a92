"""What is in each of many shards, without holding the index of any: all that the order needs.

For 200,000 shards that is a table of some megabytes, kept in the user's cache directory, so that a
run that starts again asks no sidecar for what it knew already.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from clipx.data.decode import EXTENSIONS
from clipx.data.index import load_head
from clipx.data.remote import is_remote
from clipx.data.sample import BadSample
from clipx.data.shard_cache import ShardCache
from clipx.data.shard_index import Head
from clipx.data.shards import in_threads, told_sizes
from clipx.data.transfer.common import ShardFile
from clipx.files import write_whole
from clipx.types import UserError

_VERSION = 2
_DIGEST_BYTES = 81  # two SHA-1 in hexadecimal and a colon
TOLD = "sizes.json "
"""Begins the digest of a shard whose samples were not looked at, but told."""
IMAGE_RULE = f"the first of {', '.join(EXTENSIONS)} is used"
"""Which image of a sample that has several, in all sources."""


@dataclass(frozen=True)
class Catalog:
    """What is known of each file, in order. A file that is no tar has no samples, and is one of
    `faults`.

    samples: (shards,) int64; digests: (shards,) bytes; truncated: (shards,) bool
    warnings: shard -> (damage, samples with more than one image), see Head; few have any
    """

    files: tuple[ShardFile, ...]
    samples: np.ndarray
    digests: np.ndarray
    truncated: np.ndarray
    warnings: Mapping[int, tuple[str, int]] = field(default_factory=dict)
    faults: tuple[BadSample, ...] = ()

    def digest(self, shard: int) -> str:
        return self.digests[shard].decode()


def open_catalog(
    files: Sequence[ShardFile], cache: ShardCache, advance: Callable[[], None] = lambda: None
) -> Catalog:
    """What is known of these shards; what is not is read, many shards at a time."""
    store = store_path(files)
    known, samples, digests, truncated, warnings = _recall(store, files)
    places = np.flatnonzero(~known).tolist()
    new = [files[place] for place in places]
    told = told_sizes([file for file in new if is_remote(file.url)])
    unreadable: dict[str, BadSample] = {}

    def look(file: ShardFile) -> Head:
        try:
            return _head(file, told.get(file.url), cache)
        except (UserError, OSError) as error:
            unreadable[file.url] = _fault(file.url, type(error).__name__, str(error))
            return Head(0, "unreadable", truncated=False)
        finally:
            advance()

    for place, head in zip(places, in_threads(look, new), strict=True):
        samples[place], truncated[place] = head.samples, head.truncated
        digests[place] = head.digest.encode()
        if head.damage or head.second_images:
            warnings[place] = (head.damage, head.second_images)
        known[place] = files[place].url not in unreadable  # may be there the next time
    if new:
        save(store, Catalog(tuple(files), samples, digests, truncated, warnings), keep=known)
    faults = _faults(files, samples, truncated, warnings, unreadable)
    return Catalog(tuple(files), samples, digests, truncated, warnings, faults)


def _faults(
    files: Sequence[ShardFile],
    samples: np.ndarray,
    truncated: np.ndarray,
    warnings: Mapping[int, tuple[str, int]],
    unreadable: Mapping[str, BadSample],
) -> tuple[BadSample, ...]:
    """What is wrong with whole shards, in the order of the files."""
    by_place: dict[int, list[BadSample]] = {}
    for place in np.flatnonzero(truncated).tolist():
        text = f"the tar ends early: the samples after its first {samples[place]} are missing"
        by_place[place] = [_fault(files[place].url, "TruncatedTar", text)]
    for place, (damage, second_images) in warnings.items():
        found = by_place.setdefault(place, [])
        if damage:
            found.append(_fault(files[place].url, "DamagedTar", damage))
        if second_images:
            text = f"{second_images} samples have more than one image; {IMAGE_RULE}"
            found.append(_fault(files[place].url, "SecondImage", text))
    if unreadable:
        for place, file in enumerate(files):
            if file.url in unreadable:
                by_place[place] = [unreadable[file.url]]
    return tuple(fault for place in sorted(by_place) for fault in by_place[place])


def _head(file: ShardFile, told: int | None, cache: ShardCache) -> Head:
    if not is_remote(file.url):
        return load_head(Path(file.url))
    if told is not None:
        state = f"{file.size} {file.stamp} {told}"
        return Head(told, TOLD + hashlib.sha1(state.encode()).hexdigest(), truncated=False)
    descriptor = cache.open(file)
    try:
        return load_head(cache.place(file), stamp=remote_stamp(file), descriptor=descriptor)
    finally:
        os.close(descriptor)


def remote_stamp(file: ShardFile) -> str:
    """For the index of a remote file: the time of its copy changes with each use."""
    return f"{file.size}-{file.stamp}"


def _fault(shard: str, error: str, message: str) -> BadSample:
    return BadSample(shard, key="", position=-1, stage="shard", error=error, message=message)


def store_path(files: Sequence[ShardFile]) -> Path:
    """Where the catalog of these files is kept: one for the folder of the first."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = files[0].url.rpartition("/")[0]
    folder = folder if is_remote(files[0].url) else str(Path(folder).resolve())
    name = hashlib.sha1(folder.encode("utf-8", "surrogateescape")).hexdigest()
    return root / "clipx" / "catalogs" / f"{name}.npz"


def _identities(files: Sequence[ShardFile]) -> np.ndarray:
    """(shards,) bytes: what a shard is known again by."""
    texts = [f"{file.url}\n{file.size}\n{file.stamp}" for file in files]
    return np.array([text.encode("utf-8", "surrogateescape") for text in texts], dtype=np.bytes_)


def _recall(
    store: Path, files: Sequence[ShardFile]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[int, tuple[str, int]]]:
    """(known, samples, digests, truncated, warnings) of each file, as a run before has left
    them."""
    count, mine = len(files), _identities(files)
    samples, truncated = np.zeros(count, dtype=np.int64), np.zeros(count, dtype=np.bool_)
    digests = np.zeros(count, dtype=np.dtype(f"S{_DIGEST_BYTES}"))
    try:
        # Opened here, for np.load leaves a file open that is no archive.
        with store.open("rb") as file, np.load(file, allow_pickle=False) as data:
            if data["version"] != _VERSION:
                raise ValueError("of another version")
            old = data["identities"]
            stored = json.loads(data["warnings"].tobytes())
            warnings = {place: (damage, images) for place, damage, images in stored}
            if np.array_equal(old, mine):  # nearly always: ten times as fast as the look-up
                columns = (data["samples"], data["digests"], data["truncated"])
                known = np.ones(count, dtype=np.bool_)
                return known, *(column.copy() for column in columns), warnings
            place = dict(zip(old.tolist(), range(len(old)), strict=True))
            at = np.array([place.get(identity, -1) for identity in mine.tolist()])
            known = at >= 0
            samples[known] = data["samples"][at[known]]
            digests[known] = data["digests"][at[known]]
            truncated[known] = data["truncated"][at[known]]
            moved = {n: warnings[was] for n, was in enumerate(at.tolist()) if was in warnings}
            return known, samples, digests, truncated, moved
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        # Only a cache: a missing or unreadable one is made anew.
        return np.zeros(count, dtype=np.bool_), samples, digests, truncated, {}


def save(store: Path, catalog: Catalog, *, keep: np.ndarray) -> None:
    """For `open_catalog` to find. A disk that is full or read-only only costs the next start.

    keep: (shards,) bool
    """
    place = np.cumsum(keep) - 1
    warnings = [
        (int(place[shard]), *warning) for shard, warning in catalog.warnings.items() if keep[shard]
    ]
    buffer = io.BytesIO()
    np.savez(
        buffer,
        version=np.array(_VERSION),
        identities=_identities(catalog.files)[keep],
        samples=catalog.samples[keep],
        digests=catalog.digests[keep],
        truncated=catalog.truncated[keep],
        warnings=np.frombuffer(json.dumps(warnings).encode(), dtype=np.uint8),
    )
    with contextlib.suppress(OSError):  # a disk that is full or read-only costs the next start
        store.parent.mkdir(parents=True, exist_ok=True)
        write_whole(store, buffer.getvalue())
