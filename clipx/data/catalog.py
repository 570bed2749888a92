"""A summary of each of many shards, without holding their indexes: all that the order needs.

For 200,000 shards that is a table of some megabytes. It is kept in the user's cache directory, so
that the next run does not open the index of every shard again.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from clipx.data.image_formats import EXTENSIONS
from clipx.data.remote import is_remote
from clipx.data.sample import BadSample
from clipx.data.shard_cache import ShardCache
from clipx.data.shards import declared_sizes, in_threads
from clipx.data.tar_index import Head, load_head
from clipx.data.transfer.common import ShardFile
from clipx.files import cache_folder, digest_path, replacing
from clipx.types import UserError

_VERSION = 2
_DIGEST_BYTES = 81  # two SHA-1 in hexadecimal and a colon
_COLUMNS = ("samples", "digests", "truncated")  # of a stored catalog
DECLARED = "sizes.json "
"""Prefix of the digest of a shard that was not opened, since sizes.json gives its samples."""
IMAGE_RULE = f"the first of {', '.join(EXTENSIONS)} is used"
"""Which image of a sample that has several is used, in all sources."""


@dataclass(frozen=True)
class Catalog:
    """The files in order. One that is not a tar has no samples, and is one of `faults`.

    samples: (shards,) int64; digests: (shards,) bytes; truncated: (shards,) bool
    warnings: shard -> (damage, samples with more than one image), see Head; few have any
    """

    files: tuple[ShardFile, ...]
    samples: np.ndarray
    digests: np.ndarray
    truncated: np.ndarray
    warnings: dict[int, tuple[str, int]] = field(default_factory=dict)
    faults: tuple[BadSample, ...] = ()

    def digest(self, shard: int) -> str:
        return self.digests[shard].decode()


def open_catalog(
    files: Sequence[ShardFile], cache: ShardCache, advance: Callable[[], None] = lambda: None
) -> Catalog:
    """Summarize these shards. New ones, not in the stored catalog, are opened, many at a time.

    advance: called after each shard that is opened
    """
    store = store_path(files)
    catalog, known = _load(store, files)
    new = np.flatnonzero(~known).tolist()
    new_remote = [files[shard] for shard in new if is_remote(files[shard].url)]
    declared = declared_sizes(new_remote)
    unreadable: dict[int, BadSample] = {}

    def read_head(shard: int) -> Head:
        file = files[shard]
        try:
            if not is_remote(file.url):
                return load_head(Path(file.url))
            if file.url in declared:
                state = f"{file.size} {file.stamp} {declared[file.url]}"
                digest = DECLARED + hashlib.sha1(state.encode()).hexdigest()
                return Head(declared[file.url], digest, truncated=False)
            descriptor = cache.open(file)
            try:
                return load_head(cache.place(file), stamp=remote_stamp(file), descriptor=descriptor)
            finally:
                os.close(descriptor)
        except (UserError, OSError) as error:  # one bad shard must not end the start of a run
            unreadable[shard] = _fault(file, type(error).__name__, str(error))
            return Head(0, "unreadable", truncated=False)
        finally:
            advance()

    for shard, head in zip(new, in_threads(read_head, new), strict=True):
        catalog.samples[shard] = head.samples
        catalog.digests[shard] = head.digest.encode()
        catalog.truncated[shard] = head.truncated
        if head.damage or head.second_images:
            catalog.warnings[shard] = (head.damage, head.second_images)
        known[shard] = shard not in unreadable  # it may be readable the next time
    if new:
        save(store, catalog, keep=known)
    return replace(catalog, faults=_faults(catalog, unreadable))


def remote_stamp(file: ShardFile) -> str:
    """Stamp for the index of a remote file, whose local copy has a new time after each use."""
    return f"{file.size}-{file.stamp}"


def _faults(catalog: Catalog, unreadable: Mapping[int, BadSample]) -> tuple[BadSample, ...]:
    """Faults of whole shards, in the order of the files."""
    shards = {*np.flatnonzero(catalog.truncated).tolist(), *catalog.warnings, *unreadable}
    faults = []
    for shard in sorted(shards):
        file = catalog.files[shard]
        if shard in unreadable:
            faults.append(unreadable[shard])
            continue
        if catalog.truncated[shard]:
            kept = catalog.samples[shard]
            message = f"the tar ends early: the samples after its first {kept} are missing"
            faults.append(_fault(file, "TruncatedTar", message))
        damage, second_images = catalog.warnings.get(shard, ("", 0))
        if damage:
            faults.append(_fault(file, "DamagedTar", damage))
        if second_images:
            message = f"{second_images} samples have more than one image; {IMAGE_RULE}"
            faults.append(_fault(file, "SecondImage", message))
    return tuple(faults)


def _fault(file: ShardFile, error: str, message: str) -> BadSample:
    return BadSample(file.url, key="", position=-1, stage="shard", error=error, message=message)


# --- The stored catalog ---


def store_path(files: Sequence[ShardFile]) -> Path:
    """Where the catalog of these files is stored: one for the folder of the first."""
    folder = files[0].url.rpartition("/")[0]
    if is_remote(files[0].url):
        name = hashlib.sha1(folder.encode("utf-8", "surrogateescape")).hexdigest()
    else:
        name = digest_path(Path(folder))
    return cache_folder("catalogs") / f"{name}.npz"


def _identities(files: Sequence[ShardFile]) -> np.ndarray:
    """(shards,) bytes: which shard it is, and in which state."""
    identities = []
    for file in files:
        text = f"{file.url}\n{file.size}\n{file.stamp}"
        identities.append(text.encode("utf-8", "surrogateescape"))
    return np.array(identities, dtype=np.bytes_)


def _load(store: Path, files: Sequence[ShardFile]) -> tuple[Catalog, np.ndarray]:
    """Returns a catalog, zero where an earlier run has stored nothing, and (shards,) bool: True
    where it has."""
    count = len(files)
    catalog = Catalog(
        tuple(files),
        samples=np.zeros(count, dtype=np.int64),
        digests=np.zeros(count, dtype=f"S{_DIGEST_BYTES}"),
        truncated=np.zeros(count, dtype=np.bool_),
    )
    unknown = np.zeros(count, dtype=np.bool_)
    identities = _identities(files)
    try:
        # Opened here: np.load leaves a file open that is not an archive.
        with store.open("rb") as file, np.load(file, allow_pickle=False) as data:
            if data["version"] != _VERSION:
                return catalog, unknown
            stored = dict(data)
            warnings = json.loads(stored["warnings"].tobytes())
            old_identities = stored["identities"]
            columns = [stored[name] for name in _COLUMNS]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return catalog, unknown  # only a cache: a missing or unreadable one is written anew

    # Rows of the stored catalog, -1 for a shard that it lacks.
    if np.array_equal(old_identities, identities):
        old_row = np.arange(count)  # nearly always, and ten times as fast as the look-up
    else:
        row_of = {identity: row for row, identity in enumerate(old_identities.tolist())}
        old_row = np.array([row_of.get(identity, -1) for identity in identities.tolist()])
    known = old_row >= 0
    for name, column in zip(_COLUMNS, columns, strict=True):
        getattr(catalog, name)[known] = column[old_row[known]]
    if warnings:
        shard_of = {row: shard for shard, row in enumerate(old_row.tolist())}
        for row, damage, second_images in warnings:
            if row in shard_of:
                catalog.warnings[shard_of[row]] = (damage, second_images)
    return catalog, known


def save(store: Path, catalog: Catalog, *, keep: np.ndarray) -> None:
    """Store a catalog for the next `open_catalog`. keep: (shards,) bool, the rows to store"""
    row = np.cumsum(keep) - 1  # of each shard in the stored catalog
    warnings = []
    for shard, (damage, second_images) in catalog.warnings.items():
        if keep[shard]:
            warnings.append((int(row[shard]), damage, second_images))
    arrays = {name: getattr(catalog, name)[keep] for name in _COLUMNS}
    arrays["version"] = np.array(_VERSION)
    arrays["identities"] = _identities(catalog.files)[keep]
    arrays["warnings"] = np.frombuffer(json.dumps(warnings).encode(), dtype=np.uint8)
    with suppress(OSError):  # a disk that is full or read-only costs the next start
        store.parent.mkdir(parents=True, exist_ok=True)
        with replacing(store) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
