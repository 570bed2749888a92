"""Lists of known bad samples, which are replaced unread."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from clipx.data.corpus import Corpus, SkipList
from clipx.data.remote import is_remote
from clipx.types import UserError


def read_skip_list(path: Path, corpus: Corpus) -> tuple[SkipList, int]:
    """(samples of a quarantine file that are in this corpus, number of lines that are not). Raises
    UserError."""
    numbers: dict[str, list[int]] = {}  # a shard may be in several sources
    for number in range(corpus.num_shards):
        numbers.setdefault(absolute_name(corpus.name(number)), []).append(number)
    skip: dict[int, set[str]] = {}
    num_unknown = 0
    try:
        for text in path.read_text(encoding="utf-8").splitlines():
            listed = parse_listed(text)
            if listed is None:
                continue
            if listed.shard is None:
                raise ValueError(f"the sample {listed.key} without its shard")
            key = listed.key
            shard = absolute_name(listed.shard)
            num_unknown += shard not in numbers
            for number in numbers.get(shard, []):
                skip.setdefault(number, set()).add(key)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(
            f"data.skip {path} cannot be read as JSON lines with `shard` and `key`, such as "
            f"`clipx data verify --out` writes: {type(error).__name__}: {error}"
        ) from error
    return skip, num_unknown


@dataclass(frozen=True)
class Listed:
    """A sample, or the samples of all shards that have the key."""

    key: str
    shard: str | None = None


def parse_listed(line: str) -> Listed | None:
    """The sample that a line of a quarantine file names; None if it names none that is bad. Raises
    ValueError, KeyError, TypeError and RecursionError."""
    record = json.loads(line)
    key = record["key"]
    shard = record.get("shard")
    if not key or record.get("stage") == "key":
        return None  # a repeated key also names its first sample, which is good
    if not (isinstance(key, str) and isinstance(shard, str | None)):
        raise TypeError(f"key {key!r} and shard {shard!r} have to be texts")
    return Listed(key, shard)


def absolute_name(shard: str) -> str:
    """One name for a local shard, whichever folder it was named from."""
    if is_remote(shard):
        return shard
    folder, name = os.path.split(shard)
    return os.path.join(_resolved(folder), name)  # noqa: PTH118 names may have any bytes


@lru_cache(maxsize=1024)  # shards of a corpus are in few folders, and each look-up asks the disk
def _resolved(folder: str) -> str:
    return os.path.realpath(folder)
