"""Rows of Parquet files, with paths of images or with the images themselves.

Paths and text are held as Arrow tables. Images stay in the file: a row group is read when one of
its samples is needed, and the latest ones are kept, up to CACHE_BYTES in each process.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from clipx.data.sample import SampleError
from clipx.data.sources._arrow import as_bytes, errors, group_digest, is_image, is_number, is_text
from clipx.data.sources._rows import (
    PathRows,
    Rows,
    check_names,
    decode_text,
    image_column,
    missing_column,
)
from clipx.types import UserError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

MAX_GROUP_BYTES = 2**30
CACHE_BYTES = 2**30


class ArrowColumn:
    """A column of a table that all shards of a file share: Arrow would pickle the whole table for
    a slice."""

    def __init__(self, column: pyarrow.ChunkedArray) -> None:
        self._column = column

    def __getitem__(self, row: int) -> Any:
        return self._column[row].as_py()


@dataclass(frozen=True)
class ImageRows(Rows):
    """A row group whose column of images is binary, or Hugging Face's struct of bytes and path."""

    file: Path
    group: int
    columns: tuple[str, ...]  # the image, then texts and numbers
    image_columns: tuple[str, ...]

    def path(self, row: int, column: str | None = None) -> str:
        return ""  # keys must not cost the reading of the file

    def image(self, row: int, column: str | None = None) -> bytes | None:
        if column is None or column == self.columns[0]:
            column = self.columns[0]
            table = self._table
        elif column in self.image_columns:
            table = self._read((column,))
        else:
            raise missing_column(column, self.image_columns)
        value = table.column(column)[row].as_py()
        image = value["bytes"] if isinstance(value, dict) else value
        if image is None:
            raise SampleError("image", f"the row has no bytes in column {column!r}")
        return image

    def text(self, row: int) -> dict[str, Any]:
        assert 0 <= row < self.size
        table = self._table
        values = {}
        for name in self.columns[1:]:
            value = table.column(name)[row].as_py()
            if value is not None:
                values[name] = decode_text(value)
        return values

    @property
    def _table(self) -> pyarrow.Table:
        return self._read(self.columns)

    def _read(self, columns: tuple[str, ...]) -> pyarrow.Table:
        table = _cache(os.getpid()).table(self.file, self.group, columns)
        # The file may have been replaced by one with other row groups.
        if table.num_rows != self.size:
            raise OSError(f"{self.file} has changed since it was opened")
        return table


def open_rows(
    file: Path, wanted: Sequence[str], *, shard_samples: int
) -> list[PathRows] | list[ImageRows]:
    """Read the shards of a file. Raises UserError."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"table {file} needs pyarrow: pip install 'clipx-train[table]'") from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            check_names(file, schema.names)
            texts = []
            numbers = []  # for labels
            images = []
            others = []
            for field in schema:
                if is_text(field.type):
                    texts.append(field.name)
                elif is_number(field.type):
                    numbers.append(field.name)
                    others.append(f"{field.name!r} of {field.type}")
                elif is_image(field.type):
                    images.append(field.name)
                else:
                    others.append(f"{field.name!r} of {field.type}")
            # A column of images comes before one of paths, whose files may be elsewhere.
            if not set(images).isdisjoint(wanted):
                column = image_column(file, images, wanted, "")
                return _image_shards(file, opened.metadata, column, images, texts, numbers)
            hint = f" and, neither text nor bytes, {', '.join(others)}" if others else ""
            column = image_column(file, (*images, *texts), wanted, hint)
            table = as_bytes(opened.read([*texts, *numbers], use_threads=False))
    except UserError:
        raise
    except errors() as error:
        raise UserError(f"table {file} cannot be read as Parquet: {error}") from error
    fields = frozenset(texts) - {column}
    columns = {name: ArrowColumn(table.column(name)) for name in table.column_names}
    shards = []
    # Paths and text fit into memory, so shards may be of any size.
    for first in range(0, table.num_rows, shard_samples):
        rows = table.slice(first, shard_samples)
        digest = _digest_of_rows(rows, column, texts)
        if numbers:
            # After a colon, so that a run from before numbers were read resumes once.
            digest += f":{_digest_of_rows(rows, column, numbers)}"
        shards.append(PathRows(first, rows.num_rows, fields, digest, columns, column, start=first))
    return shards


def _digest_of_rows(rows: pyarrow.Table, image_column: str, names: Sequence[str]) -> str:
    sha = hashlib.sha1(ascii(image_column).encode())
    for name in names:
        values = decode_text(rows.column(name).to_pylist())
        sha.update(ascii((name, values)).encode())
    return sha.hexdigest()


def _image_shards(
    file: Path,
    metadata: Any,
    column: str,
    images: Sequence[str],
    texts: Sequence[str],
    numbers: Sequence[str],
) -> list[ImageRows]:
    """A shard for each row group. Reads the footer and the ends of the columns only."""
    shards = []
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = []
        size = 0
        for index in range(group.num_columns):
            chunk = group.column(index)
            chunks.append(chunk)
            size += chunk.total_uncompressed_size
        if size > MAX_GROUP_BYTES:
            raise UserError(
                f"row group {number} of table {file} has {size / 2**30:.1f} GiB; samples are drawn "
                f"at random, so at most {MAX_GROUP_BYTES / 2**30:.0f} GiB is read at once: write "
                "it with smaller row groups (row_group_size=1000), or as WebDataset shards"
            )
        rows = group.num_rows
        if rows:
            digest = group_digest(file, chunks, column, tuple(texts), rows)
            columns = (column, *texts, *numbers)
            shard = ImageRows(
                first, rows, frozenset(texts), digest, file, number, columns, tuple(images)
            )
            shards.append(shard)
        first += rows
    return shards


class _GroupCache:
    """The row groups that were read last, up to CACHE_BYTES of them, at least one."""

    def __init__(self) -> None:
        self._lock = Lock()  # two threads must not read the same group, nor use one open file
        self._tables: OrderedDict[tuple[Path, int, tuple[str, ...]], pyarrow.Table] = OrderedDict()
        self._bytes = 0
        self._open = lru_cache(maxsize=64)(_open)

    def table(self, file: Path, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
        """Raises OSError."""
        with self._lock:
            key = (file, group, columns)
            table = self._tables.get(key)
            if table is None:
                try:
                    opened = self._open(file)
                    table = as_bytes(opened.read_row_group(group, list(columns), use_threads=False))
                except errors() as error:
                    message = f"row group {group} of {file} cannot be read: {error}"
                    raise OSError(message) from error
                self._tables[key] = table
                self._bytes += table.nbytes
                while self._bytes > CACHE_BYTES and len(self._tables) > 1:
                    _, oldest = self._tables.popitem(last=False)
                    self._bytes -= oldest.nbytes
            self._tables.move_to_end(key)  # the last to be dropped
            return table


def _open(file: Path) -> parquet.ParquetFile:
    from pyarrow import parquet

    # pre_buffer would start threads, which a forked process does not have.
    return parquet.ParquetFile(file, pre_buffer=False)


@lru_cache(maxsize=1)
def _cache(process: int) -> _GroupCache:
    """One for each process: the lock of a parent may be held while it forks."""
    return _GroupCache()
