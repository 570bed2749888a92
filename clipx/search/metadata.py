"""Metadata of samples as Parquet, a row for each embedding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipx.files import replacing
from clipx.search.embeddings import COLUMNS
from clipx.types import UserError


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Rows as Parquet. A column of different types becomes one of texts. Raises OSError."""
    pa, pq = import_parquet()
    names = dict.fromkeys(COLUMNS)
    for row in rows:
        names |= dict.fromkeys(row)
    kinds: dict[str, Any] = dict.fromkeys(("key", "caption", "shard"), pa.string())
    kinds |= dict.fromkeys(("source_shard", "sample", "width", "height"), pa.int64())
    columns = {}
    for name in names:
        values = [row.get(name) for row in rows]
        # A column of Parquet has one type. JSON may write 3.0 as 3, so that numbers of both kinds
        # are floats; other mixtures become text.
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


def read_metadata(files: list[Path]) -> Any:
    """One pyarrow table of all parts. A column whose type differs between parts becomes text.
    Raises UserError."""
    pa, pq = import_parquet()
    tables = []
    for path in files:
        try:
            tables.append(pq.read_table(path))
        except (OSError, pa.ArrowInvalid) as error:
            raise UserError(f"{path} cannot be read: {error}; delete it and embed again") from error
    types: dict[str, set[Any]] = {}
    for table in tables:
        for field in table.schema:
            if field.type != pa.null():  # that of a part in which no sample has the field
                types.setdefault(field.name, set()).add(field.type)
    unified = []
    for table in tables:
        columns = {}
        for name, kinds in types.items():
            kind = next(iter(kinds)) if len(kinds) == 1 else pa.string()
            if name in table.column_names:
                columns[name] = table.column(name).cast(kind)
            else:
                columns[name] = pa.nulls(len(table), kind)
        unified.append(pa.table(columns))
    return pa.concat_tables(unified)


def column_of(metadata: Any, name: str) -> Any:
    """A column of a pyarrow table. Raises UserError if there is none of this name."""
    if name not in metadata.column_names:
        columns = ", ".join(metadata.column_names)
        raise UserError(f"there is no column {name}; there are {columns}")
    return metadata.column(name)


def import_parquet() -> tuple[Any, Any]:
    """(pyarrow, pyarrow.parquet). Raises UserError where they are not installed."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise UserError("metadata needs pyarrow: pip install 'clipx-train[search]'") from error
    return pa, pq
