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
            sha.update(ascii((name, values)).encode())
        return sha.hexdigest()

    def path(self, row: int) -> str:
        return self._value(self.image_column, row) or ""

    def image(self, row: int) -> bytes | None:
        return None

    def text(self, row: int) -> dict[str, Any]:
        texts = [name for name in self.table.column_names if name != self.image_column]
        return _present({name: self._value(name, row) for name in texts})

    def _value(self, column: str, row: int) -> Any:
        assert 0 <= row < self.size
        return self.table.column(column)[self.first + row].as_py()


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
        return _present({name: self._table.column(name)[row].as_py() for name in self.texts})

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
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(f"table {file} needs pyarrow: pip install 'clipx[table]'") from error
    try:
        with parquet.ParquetFile(file, pre_buffer=False) as opened:
            schema = opened.schema_arrow
            texts = tuple(f.name for f in schema if _is_text(f.type))
            images = [f.name for f in schema if _is_image(f.type)]
            if any(name in images for name in wanted):
                column = image_column(file, images, wanted, "")
                return list(_groups(file, opened.metadata, column, texts))
            column = image_column(file, (*images, *texts), wanted, _others(schema, images, texts))
            table = opened.read(list(texts), use_threads=False)
    except (OSError, pyarrow.ArrowException) as error:
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
            found = chunk.statistics
            ends = (found.min, found.max) if found is not None and found.has_min_max else None
            sha.update(ascii((chunk.path_in_schema, sizes, ends)).encode())
        if group.num_rows:
            yield ImageRows(file, number, first, group.num_rows, column, texts, sha.hexdigest())
        first += group.num_rows


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
        import pyarrow

        try:
            return self._open(file).read_row_group(group, list(columns), use_threads=False)
        except pyarrow.ArrowException as error:
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


def _is_text(kind: pyarrow.DataType) -> bool:
    """Text, or lists of it."""
    from pyarrow import types

    if types.is_list(kind) or types.is_large_list(kind) or types.is_dictionary(kind):
        kind = kind.value_type
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _is_image(kind: pyarrow.DataType) -> bool:
    """Binary, or a struct with the binary field `bytes`."""
    from pyarrow import types

    if types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_image(kind.field(index).type)
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _present(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def _others(schema: pyarrow.Schema, *known: Sequence[str]) -> str:
    """For the error message where no column will do."""
    names = {name for names in known for name in names}
    others = [f"{f.name!r} of {f.type}" for f in schema if f.name not in names]
    return f" and, neither text nor bytes, {', '.join(others)}" if others else ""
