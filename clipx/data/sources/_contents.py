"""What tells the contents of many files from others, without reading them at every start.

A digest is of contents alone, so that a copy on another machine has the same. When files were
changed last only decides whether their digest is computed anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path

from clipx.data.sample_files import read_ends
from clipx.data.shards import in_threads
from clipx.data.tar import SIDE
from clipx.files import write_whole

Entry = tuple[bytes, int, int]
"""path below the folder, bytes, time of the last change in ns"""


def content_digests(folder: Path, shards: Sequence[list[Entry]]) -> list[str]:
    """For each shard, the SHA-1 over the first and last SIDE bytes of its files, in order.

    Those of a folder are kept in the user's cache directory.
    """
    store = _store(folder)
    known = _recall(store)
    found: dict[str, str] = {}
    for entries in shards:
        stamp = hashlib.sha1(repr(entries).encode()).hexdigest()
        found[stamp] = known.get(stamp) or _digest(folder, entries)
    if found != known:
        _save(store, found)
    return list(found.values())


def _digest(folder: Path, entries: list[Entry]) -> str:
    root = os.fsencode(folder) + b"/"
    sha = hashlib.sha1()
    for ends in in_threads(lambda entry: read_ends(root + entry[0], SIDE), entries):
        sha.update(b"%d\0" % len(ends) + ends)
    return sha.hexdigest()


def _store(folder: Path) -> Path:
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    name = hashlib.sha1(os.fsencode(folder.resolve())).hexdigest()
    return root / "clipx" / "contents" / f"{name}.json"


def _recall(store: Path) -> dict[str, str]:
    try:
        known = json.loads(store.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # only a cache: a missing or damaged one is made anew
    if not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
        return {}
    return known


def _save(store: Path, found: dict[str, str]) -> None:
    """A disk that is full or read-only only costs the next start."""
    with contextlib.suppress(OSError):
        store.parent.mkdir(parents=True, exist_ok=True)
        write_whole(store, json.dumps(found))
