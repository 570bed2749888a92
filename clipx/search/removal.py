"""Pictures that were withdrawn: a list beside the embeddings, whose rows no search finds.

removed.jsonl has a line for each, `{"key": ...}`, with `"shard"` where only the samples of that
shard are meant. Rows are found by their keys, so that the list holds for an index that is built
anew and for a corpus that has grown.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.skip_list import Listed, absolute_name, parse_listed
from clipx.files import write_whole
from clipx.types import UserError

REMOVED = "removed.jsonl"


@dataclass(frozen=True)
class RemovalCounts:
    """num_listed: in the file; num_changed: of them, new in the list or taken back
    unknown: keys without an embedding; num_rows: embeddings that are removed now"""

    num_listed: int
    num_changed: int
    unknown: list[str]
    num_rows: int


def read_removals(path: Path) -> list[Listed]:
    """Each line is a key, or JSON with `key` and `shard` as in a list for data.skip. Raises
    UserError."""
    found: dict[Listed, None] = {}
    try:
        for number, text in enumerate(path.read_text("utf-8-sig").splitlines(), 1):
            line = text.strip()
            removal = _removal(line, f"{path}, line {number}") if line else None
            if removal is not None:
                found[removal] = None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read as a list of keys: {error}") from error
    if not found:
        raise UserError(f"{path} has no keys; give one a line, as in the column `key`")
    return list(found)


def _removal(line: str, where: str) -> Listed | None:
    """Raises UserError."""
    if not line.startswith("{"):
        return Listed(line)
    try:
        return parse_listed(line)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error
    except (ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"{where} is no JSON with `key` and `shard`, such as `clipx data verify --out` writes"
        ) from error


def stored_removals(folder: Path) -> list[Listed]:
    """Of the folder's list. Raises UserError if it cannot be read."""
    path = folder / REMOVED
    return read_removals(path) if path.exists() else []


def add_removals(folder: Path, table: Any, more: Iterable[Listed]) -> RemovalCounts:
    """Put keys on the folder's list. Raises UserError and OSError.

    table: metadata of the embeddings
    """
    listed = _as_in(table, more)
    before = stored_removals(folder)
    after = dict.fromkeys([*before, *listed])
    return _replace(folder, table, listed, before, list(after))


def restore_removals(folder: Path, table: Any, back: Iterable[Listed] | None) -> RemovalCounts:
    """Take keys from the folder's list, or all. Raises UserError and OSError."""
    before = stored_removals(folder)
    listed = before if back is None else _as_in(table, back)
    gone = set(listed)
    after = [removal for removal in before if removal not in gone]
    return _replace(folder, table, listed, before, after)


def _as_in(table: Any, removals: Iterable[Listed]) -> list[Listed]:
    """With their shards named as the metadata names them, from whichever folder the list names
    them. Later searches compare names as they are, since they may run in another folder."""
    names: dict[str, str] = {}
    for name in table.column("shard").unique().to_pylist():
        names[absolute_name(name)] = name
    found = []
    for removal in removals:
        shard = removal.shard
        if shard is not None:
            shard = names.get(absolute_name(shard), shard)
        found.append(Listed(removal.key, shard))
    return found


def _replace(
    folder: Path, table: Any, listed: list[Listed], before: list[Listed], after: list[Listed]
) -> RemovalCounts:
    path = folder / REMOVED
    if after:
        lines = []
        for removal in after:
            record = {"key": removal.key}
            if removal.shard is not None:
                record["shard"] = removal.shard
            lines.append(json.dumps(record, ensure_ascii=False))
        write_whole(path, "\n".join(lines) + "\n")
    else:
        path.unlink(missing_ok=True)
    keys = set(table.column("key").to_pylist())
    unknown = [removal.key for removal in listed if removal.key not in keys]
    num_changed = abs(len(after) - len(before))
    return RemovalCounts(len(listed), num_changed, unknown, len(rows_of(after, table)))


def removed_rows(folder: Path, table: Any) -> np.ndarray:
    """Rows on the folder's list, (n,) int64, in order. Raises UserError."""
    return rows_of(stored_removals(folder), table)


def rows_of(removals: Iterable[Listed], table: Any) -> np.ndarray:
    """(n,) int64, in order. table: metadata of the embeddings"""
    shards: dict[str, set[str | None]] = {}
    for removal in removals:
        shards.setdefault(removal.key, set()).add(removal.shard)
    if not shards:
        return np.empty(0, dtype=np.int64)
    import pyarrow as pa
    import pyarrow.compute

    pc: Any = pyarrow.compute
    keys = pa.array(list(shards), type=pa.string())
    candidates = np.flatnonzero(np.asarray(pc.is_in(table.column("key"), value_set=keys)))
    found = []
    places = table.select(["key", "shard"]).take(candidates).to_pylist()
    for row, place in zip(candidates.tolist(), places, strict=True):
        meant = shards[place["key"]]
        if None in meant or place["shard"] in meant:
            found.append(row)
    return np.array(found, dtype=np.int64)
