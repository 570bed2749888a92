"""Where an index keeps its embeddings: a folder, or a collection of Qdrant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor

from clipx.search.embeddings import COLUMNS, Manifest

NUM_EXAMPLES = 8


class Store(Protocol):
    """Embeddings with metadata, searched by similarity. Rows have the numbers 0 ... num_rows - 1,
    of which removed ones are not found.

    name: of one path component; source: folder or URL; kind: of the index, for people
    """

    name: str
    source: str
    kind: str
    manifest: Manifest
    num_rows: int

    def nearest(
        self, query: Tensor, k: int, *, where: str | None = None
    ) -> list[tuple[int, float]]:
        """(row, similarity) of the k nearest, best first. Raises UserError.

        query: (D,) float32 of unit norm; where: a condition, see `filters.parse_condition`
        """
        ...

    def missing(self, rows: Sequence[int]) -> list[int]:
        """Those of the rows that are not there, or removed. Raises UserError."""
        ...

    def metadata(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """The columns that each sample has. Raises UserError."""
        ...

    def vectors(self, rows: Sequence[int]) -> Tensor:
        """(n, D) float32. Raises UserError."""
        ...

    def columns(self) -> list[dict[str, Any]]:
        """See `describe_columns`."""
        ...


def describe_columns(
    types: Mapping[str, str], sample: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Name and type of each column, with its most frequent values if some are repeated.

    types: of all columns; sample: metadata of rows that are spread over the corpus
    """
    columns = []
    # The user's own first: they are what people filter by.
    for name in sorted(types, key=lambda name: name in COLUMNS):
        values = [row[name] for row in sample if row.get(name) is not None]
        values = [value for value in values if value == value]  # without NaN
        counts = Counter(values)
        examples = []
        # A column of keys or captions has no values to choose from.
        if len(counts) <= max(NUM_EXAMPLES, len(values) // 20):
            frequent = sorted(counts, key=lambda value: (-counts[value], str(value)))
            examples = [str(value)[:80] for value in frequent[:NUM_EXAMPLES]]
        columns.append({"name": name, "type": types[name], "examples": examples})
    return columns
