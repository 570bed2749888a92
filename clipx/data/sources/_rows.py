"""What the rows of a table are, whatever kind of file they come from."""

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
        """Path of the image as the table has it; empty where it has none."""
        ...

    def image(self, row: int) -> bytes | None:
        """The image, if the table holds it. Raises OSError."""
        ...

    def text(self, row: int) -> dict[str, Any]:
        """The text fields; bytes where one is not UTF-8. Raises SampleError and OSError."""
        ...


def image_column(file: Path, columns: Collection[str], wanted: Sequence[str], hint: str) -> str:
    """The first of the wanted columns that there is. Raises UserError."""
    found = next((name for name in wanted if name in columns), None)
    if found is None:
        raise UserError(
            f"table {file} has no image column {' or '.join(wanted)}; "
            f"its columns are {', '.join(map(repr, columns))}{hint}; set image_column"
        )
    return found
