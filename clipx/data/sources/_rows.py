"""The rows of a table, whatever kind of file they come from."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Protocol

from clipx.types import UserError


class Rows(Protocol):
    """The rows of one shard. Pickled and sent to other processes."""

    @property
    def first(self) -> int:
        """Number of the first row in its file, from 0."""
        ...

    @property
    def fields(self) -> frozenset[str]:
        """Names of the text columns."""
        ...

    @property
    def digest(self) -> str: ...
    def __len__(self) -> int: ...
    def path(self, row: int) -> str:
        """Path of the image as the table has it, or ""."""
        ...

    def image(self, row: int) -> bytes | None:
        """The image, if the table holds it. Raises SampleError and OSError."""
        ...

    def text(self, row: int) -> dict[str, Any]:
        """The text fields; bytes where one is not UTF-8. Raises SampleError and OSError."""
        ...


def image_column(file: Path, columns: Collection[str], wanted: Sequence[str], hint: str) -> str:
    """Choose the first of the wanted columns that exists. Raises UserError."""
    for name in wanted:
        if name in columns:
            return name
    raise UserError(
        f"table {file} has no image column {' or '.join(wanted)}; "
        f"its columns are {', '.join(map(repr, columns))}{hint}; set image_column"
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
