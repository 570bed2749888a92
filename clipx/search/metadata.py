"""Metadata of samples as Parquet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.files import replacing
from clipx.search.embeddings import COLUMNS


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as Parquet. A column of different types becomes one of texts. Raises OSError."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = dict.fromkeys(COLUMNS)
    for row in rows:
        names |= dict.fromkeys(row)
    kinds: dict[str, Any] = dict.fromkeys(("key", "caption", "shard"), pa.string())
    kinds |= dict.fromkeys(("source_shard", "sample", "width", "height"), pa.int64())
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        types = {type(value) for value in values if value is not None}
        if types == {int, float}:
            values = [None if value is None else float(value) for value in values]
        elif len(types) > 1 or _too_large(values):
            values = [None if value is None else str(value) for value in values]
        columns[name] = pa.array(values, type=kinds.get(name))
    with replacing(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


def _too_large(values: list[Any]) -> bool:
    """Whether a number does not fit into 64 bits."""
    return any(isinstance(value, int) and not -(2**63) <= value < 2**63 for value in values)
