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
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from clipx.data.sample import SampleError
from clipx.data.sources._arrow import as_bytes, errors, group_digest, is_image, is_text
from clipx.data.sources._rows import check_names, decode_text, image_column
from clipx.types import UserError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

MAX_GROUP_BYTES = 2**30
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class PathRows:
    """See `Rows`. The rows first ... first + size - 1 of a table that all shards of a file share:
    Arrow would pickle the whole table for a slice."""

    table: pyarrow.Table
    image_column: str
    first: int
    size: int

    def __len__(self) -> int:
        return self.size

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.table.column_names) - {self.image_column}

    @cached_property
    def digest(self) -> str:
        sha = hashlib.sha1(ascii(self.image_column).encode())
        for name in self.table.column_names:
            values = self.table.column(name).slice(self.first, self.size).to_pylist()
            sha.update(ascii((name, decode_text(values))).encode())
        return sha.hexdigest()

    def path(self, row: int) -> str:
        path = _values(self.table, [self.image_column], self.first + row).get(self.image_column, "")
        return os.fsdecode(path) if isinstance(path, bytes) else str(path)

    def image(self, row: int) -> bytes | None:
        return None

    def text(self, row: int) -> dict[str, Any]:
        assert 0 <= row < self.size
        names = [name for name in self.table.column_names if name != self.image_column]
        return _values(self.table, names, self.first + row)


@dataclass(frozen=True)
class ImageRows:
    """See `Rows`. A row group whose column of images is binary, or Hugging Face's struct of bytes
    and path."""

    file: Path
    group: int
    first: int
    size: int
    image_column: str
    texts: tuple[str, ...]
    digest: str

    def __len__(self) -> int:
        return self.size

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.texts)

    def path(self, row: int) -> str:
        return ""  # keys must not cost the reading of the file

    def image(self, row: int) -> bytes | None:
        value = self._table.column(self.image_column)[row].as_py()
        image = value["bytes"] if isinstance(value, dict) else value
        if image is None:
            raise SampleError("image", f"the row has no bytes in column {self.image_column!r}")
        return image

    def text(self, row: int) -> dict[str, Any]:
        assert 0 <= row < self.size
        return _values(self._table, self.texts, row)

    @property
    def _table(self) -> pyarrow.Table:
        table = _cache(os.getpid()).table(self.file, self.group, (self.image_column, *self.texts))
        # The file may have been replaced by one with other row groups.
        if table.num_rows != self.size:
            raise OSError(f"{self.file} has changed since it was opened")
        return table


def _values(table: pyarrow.Table, names: Sequence[str], row: int) -> dict[str, Any]:
    """The values of a row that are not null."""
    values = {}
    for name in names:
        value = table.column(name)[row].as_py()
        if value is not None:
            values[name] = decode_text(value)
    return values


def open_rows(
    file: Path, wanted: Sequence[str], *, shard_samples: int
) -> list[PathRows] | list[ImageRows]:
    """Read the shards of a file. Raises UserError."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"table {file} needs pyarrow: pip install 'clipx[table]'") from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            check_names(file, schema.names)
            texts = tuple(field.name for field in schema if is_text(field.type))
            images = [field.name for field in schema if is_image(field.type)]
            # A column of images comes before one of paths, whose files may be elsewhere.
            if any(name in images for name in wanted):
                column = image_column(file, images, wanted, "")
                return _image_shards(file, opened.metadata, column, texts)
            known = (*images, *texts)
            others = [f"{f.name!r} of {f.type}" for f in schema if f.name not in known]
            hint = f" and, neither text nor bytes, {', '.join(others)}" if others else ""
            column = image_column(file, known, wanted, hint)
            table = as_bytes(opened.read(list(texts), use_threads=False))
    except UserError:
        raise
    except errors() as error:
        raise UserError(f"table {file} cannot be read as Parquet: {error}") from error
    # Paths and text fit into memory, so shards may be of any size.
    shards = []
    for first in range(0, table.num_rows, shard_samples):
        size = min(shard_samples, table.num_rows - first)
        shards.append(PathRows(table, column, first, size))
    return shards


def _image_shards(
    file: Path, metadata: Any, column: str, texts: tuple[str, ...]
) -> list[ImageRows]:
    """A shard for each row group. Reads the footer and the ends of the columns only."""
    shards = []
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(index) for index in range(group.num_columns)]
        size = sum(chunk.total_uncompressed_size for chunk in chunks)
        if size > MAX_GROUP_BYTES:
            raise UserError(
                f"row group {number} of table {file} has {size / 2**30:.1f} GiB; samples are drawn "
                f"at random, so at most {MAX_GROUP_BYTES / 2**30:.0f} GiB is read at once: write "
                "it with smaller row groups (row_group_size=1000), or as WebDataset shards"
            )
        rows = group.num_rows
        if rows:
            digest = group_digest(file, chunks, column, texts, rows)
            shards.append(ImageRows(file, number, first, rows, column, texts, digest))
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
                table = self._read(file, group, columns)
                self._tables[key] = table
                self._bytes += table.nbytes
                while self._bytes > CACHE_BYTES and len(self._tables) > 1:
                    _, oldest = self._tables.popitem(last=False)
                    self._bytes -= oldest.nbytes
            self._tables.move_to_end(key)  # the last to be dropped
            return table

    def _read(self, file: Path, group: int, columns: Sequence[str]) -> pyarrow.Table:
        try:
            opened = self._open(file)
            return as_bytes(opened.read_row_group(group, list(columns), use_threads=False))
        except errors() as error:
            raise OSError(f"row group {group} of {file} cannot be read: {error}") from error


def _open(file: Path) -> parquet.ParquetFile:
    from pyarrow import parquet

    # pre_buffer would start threads, which a forked process does not have.
    return parquet.ParquetFile(file, pre_buffer=False)


@lru_cache(maxsize=1)
def _cache(process: int) -> _GroupCache:
    """One for each process: the lock of a parent may be held while it forks."""
    return _GroupCache()
