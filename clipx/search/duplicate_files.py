"""Near duplicates as files: a list for data.skip, and a report of the groups."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipx.files import write_whole
from clipx.search.metadata import column_of
from clipx.search.near_duplicates import DuplicateGroup
from clipx.types import UserError


def write_duplicates(
    groups: Sequence[DuplicateGroup], metadata: Any, skip_file: Path, groups_file: Path
) -> int:
    """Write both files. Returns the number of samples in the skip list: a dropped sample that has
    the shard and key of a kept one is not listed, since training would skip both. Raises UserError.

    metadata: a pyarrow table, whose rows are those of the groups
    """
    lines = []
    reports = []
    for group in groups:
        kept = _samples(metadata, group.kept)
        dropped = _samples(metadata, group.dropped)
        nearest = _samples(metadata, group.nearest)
        kept_places = {(sample["shard"], sample["key"]) for sample in kept}
        for sample, like, similarity in zip(dropped, nearest, group.similarity, strict=True):
            sample["similarity"] = round(similarity, 4)
            sample["like"] = like["key"]
            if (sample["shard"], sample["key"]) not in kept_places:
                message = f"similarity {similarity:.4f} to {like['key']} of {like['shard']}"
                lines.append(
                    {
                        "shard": sample["shard"],
                        "key": sample["key"],
                        "stage": "dedup",
                        "message": message,
                    }
                )
        reports.append({"size": group.size, "kept": kept, "dropped": dropped})
    _write_lines(skip_file, lines)
    _write_lines(groups_file, reports)
    return len(lines)


def _samples(metadata: Any, rows: Sequence[int]) -> list[dict[str, Any]]:
    taken = metadata.select(["key", "shard"]).take(list(rows)).to_pylist()
    return [{"row": row, **sample} for row, sample in zip(rows, taken, strict=True)]


def _write_lines(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Raises UserError."""
    text = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    try:
        write_whole(path, text)
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def areas(metadata: Any) -> Any:
    """(N,) int64 pixels of each picture, 0 where they are not known. Raises UserError."""
    width = column_of(metadata, "width").fill_null(0).to_numpy()
    height = column_of(metadata, "height").fill_null(0).to_numpy()
    return width * height
