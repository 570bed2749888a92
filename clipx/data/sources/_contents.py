"""Digests of the contents of many files, which are not read again at every start.

A digest covers contents alone, so that a copy on another machine has the same. Times of the last
change only decide whether it is computed anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from clipx.data.sample_files import read_ends
from clipx.data.shards import in_threads
from clipx.data.tar import SIDE
from clipx.files import cache_folder, digest_path, write_whole

Entry = tuple[bytes, int, int]
"""path below the folder, bytes, time of the last change in ns"""


def content_digests(folder: Path, shards: Sequence[list[Entry]]) -> list[str]:
    """For each shard, the SHA-1 over the first and last SIDE bytes of its files, in order.

    They are stored in the user's cache directory, one file for each folder.
    """
    store = store_path(folder)
    try:
        known = json.loads(store.read_bytes())
    except (OSError, ValueError, RecursionError):
        known = {}  # only a cache: a missing or damaged one is written anew
    if not isinstance(known, dict) or not all(isinstance(v, str) for v in known.values()):
        known = {}
    root = os.fsencode(folder) + b"/"
    digests: dict[str, str] = {}
    for entries in shards:
        stamp = hashlib.sha1(repr(entries).encode()).hexdigest()
        digest = known.get(stamp)
        if not digest:
            content = hashlib.sha1()
            for ends in in_threads(lambda entry: read_ends(root + entry[0], SIDE), entries):
                content.update(b"%d\0" % len(ends) + ends)
            digest = content.hexdigest()
        digests[stamp] = digest
    if digests != known:
        with suppress(OSError):  # a disk that is full or read-only costs the next start
            store.parent.mkdir(parents=True, exist_ok=True)
            write_whole(store, json.dumps(digests))
    return list(digests.values())


def store_path(folder: Path) -> Path:
    return cache_folder("contents") / f"{digest_path(folder)}.json"
