"""Rows of CSV and TSV files, quoted as the csv module and pandas write them.

What does not parse costs one row, which says so when it is read: no line is taken into a
neighbor's quotes without a word, and none is lost.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from clipx.data.sample import SampleError
from clipx.data.sources._rows import image_column
from clipx.data.sources._strings import Strings
from clipx.types import UserError

_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}


@dataclass(frozen=True)
class CsvRows:
    """See `Rows`. broken: row -> what is wrong with it; its columns are empty"""

    first: int
    columns: Mapping[str, Strings]
    image_column: str
    broken: Mapping[int, str]

    def __len__(self) -> int:
        return len(self.columns[self.image_column])

    @property
    def fields(self) -> frozenset[str]:
        return frozenset(self.columns) - {self.image_column}

    @cached_property
    def digest(self) -> str:
        sha = hashlib.sha1(ascii((self.image_column, self.broken)).encode())
        for name, strings in self.columns.items():
            sha.update(ascii(name).encode() + strings.ends.tobytes() + strings.blob)
        return sha.hexdigest()

    def path(self, row: int) -> str:
        return os.fsdecode(self.columns[self.image_column][row])

    def image(self, row: int) -> bytes | None:
        return None

    def text(self, row: int) -> dict[str, Any]:
        if row in self.broken:
            raise SampleError("read", self.broken[row])
        texts = {}
        for name, strings in self.columns.items():
            if name != self.image_column:
                texts[name] = _text(strings[row])
        return texts


def open_rows(
    file: Path, wanted: Sequence[str], *, separator: str, shard_samples: int
) -> list[CsvRows]:
    """The shards of a file. Raises UserError."""
    separator = separator.replace("\\t", "\t")  # as a shell passes it on
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f'separator {separator!r} is not one character such as "," or "\\t"')
    try:
        with file.open("rb") as binary:
            if binary.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"table {file} is UTF-16; save it as UTF-8")
        # One line in another encoding must cost that line only: its bytes travel as surrogates.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            return list(_shards(file, text, wanted, separator, shard_samples))
    except OSError as error:
        raise UserError(f"table {file} cannot be read: {error}") from error


def _shards(
    file: Path, text: TextIO, wanted: Sequence[str], separator: str, shard_samples: int
) -> Iterator[CsvRows]:
    lines = _Lines(text)
    try:
        header = next(csv.reader(lines, delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise UserError(f"the first line of table {file} does not parse: {error}") from error
    if len(set(header)) < len(header):
        twice = next(name for name in header if header.count(name) > 1)
        raise UserError(f"table {file} has two columns {twice!r}; rename one")
    column = image_column(file, header, wanted, _separator_hint(header, separator))
    records, first = _records(lines, separator, len(header)), 0
    while rows := list(islice(records, shard_samples)):
        broken = {n: row for n, row in enumerate(rows) if isinstance(row, str)}
        fields = zip(*([""] * len(header) if isinstance(r, str) else r for r in rows), strict=True)
        columns = {
            name: Strings([value.encode("utf-8", "surrogateescape") for value in values])
            for name, values in zip(header, fields, strict=True)
        }
        yield CsvRows(first, columns, column, broken)
        first += len(rows)


def _records(lines: _Lines, separator: str, num_columns: int) -> Iterator[list[str] | str]:
    """The fields of each record, or what is wrong with it."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        lines.taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {lines.back_to_first()} does not parse: {error}"
            continue
        if not row:
            continue  # an empty line
        if len(row) == num_columns:
            yield row
        else:
            line = lines.back_to_first()
            yield f"line {line} has {len(row)} columns, the first line of the table {num_columns}"


class _Lines:
    """Lines of a file, of which those after a record's first can be given back: where a quote is
    never closed, they are rows of their own."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._returned: deque[str] = deque()
        self._number = 0
        self.taken: list[str] = []

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._file)
        self._number += 1
        self.taken.append(line)
        return line

    def back_to_first(self) -> int:
        """Number of the first line taken, from 1; the others come again."""
        self._returned.extendleft(reversed(self.taken[1:]))
        self._number -= len(self.taken) - 1
        return self._number


def _separator_hint(header: Sequence[str], separator: str) -> str:
    """What the file may be separated by instead."""
    inside = "".join(header)
    for other, name in _SEPARATORS.items():
        if other != separator and other in inside:
            return f" (split at {separator!r}; there is a {name}: try separator: {other!r})"
    return ""


def _text(data: bytes) -> str | bytes:
    """The bytes where they are not UTF-8: whoever wants this column will say so."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data
