"""Rows of CSV and TSV files, quoted as the csv module and pandas write them.

A line that does not parse costs one row, which raises the reason when it is read. pyarrow.csv with
its handler of invalid rows does less: a quote that is never closed swallows all lines up to the
next quote without an error (30 of 60 rows in the test), text after a closing quote is taken into
the value, and its row numbers are not line numbers.
"""

from __future__ import annotations

import csv
import hashlib
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TextIO

from clipx.data.sources._rows import PathRows, Strings, check_names, image_column
from clipx.types import UserError

_SEPARATORS = {"\t": "tab", ",": "comma", ";": "semicolon", "|": "bar"}


def open_rows(
    file: Path, wanted: Sequence[str], *, separator: str, shard_samples: int
) -> list[PathRows]:
    """Read the shards of a file. Raises UserError."""
    separator = separator.replace("\\t", "\t")  # as a shell passes it on
    if len(separator) != 1 or separator in '"\r\n':
        raise UserError(f'separator {separator!r} is not one character such as "," or "\\t"')
    try:
        with file.open("rb") as binary:
            if binary.read(2) in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError(f"table {file} is UTF-16; save it as UTF-8")
        # A line in another encoding must cost that line only: its bytes become surrogates.
        with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
            return _read_shards(file, text, wanted, separator, shard_samples)
    except OSError as error:
        raise UserError(f"table {file} cannot be read: {error}") from error


def _read_shards(
    file: Path, text: TextIO, wanted: Sequence[str], separator: str, shard_samples: int
) -> list[PathRows]:
    lines = _Lines(text)
    # strict: without it, the csv module takes text after a closing quote into the value.
    try:
        header = next(csv.reader(lines, delimiter=separator, strict=True), [])
    except csv.Error as error:
        raise UserError(f"the first line of table {file} does not parse: {error}") from error
    check_names(file, header)
    hint = ""
    for other, name in _SEPARATORS.items():
        if other != separator and other in "".join(header):
            hint = f" (split at {separator!r}; there is a {name}: try separator: {other!r})"
            break
    column = image_column(file, header, wanted, hint)
    fields = frozenset(header) - {column}  # "" is no column

    records = _records(lines, separator, len(header))
    shards = []
    first = 0
    while rows := list(islice(records, shard_samples)):
        values: list[list[bytes]] = [[] for _ in header]
        broken: dict[int, str] = {}
        for number, row in enumerate(rows):
            if isinstance(row, str):  # the reason why it does not parse
                broken[number] = row
                row = [""] * len(header)
            for column_values, value in zip(values, row, strict=True):
                column_values.append(value.encode("utf-8", "surrogateescape"))
        columns = dict(zip(header, map(Strings, values), strict=True))
        sha = hashlib.sha1(ascii((column, broken)).encode())
        for name, strings in columns.items():
            sha.update(ascii(name).encode() + strings.ends.tobytes() + strings.blob)
        digest = sha.hexdigest()
        shard = PathRows(first, len(rows), fields, digest, columns, column, broken=broken)
        shards.append(shard)
        first += len(rows)
    return shards


def _records(lines: _Lines, separator: str, num_columns: int) -> Iterator[list[str] | str]:
    """Yield the fields of each record, or why it does not parse."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:  # a `for` would end at the first error
        lines.taken.clear()
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield f"line {lines.return_all_but_first()} does not parse: {error}"
            continue
        if not row:
            continue  # an empty line
        if len(row) == num_columns:
            yield row
        else:
            line = lines.return_all_but_first()
            yield f"line {line} has {len(row)} columns, the first line of the table {num_columns}"


class _Lines:
    """Lines of a file, of which those after a record's first can be returned: if a quote is never
    closed, they are rows of their own."""

    def __init__(self, file: TextIO) -> None:
        self.taken: list[str] = []
        self._file = file
        self._returned: deque[str] = deque()
        self._number = 0

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._returned.popleft() if self._returned else next(self._file)
        self._number += 1
        self.taken.append(line)
        return line

    def return_all_but_first(self) -> int:
        """Returns the number of the first line taken, from 1. The others come again."""
        self._returned.extendleft(reversed(self.taken[1:]))
        self._number -= len(self.taken) - 1
        return self._number
