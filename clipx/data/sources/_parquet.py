"""Rows of Parquet files, with paths of images or with the images themselves.

Paths and text are held as Arrow tables. Images stay in the file: a row group is read when one of
its samples is needed, and the last ones are kept, up to CACHE_BYTES in each process.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from clipx.data.sample import SampleError
from clipx.data.sources._arrow import as_bytes, content_digest, decoded, faults, is_image, is_text
from clipx.data.sources._rows import image_column
from clipx.types import UserError

if TYPE_CHECKING:
    import pyarrow
    from pyarrow import parquet

MAX_GROUP_BYTES = 2**30
CACHE_BYTES = 2**30


@dataclass(frozen=True)
class PathRows:
    """See `Rows`. The rows first ... first + size - 1 of a table that all shards of a file share:
    Arrow would pickle the whole of it for a slice."""

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
            sha.update(ascii((name, list(map(decoded, values)))).encode())
        return sha.hexdigest()

    def path(self, row: int) -> str:
        path = self._value(self.image_column, row) or ""
        return os.fsdecode(path) if isinstance(path, bytes) else str(path)

    def image(self, row: int) -> bytes | None:
        return None

    def text(self, row: int) -> dict[str, Any]:
        texts = [name for name in self.table.column_names if name != self.image_column]
        return _present({name: self._value(name, row) for name in texts})

    def _value(self, column: str, row: int) -> Any:
        assert 0 <= row < self.size
        return decoded(self.table.column(column)[self.first + row].as_py())


@dataclass(frozen=True)
class ImageRows:
    """See `Rows`. A row group whose column of images is binary or Hugging Face's struct of bytes
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
        return ""  # it is in the file, and keys are asked for without reading that

    def image(self, row: int) -> bytes | None:
        value = self._table.column(self.image_column)[row].as_py()
        image = value["bytes"] if isinstance(value, dict) else value
        if image is None:
            raise SampleError("image", f"the row has no bytes in column {self.image_column!r}")
        return image

    def text(self, row: int) -> dict[str, Any]:
        assert 0 <= row < self.size
        columns = {name: self._table.column(name) for name in self.texts}
        return _present({name: decoded(column[row].as_py()) for name, column in columns.items()})

    @property
    def _table(self) -> pyarrow.Table:
        table = _cache(os.getpid()).table(self.file, self.group, (self.image_column, *self.texts))
        if table.num_rows != self.size:
            raise OSError(f"{self.file} has changed since it was opened")
        return table


def open_rows(
    file: Path, wanted: Sequence[str], *, shard_samples: int
) -> list[PathRows] | list[ImageRows]:
    """The shards of a file. Raises UserError."""
    try:
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"table {file} needs pyarrow: pip install 'clipx[table]'") from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            _refuse_twins(file, schema.names)
            texts = tuple(f.name for f in schema if is_text(f.type))
            images = [f.name for f in schema if is_image(f.type)]
            if any(name in images for name in wanted):
                column = image_column(file, images, wanted, "")
                return list(_groups(file, opened.metadata, column, texts))
            column = image_column(file, (*images, *texts), wanted, _others(schema, images, texts))
            table = as_bytes(opened.read(list(texts), use_threads=False))
    except UserError:
        raise
    except faults() as error:
        raise UserError(f"table {file} cannot be read as Parquet: {error}") from error
    starts = range(0, table.num_rows, shard_samples)
    sizes = (min(shard_samples, table.num_rows - first) for first in starts)
    return [PathRows(table, column, *span) for span in zip(starts, sizes, strict=True)]


def _groups(file: Path, metadata: Any, column: str, texts: tuple[str, ...]) -> Iterator[ImageRows]:
    """A shard for each row group. Only the footer of the file is looked at."""
    first = 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        chunks = [group.column(c) for c in range(group.num_columns)]
        size = sum(c.total_uncompressed_size for c in chunks)
        if size > MAX_GROUP_BYTES:
            raise UserError(
                f"row group {number} of table {file} has {size / 2**30:.1f} GiB; samples are drawn "
                f"at random, so at most {MAX_GROUP_BYTES / 2**30:.0f} GiB is read at once: write "
                "it with smaller row groups (row_group_size=1000), or as WebDataset shards"
            )
        sha = hashlib.sha1(ascii((column, texts, group.num_rows)).encode())
        for chunk in chunks:
            sizes = (chunk.total_compressed_size, chunk.total_uncompressed_size)
            ends = _extremes(chunk.statistics)
            sha.update(ascii((chunk.path_in_schema, sizes, ends)).encode())
        if group.num_rows:
            digest = f"{sha.hexdigest()}:{content_digest(file, chunks)}"
            yield ImageRows(file, number, first, group.num_rows, column, texts, digest)
        first += group.num_rows


def _extremes(statistics: Any) -> tuple[Any, Any] | None:
    if statistics is None or not statistics.has_min_max:
        return None
    try:
        return statistics.min, statistics.max
    except UnicodeDecodeError:
        return statistics.min_raw, statistics.max_raw


class _Cache:
    """Row groups read last, up to CACHE_BYTES of them, at least one."""

    def __init__(self) -> None:
        self._lock = Lock()  # two threads must not read the same group, nor use one open file
        self._tables: OrderedDict[tuple[Path, int, tuple[str, ...]], pyarrow.Table] = OrderedDict()
        self._bytes = 0
        self._open = lru_cache(maxsize=64)(_open)

    def table(self, file: Path, group: int, columns: tuple[str, ...]) -> pyarrow.Table:
        """Raises OSError."""
        with self._lock:
            name = (file, group, columns)
            table = self._tables.get(name)
            if table is None:
                table = self._tables[name] = self._read(file, group, columns)
                self._bytes += table.nbytes
                while self._bytes > CACHE_BYTES and len(self._tables) > 1:
                    self._bytes -= self._tables.popitem(last=False)[1].nbytes
            self._tables.move_to_end(name)
            return table

    def _read(self, file: Path, group: int, columns: Sequence[str]) -> pyarrow.Table:
        try:
            opened = self._open(file)
            return as_bytes(opened.read_row_group(group, list(columns), use_threads=False))
        except faults() as error:
            raise OSError(f"row group {group} of {file} cannot be read: {error}") from error


def _open(file: Path) -> parquet.ParquetFile:
    from pyarrow import parquet

    return parquet.ParquetFile(
        file, pre_buffer=False
    )  # that would start threads: no use after fork


@lru_cache(maxsize=1)
def _cache(process: int) -> _Cache:
    """Each process has its own: the lock of a parent may be held while it forks."""
    del process
    return _Cache()


def _refuse_twins(file: Path, names: Sequence[str]) -> None:
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"table {file} has two columns {twice!r}; rename one")


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _others(schema: pyarrow.Schema, *known: Sequence[str]) -> str:
    """For the error message where no column will do."""
    names = {name for names in known for name in names}
    others = [f"{f.name!r} of {f.type}" for f in schema if f.name not in names]
    return f" and, neither text nor bytes, {', '.join(others)}" if others else ""
