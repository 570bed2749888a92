"""The rows of a table, whatever kind of file they come from, and many strings in little memory."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clipx.data.sample import SampleError
from clipx.types import UserError


@dataclass(frozen=True)
class Rows(ABC):
    """The rows of one shard. Pickled and sent to other processes.

    first: number of the first row in its file, from 0
    fields: names of the text columns
    """

    first: int
    size: int
    fields: frozenset[str]
    digest: str

    @abstractmethod
    def path(self, row: int, column: str | None = None) -> str:
        """Path of the image as the table has it, or "". Raises SampleError.

        column: None for the one that was chosen when the table was opened
        """

    @abstractmethod
    def image(self, row: int, column: str | None = None) -> bytes | None:
        """The image, if the table holds it. Raises SampleError and OSError."""

    @abstractmethod
    def text(self, row: int) -> dict[str, Any]:
        """The text fields, bytes where one is not UTF-8, and numbers. Raises SampleError and
        OSError."""


@dataclass(frozen=True)
class PathRows(Rows):
    """Rows with paths of images.

    columns: name -> a value for each row: text, UTF-8 bytes, lists of these, a number, or None
    image_column: empty for a table without images
    start: place of the first row in the columns, which shards may share
    broken: row -> why it does not parse
    """

    columns: Mapping[str, Any]
    image_column: str
    start: int = 0
    broken: Mapping[int, str] = field(default_factory=dict)

    def path(self, row: int, column: str | None = None) -> str:
        if column is None:
            column = self.image_column
            if not column:
                return ""
        elif column not in self.columns:
            raise missing_column(column, self.columns)
        path = self.columns[column][self.start + row]
        if path is None:
            return ""
        # Bytes may be no UTF-8, as names of files may be in any encoding.
        return os.fsdecode(path) if isinstance(path, bytes) else str(path)

    def image(self, row: int, column: str | None = None) -> bytes | None:
        return None

    def text(self, row: int) -> dict[str, Any]:
        assert 0 <= row < self.size
        if row in self.broken:
            raise SampleError("read", self.broken[row])
        values = {}
        for name, column in self.columns.items():
            value = column[self.start + row]
            if name != self.image_column and value is not None:
                values[name] = decode_text(value)
        return values


class Strings:
    """A list of N byte strings as one blob and (N,) int64 ends: a few objects instead of N, so that
    it pickles fast and forked processes share its memory."""

    def __init__(self, items: Sequence[bytes]) -> None:
        self.blob = b"".join(items)
        self.ends = np.cumsum(np.fromiter(map(len, items), np.int64, len(items)))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> bytes:
        assert 0 <= index < len(self.ends)
        start = self.ends[index - 1] if index else 0
        return self.blob[start : self.ends[index]]


def missing_column(name: str, columns: Collection[str]) -> SampleError:
    there = ", ".join(columns)
    return SampleError("image", f"the table has no image column {name!r}; it has {there}")


def image_column(file: Path, columns: Collection[str], wanted: Sequence[str], hint: str) -> str:
    """Choose the first of the wanted columns that exists; "" where none is wanted. Raises
    UserError."""
    if not wanted:
        return ""
    for name in wanted:
        if name in columns:
            return name
    raise UserError(
        f"table {file} has no image column {' or '.join(wanted)}; "
        f"its columns are {', '.join(map(repr, columns))}{hint}; set image_column, "
        "or image_column: none for a table of texts"
    )


def check_names(file: Path, names: Sequence[str]) -> None:
    """Raises UserError if two columns have the same name."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"table {file} has two columns {name!r}; rename one")


def decode_text(value: Any) -> Any:
    """Decode bytes that are UTF-8, also in lists; return other values as they are."""
    if isinstance(value, list):
        return [decode_text(item) for item in value]
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError:
        return value
